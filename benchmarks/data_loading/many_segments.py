"""Many segments of long files, and large tars: does memory of ingest grow, and do killed builds give the same bytes?

    memory   peak memory of `rhofast shard` with all of its processes, by the number of segments that are really cut:
             windows of one file in one shard, segments of a few files in one shard and in many, refused ones; by the
             size of a tar; and of `verify`, `--append` and `--dry-run` of what was made
    kills    a build of windows with labels, killed with -9 at random moments and continued, against one that was not

Memory is the sum of the processes' proportional set sizes (PSS), in which shared pages count once; `private` is what no
file backs of it. The program exits with 1 if memory differs by more than 50 MB, or a set by a byte.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.data_loading.remux import killed_builds
from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.ingest.transcode import encoder_version, find_ffmpeg

LIMIT_MB = 50.0
SECONDS, FILES = 1_000, 4  # of a long file, and how many the segments of a list are of
POLL_S = 0.25

console = Console(width=120)


def run_ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([find_ffmpeg(), "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)], check=True)


def make_long(path: Path, seconds: int) -> None:
    """Make a video of small pictures in groups of 10, by repeating the packets of a short one."""
    short = path.with_name(f"short-{path.name}")
    encoder = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-bf", "0", "-pix_fmt", "yuv420p")
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64:r=30:d=100", *encoder, short)
    run_ffmpeg("-stream_loop", seconds // 100 - 1, "-i", short, "-c", "copy", path)
    short.unlink()


def make_tar(path: Path, megabytes: int) -> None:
    """Make a WebDataset tar of this size, of members of half a megabyte."""
    video = path.with_name("member.mp4")
    noise = "testsrc2=s=640x360:r=10:d=1,noise=alls=90:allf=t"
    run_ffmpeg("-f", "lavfi", "-i", noise, "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "4M", "-g", "5", video)
    content = video.read_bytes()
    with tarfile.open(path, "w") as tar:
        for number in range(round(megabytes * 1e6 / len(content))):
            entry = tarfile.TarInfo(f"m{number:06d}.mp4")
            entry.size = len(content)
            with video.open("rb") as file:
                tar.addfile(entry, file)
            tar.getmembers().clear()
    video.unlink()


def make_list(path: Path, videos: list[Path], count: int, *, outside: bool = False) -> None:
    """Write a list of segments of 0.3 seconds, file by file; `outside`: behind the ends of the files."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end"])
        each = count // len(videos)
        for video in videos:
            for number in range(each):
                start = number * (SECONDS - 1) / each + (10 * SECONDS if outside else 0)
                writer.writerow([video, f"{start:.4f}", f"{start + 0.3:.4f}"])


# ---- memory ----


def memory_of(session: int) -> tuple[int, int]:
    """Return the memory of all processes of a session in kB: its proportional size, and what no file backs."""
    total = private = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                facts = dict(line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:])
                total += int(facts["Pss"].split()[0])
                private += int(facts["Pss_Anon"].split()[0])
        except (OSError, ValueError, IndexError):  # it has ended
            continue
    return total, private


def measure(*arguments: str | Path) -> dict[str, float]:
    """Run `rhofast` with one worker and return its peak memory in MB and its seconds."""
    begun, peak = time.perf_counter(), (0, 0)
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "rhofast", *map(str, arguments), "--workers", "1"]  # of one as of many
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        while process.poll() is None:
            now = memory_of(process.pid)
            peak = max(peak[0], now[0]), max(peak[1], now[1])
            time.sleep(POLL_S)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {said.read().decode()}")
    return {"pss": peak[0] / 1024, "private": peak[1] / 1024, "seconds": time.perf_counter() - begun}


Case = Callable[[int, Path], dict[str, dict[str, float]]]


def windows(codec: str, long: Path) -> Case:
    """Cut one file into so many windows, in one shard; and look at what was made."""

    def run(count: int, folder: Path) -> dict[str, dict[str, float]]:
        (folder / "in").mkdir()
        (folder / "in" / "long.mp4").symlink_to(long)
        options = ["--codec", codec, "--clip-seconds", "0.3", "--stride", f"{(SECONDS - 1) / (count - 1):.6f}"]
        options += ["--name", "x", *(["--short-side", "32"] if codec == "jpeg" else [])]
        return {
            "": measure("shard", folder / "in", folder / "out", *options),
            ", verify": measure("verify", folder / "out"),
            ", --append": measure("shard", folder / "in", folder / "out", *options, "--append"),
            ", --dry-run": measure("shard", folder / "in", folder / "none", *options, "--dry-run", "1"),
        }

    return run


def listed(videos: list[Path], *, one: bool, outside: bool = False) -> Case:
    """Cut the segments of a list, all in one shard or in many; `outside`: refuse all but one file."""

    def run(count: int, folder: Path) -> dict[str, dict[str, float]]:
        make_list(folder / "list.csv", videos, count, outside=outside)
        if outside:
            with (folder / "list.csv").open("a") as file:
                file.write(f"{videos[0]},0,1\n")
        options = ["--codec", "remux", "--name", "x", *(["--samples-per-shard", str(count + 1)] if one else [])]
        return {"": measure("shard", folder / "list.csv", folder / "out", *options)}

    return run


