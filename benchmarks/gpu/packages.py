"""Pack the Python packages that a GPU machine without a package registry lacks.

    python -m benchmarks.gpu.packages OUT --has LIST [--python 3.12] [--arch 90]

LIST is what the machine has: the output of `python3 -m pip list --format=freeze` there, or names alone, one per line.
pip resolves what rhofast and DALI need for that Python, with the listed versions as constraints; what the machine has
is left out. The archives OUT/packages-1.tar.xz, ... unpack into one folder that comes first on PYTHONPATH.

Of DALI's CUDA code one GPU architecture is kept, and nothing that the measurements do not load goes along, so that each
archive stays below 56 MiB. The archives are for a measurement and not for distribution.
"""

from __future__ import annotations

import argparse
import json
import mmap
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 56 << 20  # bytes per archive: room for the code beside it, where 64 MiB can be copied at once
EXTRAS = ("cu13",)
TESTS = ("pytest", "hypothesis")
PLATFORMS = ["manylinux2014_x86_64", "manylinux1_x86_64"]
PLATFORMS += [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35, 39)]

# What is not loaded: ffmpeg's program, which only ingest runs, and nvImageCodec's other ways to decode pictures. A file
# `nvidia/__init__.py` would hide the folder of that name among the machine's own packages.
UNUSED = (
    "nvidia/__init__.py",
    *("imageio_ffmpeg/binaries/*", "cv2"),
    *("nvidia/nvimgcodec/extensions/*opencv*", "nvidia/nvimgcodec/extensions/*tiff*"),
)
UNUSED_PACKAGES = {"nvidia-nvtiff-cu13", "nvidia-libnvcomp-cu13"}
# pydantic needs a newer version of it than torch is content with, and lists often do not say which one is there.
ALWAYS_CARRIED = {"typing-extensions"}

FATBIN_MAGIC = b"\x50\xed\x55\xba"
FATBIN_HEADER = struct.Struct("<4sHHQ")  # magic, version, size of this header, size of the entries
FATBIN_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, size of this header, size of the code, ..., architecture
ENTRY_HEADERS = range(48, 4097)
CUBIN = 2


