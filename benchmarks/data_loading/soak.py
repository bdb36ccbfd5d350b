"""Measure memory and check behavior of the training loader over thousands of batches of damaged data.

    python -m benchmarks.data_loading.soak [--batches 2000] [--out benchmarks/results/NAME]

Shards of generated videos are damaged on disk (flipped bits in some samples, one shard deleted). Some pictures have a
correct checksum but cannot be decoded, some reads are slow, and some fail like an unreadable sector. The loader must
return every batch complete and finite, report what it replaced, and use no more memory at the end than after its
warm-up. The exit code is 1 if resident memory grew by more than 3 % or a batch was wrong.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_records
from rhofast.ingest.transcode import TranscodeSettings
from rhofast.training.environment import resident_bytes

PACKAGES = ("torch", "numpy", "nvidia-dali-cuda130")
CODECS = {"jpeg": JpegCodec(), "h264": H264Codec(gop=8)}
LIMIT = 0.03
VIDEOS, PER_SHARD, SIZE = 96, 4, 64
FLIPPED, REFUSED = 3, 2  # samples
SLOW, UNREADABLE = 0.01, 0.005  # shares of all reads
SLOW_S = 0.05
COLLECT = 200  # batches between garbage collections, as in the training loop


def make_shards(folder: Path, codec: str) -> ShardSet:
    """Make shards of generated videos."""
    settings = BuildSettings(
        name="soak",
        split="train",
        codec=CODECS[codec],
        transcode=TranscodeSettings(short_side=SIZE),
        samples_per_shard=PER_SHARD,
    )
    with Listing(find_records(folder / "videos", "motions", [f"videos={VIDEOS}", "frames=48"])) as listing:
        build_shards(listing, folder / "shards", settings, LocalProcesses(os.cpu_count() or 1))
    return open_folder(folder / "shards")


def damage(shards: ShardSet, rng: np.random.Generator) -> list[int]:
    """Flip a bit in every unit of some samples and delete the last shard; return the samples with flipped bits."""
    flipped = rng.choice(len(shards) - PER_SHARD, FLIPPED, replace=False).tolist()
    for sample in flipped:
        row, (shard, _) = shards.row(sample), shards.locate(sample)
        with (shards.root / shards.info.shards[shard].tar).open("r+b") as tar:
            for offset, size in zip(row.units.offset.tolist(), row.units.size.tolist(), strict=True):
                tar.seek(row.offset + offset + size // 2)
                (byte,) = tar.read(1)
                tar.seek(-1, os.SEEK_CUR)
                tar.write(bytes([byte ^ 1]))
    (shards.root / shards.info.shards[-1].tar).unlink()
    return flipped


def inject_faults(reads: Counter[str], refused: set[int], rng: np.random.Generator) -> None:
    """Make some reads slow, some fail, and cut the pictures of the `refused` samples in half after the checksum."""
    read, pread, lock = Reader.read, os.pread, threading.Lock()

    def draw() -> float:
        with lock:
            return float(rng.random())

    def slow_read(self: Reader, sample: int, *arguments: Any) -> Any:
        if draw() < SLOW:
            reads["slow"] += 1
            time.sleep(SLOW_S)
        found = read(self, sample, *arguments)
        if sample in refused and found.pictures:
            reads["undecodable"] += 1
            return replace(
                found, pictures={frame: picture[: len(picture) // 2] for frame, picture in found.pictures.items()}
            )
        return found

    def failing_pread(descriptor: int, size: int, offset: int) -> bytes:
        if draw() < UNREADABLE:
            reads["unreadable"] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    Reader.read = slow_read  # type: ignore[method-assign]
    os.pread = failing_pread


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Load the batches and return the report."""
    rng = np.random.default_rng(0)
    shards = make_shards(folder, options.codec)
    flipped = damage(shards, rng)
    whole = [sample for sample in range(len(shards) - PER_SHARD) if sample not in flipped]
    refused = set(rng.choice(whole, REFUSED, replace=False).tolist())
    reads: Counter[str] = Counter()
    inject_faults(reads, refused, rng)
    clips = ClipConfig(num_frames=4, frame_stride=4, fps=12)
    loader = TrainLoader(
        shards,
        clips=clips,
        augment=AugmentConfig(size=48),
        data=DataConfig(max_bad=1.0),
        batch_size=options.batch_size,
        seed=0,
        bad_log=folder / "bad.jsonl",
    )
    expected = (options.batch_size, clips.num_clips, 3, clips.num_frames, 48, 48)
    bad_set = {*flipped, *refused, *range(len(shards) - PER_SHARD, len(shards))} if options.codec == "jpeg" else set()
    faults: list[str] = []
    memory: list[tuple[int, int]] = []
    threads = threading.active_count()
    gc.disable()
    with loader:
        for number in range(options.warm_up + options.batches):
            views = next(loader)
            if tuple(views.pixels.shape) != expected or not bool(views.pixels.isfinite().all()):
                faults.append(f"batch {number} has a wrong shape ({list(views.pixels.shape)}) or is not finite")
            if stray := bad_set & set(views.sample.tolist()):
                faults.append(f"batch {number} contains samples that cannot be read: {sorted(stray)}")
            if number % COLLECT == 0:
                gc.collect()
            if number % 10 == 0:
                memory.append((number, resident_bytes()))
    stats = loader.stats  # includes batches that were read ahead, whose bad samples are logged by now
    if threading.active_count() > threads:
        faults.append(f"{threading.active_count() - threads} threads were not ended")
    logged = sum(1 for _ in (folder / "bad.jsonl").open())
    if logged != stats.bad:
        faults.append(f"{stats.bad} bad samples were counted, but {logged} logged")
    after = [size for number, size in memory if number >= options.warm_up]
    edge = max(1, len(after) // 10)
    begin, end = statistics.median(after[:edge]), statistics.median(after[-edge:])
    return {
        "codec": options.codec,
        "batches": options.batches,
        "warm_up": options.warm_up,
        "seconds": stats.seconds,
        "memory": memory,
        "begin_bytes": begin,
        "end_bytes": end,
        "growth": end / begin - 1,
        "bytes_per_batch": float(np.polyfit(*zip(*memory[-len(after) :], strict=True), 1)[0]),
        "limit": LIMIT,
        "samples": options.batch_size * (options.warm_up + options.batches),
        "replaced": stats.bad,
        "injected": dict(reads),
        "faults": faults,
        "passed": end / begin - 1 <= LIMIT and not faults,
    }


def draw(report: dict[str, Any], target: Path) -> None:
    """Plot resident memory over batches."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*[(number, size / 2**20) for number, size in report["memory"]], strict=True), color="#2563a8")
    axes.axvline(report["warm_up"], color="#8a8f98", linestyle=":", label="end of the warm-up")
    level = report["begin_bytes"] / 2**20
    axes.axhspan(level, level * (1 + report["limit"]), color="#d97706", alpha=0.2, label=f"+{report['limit']:.0%}")
    axes.set_ylim(0, 1.15 * max(size for _, size in report["memory"]) / 2**20)
    axes.set_xlabel("batch")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(f"{report['codec']}: {report['growth']:+.2%} over {report['batches']:,} batches", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(target, dpi=150)


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    injected = ", ".join(f"{count:,} {name}" for name, count in sorted(report["injected"].items())) or "none"
    lines = [
        "| codec | batches | resident memory | growth | slope | replaced samples | passed |",
        "|---|--:|--:|--:|--:|--:|---|",
        f"| {report['codec']} | {report['batches']:,} | {report['begin_bytes'] / 2**20:.1f} to "
        f"{report['end_bytes'] / 2**20:.1f} MiB | {report['growth']:+.2%} | "
        f"{report['bytes_per_batch'] / 1000:+.1f} kB per batch | {report['replaced']:,} of {report['samples']:,} | "
        f"{'yes' if report['passed'] else 'NO'} |",
        "",
        f"Faults: {FLIPPED} of {VIDEOS} samples with flipped bits, {PER_SHARD} in a deleted shard, and "
        f"these reads: {injected}. Warm-up {report['warm_up']:,} batches; {report['seconds']:.0f} s in all.",
        *(f"\nFAULT: {fault}" for fault in report["faults"][:10]),
        "",
        facts_line(report["machine"], report["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--codec", choices=tuple(CODECS), default="jpeg", help="stored codec (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=2000, help="measured batches (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=300, help="batches before them (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="videos per batch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write PATH.json, PATH.md and PATH.png", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"machine": facts_of_the_machine(PACKAGES), "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        report = {**facts, **soak(options, Path(folder))}
    print(as_markdown(report))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_name(options.out.name + ".json").write_text(json.dumps(report) + "\n")
        options.out.with_name(options.out.name + ".md").write_text(as_markdown(report))
        draw(report, options.out.with_name(options.out.name + ".png"))
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