def tar(count: int, folder: Path) -> dict[str, dict[str, float]]:
    """Make a set of a tar of so many megabytes."""
    make_tar(folder / "source.tar", count)
    return {"": measure("shard", folder / "source.tar", folder / "out", "--codec", "remux", "--name", "x")}


def memory(options: argparse.Namespace, folder: Path) -> Iterable[dict[str, Any]]:
    """Yield the memory of each case by its number of segments, or by the size of its tar in MB."""
    videos = [folder / f"long{number}.mp4" for number in range(FILES)]
    make_long(videos[0], SECONDS)
    for video in videos[1:]:
        shutil.copyfile(videos[0], video)
    few, many = options.few, options.many
    cases: dict[str, tuple[Case, int, int]] = {
        "remux, windows of a file, one shard": (windows("remux", videos[0]), few, many),
        "remux, segments of a list, one shard": (listed(videos, one=True), few, many),
        "remux, segments of a list, many shards": (listed(videos, one=False), few, many),
        "refused segments of a list, one shard": (listed(videos, one=True, outside=True), few, options.refused),
        "jpeg, windows of a file, one shard": (windows("jpeg", videos[0]), options.few_jpeg, options.many_jpeg),
        "a tar, in MB": (tar, options.few_mb, options.many_mb),
    }
    for name, (case, *counts) in cases.items():
        if options.only not in name:
            continue
        found = []
        for count in counts:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                found.append(case(count, Path(place)))
            console.print(name, count, found[-1], markup=False)
        for what in found[0]:
            few_facts, many_facts = (one[what] for one in found)
            yield {"name": name + what, "few": counts[0], "many": counts[1], "at few": few_facts, "at many": many_facts}


# ---- kills ----


def kills(count: int, folder: Path) -> dict[str, Any]:
    """Kill builds of windows of labeled videos, and continue them."""
    lines = []
    for number in range(6):
        video, seconds = folder / f"v{number}.mp4", 20 + 2 * number
        given = f"testsrc2=s=128x96:r=25:d={seconds}"
        run_ffmpeg("-f", "lavfi", "-i", given, "-c:v", "libx264", "-preset", "ultrafast", "-g", "12", video)
        labels = [[0, None, None], [1, 1.0, seconds / 2], [2, seconds / 2, None]]
        lines.append(json.dumps({"key": f"v{number}", "path": str(video), "label": number % 3, "labels": labels}))
    (folder / "records.jsonl").write_text("\n".join([*lines, ""]))
    options = ("--codec", "jpeg", "--short-side", "64", "--clip-seconds", "2", "--stride", "1.5")
    return killed_builds(folder / "records.jsonl", (*options, "--samples-per-shard", "2"), count, folder)


# ---- the report ----


def lines_of(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["memory"]:
        lines += ["| | few | many | at few, MB | at many, MB | more, MB | private at few, MB | at many, MB |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for one in report["memory"]:
        few, many = one["at few"], one["at many"]
        cells = [one["name"], f"{one['few']:,}", f"{one['many']:,}", f"{few['pss']:.0f}", f"{many['pss']:.0f}"]
        cells += [f"{many['pss'] - few['pss']:.0f}", f"{few['private']:.0f}", f"{many['private']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if "kills" in report:
        lines += ["", "kills: " + ", ".join(f"{key} {value}" for key, value in report["kills"].items()) + "."]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--few", type=int, default=1_000, help="segments of the small cases (default: %(default)s)")
    parser.add_argument("--many", type=int, default=100_000, help="segments of the large ones (default: %(default)s)")
    parser.add_argument("--refused", type=int, default=100_000, help="the same, refused (default: %(default)s)")
    parser.add_argument("--few-jpeg", type=int, default=1_000, help="the same of jpeg (default: %(default)s)")
    parser.add_argument("--many-jpeg", type=int, default=100_000, help="the same of jpeg (default: %(default)s)")
    parser.add_argument("--few-mb", type=int, default=20, help="megabytes of the small tar (default: %(default)s)")
    parser.add_argument("--many-mb", type=int, default=2_000, help="megabytes of the large one (default: %(default)s)")
    parser.add_argument("--only", default="", help="cases of memory whose name has this word")
    parser.add_argument("--kills", type=int, default=20, help="builds that are killed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for many_segments.json and many_segments.md")
    options = parser.parse_args()

    load, facts = os.getloadavg()[0], facts_of_the_machine(("av", "numpy", "pyarrow"))
    facts["versions"]["ffmpeg"] = encoder_version()
    report: dict[str, Any] = {"machine": facts, "memory": []}
    with tempfile.TemporaryDirectory() as scratch:
        report["memory"] = list(memory(options, Path(scratch))) if options.only != "none" else []
    if options.kills:
        with tempfile.TemporaryDirectory() as scratch:
            report["kills"] = kills(options.kills, Path(scratch))
    text = "\n".join([*lines_of(report), facts_line(facts, load), ""])
    console.print(text, markup=False)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "many_segments.json").write_text(json.dumps(report, indent=1))
        (options.out / "many_segments.md").write_text(text)
    wrong = [one["name"] for one in report["memory"] if one["at many"]["pss"] - one["at few"]["pss"] > LIMIT_MB]
    if not report.get("kills", {"same": True})["same"]:
        wrong.append("killed builds differ")
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