def canonical(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_list(path: Path) -> dict[str, str | None]:
    """Return the packages of a machine: name -> version, or None where the list names none."""
    found: dict[str, str | None] = {}
    for line in path.read_text().splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            found[canonical(name)] = version.partition("+")[0] or None
    return found


def requirements() -> list[str]:
    """Return what rhofast needs to run and to be tested on a GPU."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [need for extra in EXTRAS for need in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras, *TESTS]


def target(python: str) -> list[str]:
    """Return pip's options for wheels of a Python version on x86-64 Linux."""
    tag = "cp" + python.replace(".", "")
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--abi", tag]
    options += ["--abi", "abi3", "--abi", "none"]
    return options + [option for platform in PLATFORMS for option in ("--platform", platform)]


def missing(has: dict[str, str | None], python: str) -> list[str]:
    """Return the packages that the machine lacks, with versions that go with those it has.

    Args:
        has: Packages of the machine, see `read_list`.
        python: Its version of Python, such as "3.12".

    Returns:
        Requirements such as `av==16.0.1`. A package of the machine that is too old for another one is among them.
    """
    # A package that is there in an unknown version is believed to fit, and so is whatever it needs.
    wanted = [need for need in requirements() if canonical(re.split(r"[\[<>=!~; ]", need)[0]) not in has]
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        fixed = {name: version for name, version in has.items() if version and name not in ALWAYS_CARRIED}
        lines = [f"{name}=={version}" for name, version in fixed.items()]
        constraints.write_text("\n".join(lines))
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--target", folder]
        command += ["--report", str(report), "-c", str(constraints), *target(python), *wanted]
        subprocess.run(command, check=True)
        resolved = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return [f"{one['name']}=={one['version']}" for one in resolved if lacks(has, one)]


def lacks(has: dict[str, str | None], package: dict[str, Any]) -> bool:
    """Return whether a resolved package must be carried: it is not there, or in another version."""
    name = canonical(package["name"])
    if name in ALWAYS_CARRIED | UNUSED_PACKAGES:
        return name in ALWAYS_CARRIED
    if name in has:
        return has[name] is not None and has[name] != package["version"]
    return True


def keep_one_architecture(library: Path, architecture: int) -> int:
    """Overwrite with zeros the CUDA code of all other architectures in a shared library.

    Every header stays, so the layout of the file is the same and the driver finds the code that it needs.

    Args:
        library: The shared library, changed in place.
        architecture: Compute capability without the point, such as 90.

    Returns:
        The number of bytes overwritten.
    """
    cleared = 0
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        for begin, end in fatbins(image):
            place = begin
            while place + 64 <= end:
                kind, _, header, size, found = FATBIN_ENTRY.unpack_from(image, place)
                if header not in ENTRY_HEADERS or place + header + size > end + 64:
                    break
                if (kind, found) != (CUBIN, architecture):
                    image[place + header : place + header + size] = bytes(size)
                    cleared += size
                place += header + size
        image.flush()
    return cleared


def fatbins(image: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the entries of every bundle of CUDA code in a library."""
    place = image.find(FATBIN_MAGIC)
    while place >= 0 and place + FATBIN_HEADER.size <= len(image):
        _, version, header, size = FATBIN_HEADER.unpack_from(image, place)
        end = place + header + size
        is_bundle = header == FATBIN_HEADER.size and version <= 2 and end <= len(image)
        if is_bundle:
            yield place + header, end
        place = image.find(FATBIN_MAGIC, end if is_bundle else place + len(FATBIN_MAGIC))


def unpack(wheels: Path, site: Path, python: str, architecture: int) -> list[Path]:
    """Unpack wheels, each into a folder of its own, without what is not loaded; return the folders."""
    own = f"cpython-{python.replace('.', '')}-"
    folders = []
    for wheel in sorted(wheels.glob("*.whl")):
        folder = site / wheel.name.split("-")[0]
        zipfile.ZipFile(wheel).extractall(folder)
        for path in [path for pattern in UNUSED for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for extension in folder.rglob("*.cpython-*.so"):  # some wheels hold one for every version of Python
            if own not in extension.name:
                extension.unlink()
        for library in [*folder.rglob("libdali*.so"), *folder.rglob("libcvcuda*.so*")]:
            keep_one_architecture(library, architecture)
        folders.append(folder)
    return folders


def pack(folder: Path, archive: Path) -> int:
    """Pack the content of a folder into an archive; return its size in bytes."""
    command = ["tar", "cf", "-", "-C", str(folder), "."]
    with archive.open("wb") as file, subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        subprocess.run(["xz", "-9", "-T0"], stdin=tar.stdout, stdout=file, check=True)
    if tar.returncode:
        raise SystemExit(f"{archive}: tar failed")
    return archive.stat().st_size


def pack_all(folders: list[Path], out: Path) -> None:
    """Pack folders into few archives of at most LIMIT bytes: the largest first, each where it still fits.

    An archive is a row of compressed tars, which `tar --ignore-zeros` unpacks as one: nothing is compressed twice.

    Args:
        folders: Unpacked packages.
        out: Folder of the archives.
    """
    for old in out.glob("packages-*.tar.xz"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        packed = {folder.name: Path(scratch) / f"{folder.name}.tar.xz" for folder in folders}
        sizes = {folder.name: pack(folder, packed[folder.name]) for folder in folders}
        for number, names in enumerate(groups(sizes), 1):
            archive = out / f"packages-{number}.tar.xz"
            with archive.open("wb") as file:
                for name in names:
                    file.write(packed[name].read_bytes())
            listed = ", ".join(f"{name} {sizes[name] / 2**20:.1f}" for name in names)
            print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB: {listed}", flush=True)


def groups(sizes: dict[str, int]) -> list[list[str]]:
    """Return names in groups whose sizes sum to at most LIMIT."""
    found: list[tuple[int, list[str]]] = []
    for name, size in sorted(sizes.items(), key=lambda entry: -entry[1]):
        if size > LIMIT:
            raise SystemExit(f"{name}: {size / 2**20:.1f} MiB packed, more than {LIMIT >> 20} MiB")
        number = next((n for n, (used, _) in enumerate(found) if used + size <= LIMIT), len(found))
        used, names = found[number] if number < len(found) else (0, [])
        found[number : number + 1] = [(used + size, [*names, name])]
    return [names for _, names in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the archives")
    parser.add_argument("--has", type=Path, required=True, help="list of the packages that the machine has")
    parser.add_argument("--python", default="3.12", help="the machine's version of Python")
    parser.add_argument("--arch", type=int, default=90, help="compute capability without the point; 90 is Hopper")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    needed = missing(read_list(options.has), options.python)
    print("missing there:", *needed, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder) / "wheels", Path(folder) / "site"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)]
        subprocess.run([*command, *target(options.python), *needed], check=True)
        pack_all(unpack(wheels, site, options.python, options.arch), options.out)


if __name__ == "__main__":
    main()
