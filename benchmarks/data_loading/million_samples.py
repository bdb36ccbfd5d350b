"""Measure the time to open a large set, to get its first batch and to resume, and the cost of ordering 10**8 samples.

    python -m benchmarks.data_loading.million_samples [--samples 1000000] [--shards 2000] [--frames 300]
        [--rounds 5] [--against CHECKOUT] [--out PATH]

The set is synthetic, but as large as a real one where size matters: every shard has its own index on the disk with all
its units (about 3 GB in all), and its samples share the pictures of one real member. Each measurement is a fresh
process. Before it, the indices are dropped from the page cache as far as the system allows ("cold"), or they were read
by the measurement before ("warm"). With --against, another checkout of rhofast makes a set of the same samples in its
own format and takes turns, and the ratios within a round are reported, too. The results are written to PATH.json and
PATH.md.
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
from itertools import product
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
from rhofast.data.format.index import IndexRow
from rhofast.data.format.index_writer import write_index
from rhofast.data.sampling.shuffle import Order

MODULE = "benchmarks.data_loading.million_samples"
OURS, AGAINST = "ours", "against"
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


def take_turns(sides: dict[str, Path], roots: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Run all measurements on all sides, in an order that reverses from round to round.

    Args:
        sides: For each name of a side, its checkout of rhofast.
        roots: For each name of a side, its set.
        rounds: Number of rounds.
    """
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        parts = {side: Path(temporary) / side for side in sides}
        for side, root in roots.items():
            make_part(parts[side], root, json.loads((root / "dataset.json").read_text()))
        for number in range(rounds):
            for state, name in product(("cold", "warm"), MEASUREMENTS):
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    if state == "cold":
                        drop_from_cache(roots[side])
                    folder = parts[side] if name == SMALL else roots[side]
                    said = run_in(sides[side], "--folder", str(folder), "--measure", name)
                    results.append(
                        {"round": number, "side": side, "state": state, "measurement": name, **json.loads(said)}
                    )
    return results


def run_in(checkout: Path, *arguments: str) -> str:
    """Run this benchmark as a checkout of rhofast has it; return what it prints."""
    command = [sys.executable, "-m", MODULE, *arguments]
    given = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout, env=given).stdout


def chosen(results: list[dict[str, Any]], side: str, state: str, name: str) -> list[dict[str, Any]]:
    """Return the results of one row, one per round."""
    return [one for one in results if (one["side"], one["state"], one["measurement"]) == (side, state, name)]


def table(results: list[dict[str, Any]], side: str) -> list[str]:
    """Return the table of one side."""
    lines = [
        "| indices | measurement | time to open | RSS after opening | time to first batch | lowest to highest |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for state, name in product(("cold", "warm"), MEASUREMENTS):
        rows = chosen(results, side, state, name)
        open_s, rss, first_s = (
            statistics.median(one[key] for one in rows) for key in ("open_s", "rss_open", "first_s")
        )
        firsts = sorted(one["first_s"] for one in rows)
        lines.append(
            f"| {state} | {name} | {open_s:.2f} s | {rss / 1e6:.0f} MB | {first_s:.2f} s | "
            f"{firsts[0]:.2f} to {firsts[-1]:.2f} |"
        )
    return lines


def ratios(results: list[dict[str, Any]]) -> list[str]:
    """Return the table of how many times as long the other side takes, as medians of the ratios within a round."""
    lines = ["| indices | measurement | to open | to first batch | lowest to highest |", "|---|---|--:|--:|--:|"]
    for state, name in product(("cold", "warm"), MEASUREMENTS):
        pairs = list(zip(chosen(results, AGAINST, state, name), chosen(results, OURS, state, name), strict=True))
        opened, first = (sorted(other[key] / ours[key] for other, ours in pairs) for key in ("open_s", "first_s"))
        lines.append(
            f"| {state} | {name} | {statistics.median(opened):.2f} x | {statistics.median(first):.2f} x | "
            f"{first[0]:.2f} to {first[-1]:.2f} |"
        )
    return lines


def markdown(facts: dict[str, Any], results: list[dict[str, Any]], order: list[dict[str, Any]]) -> str:
    """Return the report."""
    ours, rounds = facts[OURS], 1 + max(one["round"] for one in results)
    given = (
        f"{ours['samples']:,} samples in {ours['shards']:,} shards, indices of {ours['index_bytes'] / 1e9:.1f} GB "
        f"(commit {ours['commit']}); batches of {BATCH} videos, rho = 2, 8x8 frames, 224 pixels, on the CPU. "
        f"Medians over {rounds} processes."
    )
    lines = ["# Large sets", "", given, "", *table(results, OURS)]
    if AGAINST in facts:
        other = facts[AGAINST]
        size = f"indices of {other['index_bytes'] / 1e9:.1f} GB"
        lines += ["", f"Another checkout (commit {other['commit']}), {size}:", "", *table(results, AGAINST)]
        lines += ["", "How many times as long that one takes (medians of ratios within a round):", "", *ratios(results)]
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


def make_its_set(checkout: Path, root: Path, sizes: dict[str, int]) -> dict[str, int]:
    """Let a checkout make its set, unless it is there; return the number of samples and shards, and index bytes."""
    if not (root / "dataset.json").is_file():
        code = f"from pathlib import Path; from {MODULE} import make_set; make_set(Path({str(root)!r}), **{sizes})"
        given = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout, env=given)
    shards = json.loads((root / "dataset.json").read_text())["shards"]
    return {
        "samples": sum(shard["samples"] for shard in shards),
        "shards": len(shards),
        "index_bytes": sum(shard["index_bytes"] for shard in shards),
    }


def commit_of(checkout: Path) -> str:
    """Return the short name of a checkout's commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the set (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=2_000, help="shards of the set (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=300, help="frames per sample (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="folder of the set, which is made if it is missing (default: a temporary folder)"
    )
    parser.add_argument("--against", type=Path, help="folder of another checkout of rhofast, which takes turns")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure)))
        return
    facts = {**facts_of_the_machine(PACKAGES), "load": os.getloadavg()[0]}
    sides = {OURS: Path(__file__).resolve().parents[2]}
    if arguments.against:
        sides[AGAINST] = arguments.against.resolve()
    order = order_costs()
    with tempfile.TemporaryDirectory() as temporary:
        roots = {side: Path(temporary) / side for side in sides}
        if arguments.folder:
            roots[OURS] = arguments.folder.resolve()
        wanted = {"samples": arguments.samples, "shards": arguments.shards, "frames": arguments.frames}
        for side, checkout in sides.items():
            facts[side] = {"commit": commit_of(checkout), **make_its_set(checkout, roots[side], wanted)}
        results = take_turns(sides, roots, arguments.rounds)
    text = markdown(facts, results, order)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text)
        values = {"facts": facts, "results": results, "order": order}
        arguments.out.with_suffix(".json").write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
