"""Measure the time to open a large set, to get its first batch and to resume, and the cost of ordering 10**8 samples.

    python -m benchmarks.data_loading.million_samples [--samples 1000000] [--shards 2000] [--frames 300]
        [--rounds 5] [--out PATH]

The set is synthetic, but as large as a real one where size matters: every shard has its own index on the disk with all
its units (about 3 GB in all), and its samples share the pictures of one real member. Each measurement is a fresh
process. Before it, the indices are dropped from the page cache as far as the system allows ("cold"), or they were read
by the measurement before ("warm"). The results are written to PATH.json and PATH.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset_json import DatasetInfo, ShardInfo
from rhofast.data.format.index import IndexRow, write_index
from rhofast.data.sampling.shuffle import Order

PACKAGES = ("torch", "numpy", "pyarrow", "nvidia-dali-cuda130")
WIDTH, HEIGHT, FPS = 352, 256, 30
BATCH = 64
SMALL = "first batch, a hundredth of the set"
MEASUREMENTS = {
    SMALL: (0, 0.0, None),
    "first batch": (0, 0.0, None),
    "resumed in epoch 3": (3, 0.5, None),
    "resumed, in blocks of 16": (3, 0.5, 16),
}


def member(frames: int) -> bytes:
    """Return an MJPEG MP4 of moving clouds with grain, with about as many bytes per picture as a real video."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (HEIGHT // 16 + 20, WIDTH // 16 + 20, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((WIDTH + 320, HEIGHT + 320), Image.Resampling.BICUBIC), dtype=np.int16)
    field = np.clip(clouds + rng.integers(-6, 7, clouds.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    sink = BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(FPS), options={"qmin": "3", "qmax": "3"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number in range(frames):
            at = number % 320
            pixels = np.ascontiguousarray(field[at : at + HEIGHT, at : at + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def make_set(root: Path, *, samples: int, shards: int, frames: int) -> None:
    """Make a set of `shards` tars, which are hard links to one file, and as many separate indices."""
    root.mkdir(parents=True)
    content, note = member(frames), b"{}"
    indexed = JpegCodec().index_member(BytesIO(content))
    row = IndexRow(
        key="sample",
        label=0,
        source_digest=bytes(16),
        offset=3 * BLOCKSIZE,
        size=len(content),
        json_size=len(note),
        json_crc=zlib.crc32(note),
        num_frames=indexed.num_frames,
        fps=float(indexed.fps),
        width=WIDTH,
        height=HEIGHT,
        units=indexed.units,
    )
    first = root / "shard-000000"
    content = bytes(BLOCKSIZE) + note.ljust(BLOCKSIZE, b"\0") + bytes(BLOCKSIZE) + content  # headers are not read
    first.with_suffix(".tar").write_bytes(content)
    each = samples // shards
    digest = write_index(first.with_suffix(".arrow"), [row] * each, {})
    known = ShardInfo(
        name="shard-000000",
        samples=each,
        frames=each * frames,
        seconds=each * frames / FPS,
        bytes=len(content),
        index_bytes=first.with_suffix(".arrow").stat().st_size,
        tar_sha256=hashlib.sha256(content).hexdigest(),
        index_sha256=digest,
    )
    names = [f"shard-{number:06d}" for number in range(shards)]
    for name in names[1:]:
        os.link(first.with_suffix(".tar"), root / f"{name}.tar")
        shutil.copyfile(first.with_suffix(".arrow"), root / f"{name}.arrow")
    info = DatasetInfo(
        name="scale",
        split="train",
        codecs=[codec_settings(JpegCodec())],
        classes=["all"],
        shards=[known.model_copy(update={"name": name}) for name in names],
        refused={},
        build="",
    )
    (root / "dataset.json").write_text(json.dumps(info.model_dump()))
    os.sync()


def make_part(part: Path, root: Path, info: dict[str, Any]) -> None:
    """Make a set of the first hundredth of the shards, from the same files."""
    part.mkdir()
    shards = info["shards"][: max(1, len(info["shards"]) // 100)]
    for shard in shards:
        for suffix in (".tar", ".arrow"):
            (part / (shard["name"] + suffix)).symlink_to(root.resolve() / (shard["name"] + suffix))
    (part / "dataset.json").write_text(json.dumps({**info, "shards": shards}))


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def measure(root: Path, name: str) -> dict[str, float]:
    """Return the seconds to open the set and from there to the first batch, without imports."""
    from rhofast.data.sources import open_training

    epoch, part, block_shards = MEASUREMENTS[name]
    data = DataConfig(train=str(root), block_shards=block_shards, decode_threads=os.cpu_count() or 1)
    before, began = resident(), time.perf_counter()
    sources = open_training(data)
    result = {"open_s": time.perf_counter() - began, "rss_open": resident(), "rss_opening": resident() - before}

    from rhofast.data.loader.train_loader import TrainLoader
    from rhofast.data.sampling.mixture import Mixture

    samples = len(sources.sets[0])
    began = time.perf_counter()
    options: dict[str, Any] = {"clips": ClipConfig(), "augment": AugmentConfig(), "batch_size": BATCH, "seed": 0}
    with TrainLoader(Mixture(sources.sets, sources.weights), data=data, **options) as loader:
        position = int(part * samples) // BATCH * BATCH
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": position})
        next(loader)
        result["first_s"] = time.perf_counter() - began
    return result


def order_costs() -> list[dict[str, Any]]:
    """Return milliseconds per batch of 512 for an order of 10**8 samples in 10**5 shards: first batch, and others."""
    results = []
    for block_shards in (None, 16, 256):
        before = resident()
        order = Order(np.arange(0, 10**8 + 1, 1000), seed=0, block_shards=block_shards)
        firsts, others = [], []
        for epoch in range(5):
            for batch in range(50):
                began = time.perf_counter()
                order.at(epoch, np.arange(512) + 1_999_872 * batch)
                (others if batch else firsts).append(1e3 * (time.perf_counter() - began))
        results.append(
            {
                "block_shards": block_shards,
                "first_ms": statistics.median(firsts),
                "batch_ms": statistics.median(others),
                "mb": (resident() - before) / 1e6,
            }
        )
    return results


def drop_from_cache(root: Path) -> None:
    """Ask the system to drop the indices from the page cache."""
    for path in root.glob("*.arrow"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def markdown(facts: dict[str, Any], given: str, results: list[dict[str, Any]], order: list[dict[str, Any]]) -> str:
    lines = [
        "# Large sets",
        "",
        given,
        "",
        "| indices | measurement | time to open | RSS after opening | time to first batch | lowest to highest |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for state in ("cold", "warm"):
        for name in MEASUREMENTS:
            chosen = [one for one in results if (one["state"], one["measurement"]) == (state, name)]
            value = {key: statistics.median(one[key] for one in chosen) for key in chosen[0] if key[0] in "ofr"}
            firsts = sorted(one["first_s"] for one in chosen)
            lines.append(
                f"| {state} | {name} | {value['open_s']:.2f} s | {value['rss_open'] / 1e6:.0f} MB | "
                f"{value['first_s']:.2f} s | {firsts[0]:.2f} to {firsts[-1]:.2f} |"
            )
    lines += [
        "",
        "Order of 10^8 samples in 10^5 shards, batches of 512:",
        "",
        "| order | first batch of an epoch | other batches | memory |",
        "|---|--:|--:|--:|",
    ]
    for one in order:
        name = "of the whole set" if one["block_shards"] is None else f"in blocks of {one['block_shards']} shards"
        lines.append(f"| {name} | {one['first_ms']:.2f} ms | {one['batch_ms']:.2f} ms | {one['mb']:.1f} MB |")
    return "\n".join([*lines, "", facts_line(facts, facts["load"]), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the set (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=2_000, help="shards of the set (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=300, help="frames per sample (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="folder of the set, which is made if it is missing (default: a temporary folder)"
    )
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure)))
        return
    facts = {**facts_of_the_machine(PACKAGES), "load": os.getloadavg()[0]}
    order = order_costs()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary) / "set"
        if not (root / "dataset.json").is_file():
            make_set(root, samples=arguments.samples, shards=arguments.shards, frames=arguments.frames)
        info = json.loads((root / "dataset.json").read_text())
        small = Path(temporary) / "small"
        make_part(small, root, info)
        results = []
        for _ in range(arguments.rounds):
            for state in ("cold", "warm"):
                for name in MEASUREMENTS:
                    if state == "cold":
                        drop_from_cache(root)
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.data_loading.million_samples",
                        "--folder",
                        str(small if name == SMALL else root),
                        "--measure",
                        name,
                    ]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    results.append({"state": state, "measurement": name, **json.loads(done.stdout)})
    samples, size = (sum(shard[key] for shard in info["shards"]) for key in ("samples", "index_bytes"))
    given = (
        f"{samples:,} samples in {len(info['shards']):,} shards, indices of {size / 1e9:.1f} GB; batches of {BATCH} "
        f"videos, rho = 2, 8x8"
        f" frames, 224 pixels, on the CPU. Medians over {arguments.rounds} processes."
    )
    text = markdown(facts, given, results, order)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text)
        values = {"facts": facts, "results": results, "order": order}
        arguments.out.with_suffix(".json").write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
