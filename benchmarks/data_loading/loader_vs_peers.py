"""Compare rhofast's loader with PyTorch DataLoaders over torchcodec, decord and PyAV, on the same videos.

    python -m benchmarks.data_loading.loader_vs_peers VIDEO_OR_FOLDER... [--out benchmarks/results]

All contenders return rho augmented clips per video as float32 [B, P, C, T, H, W] on the CPU. The peers decode the
videos themselves. rhofast reads shards of them, which are made first; the time for that is reported too. The contenders
alternate, a few batches each, for several rounds. Only their ratios are meaningful, because other load on the machine
affects all of them alike. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data_loading.peers import (
    ClipDataset,
    Decode,
    JpegBytes,
    Source,
    decode_decord,
    decode_pyav,
    decode_torchcodec,
    peer_loader,
)
from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.batch_plan import training_plan
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.transcode import TranscodeSettings

PACKAGES = ("torch", "torchvision", "torchcodec", "decord", "av", "pillow", "numpy", "nvidia-dali-cuda130")
RHOFAST, FLOOR = "rhofast", "floor: DALI graph from memory"

console = Console(width=120)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement of a contender."""

    seconds: float
    cpu_seconds: float
    clips: int


@dataclass(kw_only=True)
class Contender:
    """A loader that is measured.

    Attributes:
        name: Its name in the table.
        next_batch: Returns the next batch, [B, P, C, T, H, W].
        close: Ends its threads.
        measurements: The measurements so far.
    """

    name: str
    next_batch: Callable[[], torch.Tensor]
    close: Callable[[], None]
    measurements: list[Measured] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Clips per second of each measurement."""
        return [each.clips / each.seconds for each in self.measurements]

    @property
    def cpu(self) -> list[float]:
        """CPU seconds per clip of each measurement."""
        return [each.cpu_seconds / each.clips for each in self.measurements]

    def measure(self, warm_up: int, batches: int) -> None:
        """Time `batches` batches, after `warm_up` batches that use up what was fetched ahead."""
        for _ in range(warm_up):
            self.next_batch()
        began, cpu, clips = time.perf_counter(), cpu_seconds(), 0
        for _ in range(batches):
            pixels = self.next_batch()
            clips += pixels.shape[0] * pixels.shape[1]
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        self.measurements.append(Measured(seconds=seconds, cpu_seconds=cpu, clips=clips))
        settle()


def cpu_seconds() -> float:
    """Return user and system time of this process and its worker processes so far (Linux only)."""
    total = 0.0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return total


def settle() -> None:
    """Wait until all contenders have filled their queues, so that none works while another is measured."""
    busy = True
    while busy:
        before = cpu_seconds()
        time.sleep(0.5)
        busy = cpu_seconds() - before > 0.02


def make_shards(videos: list[Path], out: Path, entries: int, workers: int) -> ShardSet:
    """Make shards of the videos, repeated to `entries` samples."""
    records = [
        VideoRecord(key=f"v{number:05d}", path=path.resolve())
        for number, path in zip(range(entries), itertools.cycle(videos), strict=False)
    ]
    settings = BuildSettings(
        name="bench", split="train", codec=JpegCodec(), transcode=TranscodeSettings(), samples_per_shard=16
    )
    with Listing(records) as listing:
        build_shards(listing, out, settings, LocalProcesses(workers))
    return open_folder(out)


def list_sources(shards: ShardSet, videos: list[Path]) -> list[Source]:
    """Return the data set entries of the peers: the same videos as in the shards."""
    rows = [shards.row(sample) for sample in range(len(shards))]
    return [
        Source(
            path=str(videos[int(row.key[1:]) % len(videos)].resolve()),
            root=str(shards.root),
            sample=sample,
            num_frames=row.num_frames,
            fps=row.fps,
            width=row.width,
            height=row.height,
        )
        for sample, row in enumerate(rows)
    ]


def rhofast_contender(
    shards: ShardSet, clips: ClipConfig, augment: AugmentConfig, batch_size: int, threads: int
) -> Contender:
    loader = TrainLoader(
        shards,
        clips=clips,
        augment=augment,
        data=DataConfig(decode_threads=threads),
        batch_size=batch_size,
        seed=0,
    )
    return Contender(name=RHOFAST, next_batch=lambda: next(loader).pixels, close=loader.close)


def floor_contender(
    shards: ShardSet, clips: ClipConfig, augment: AugmentConfig, batch_size: int, threads: int
) -> Contender:
    """Run the same DALI graph alone, with bytes and plans in memory; the difference is the cost of rhofast's Python."""
    reader, prepared = Reader(shards), []
    for first in range(0, len(shards) - batch_size + 1, batch_size):
        samples = np.arange(first, first + batch_size)
        rows = [shards.row(int(sample)) for sample in samples]
        plan = training_plan(rows, samples, clips, augment, seed=0, epoch=0)
        read = [reader.read(int(sample), frames) for sample, frames in zip(samples, plan[0].frames, strict=True)]
        prepared.append((read, *plan))
    pictures = batch_size * clips.num_clips * clips.num_frames
    pipeline = DecodePipeline(augment, max_pictures=pictures, color=True, blur=True, threads=threads)
    batches = itertools.cycle(prepared)
    return Contender(name=FLOOR, next_batch=lambda: pipeline.run(*next(batches)), close=reader.close)


def peer_contender(name: str, dataset: ClipDataset, batch_size: int, workers: int) -> Contender:
    batches: Iterator[torch.Tensor] | None = iter(peer_loader(dataset, batch_size=batch_size, workers=workers))

    def next_batch() -> torch.Tensor:
        assert batches is not None
        return next(batches)

    def close() -> None:
        nonlocal batches
        batches = None  # this ends its workers

    return Contender(name=name, next_batch=next_batch, close=close)


def available_peers() -> dict[str, Decode]:
    """Return the decoders that can be imported; print the others with the reason."""
    peers: dict[str, Decode] = {}
    for package, module, decode in (
        ("torchcodec", "torchcodec.decoders", decode_torchcodec),
        ("decord", "decord", decode_decord),
        ("PyAV", "av", decode_pyav),
    ):
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            reason = next(line for line in str(error).splitlines() if line.strip())
            console.print(f"[yellow]left out: {package}[/] {reason}")
            continue
        peers[f"{package} + torchvision v2"] = decode
    return {**peers, "PIL + torchvision v2 on the shards' JPEGs": JpegBytes()}


def summarize(contenders: list[Contender]) -> list[dict[str, Any]]:
    """Return medians over rounds; ratios are rhofast's speed divided by the contender's, per round."""
    ours = contenders[0]
    return [
        {
            "name": one.name,
            "clips_per_second": statistics.median(one.speeds),
            "lowest": min(one.speeds),
            "highest": max(one.speeds),
            "cpu_seconds_per_clip": statistics.median(one.cpu),
            "rhofast_is_faster": statistics.median(a / b for a, b in zip(ours.speeds, one.speeds, strict=True)),
            "rhofast_saves_cpu": statistics.median(b / a for a, b in zip(ours.cpu, one.cpu, strict=True)),
            "measurements": [asdict(each) for each in one.measurements],
        }
        for one in contenders
    ]


COLUMNS = (
    "contender",
    "clips/s, median",
    "lowest to highest",
    "CPU s/clip",
    "speed of rhofast",
    "CPU saved by rhofast",
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['clips_per_second']:.1f}",
        f"{row['lowest']:.1f} to {row['highest']:.1f}",
        f"{row['cpu_seconds_per_clip']:.4f}",
        f"{row['rhofast_is_faster']:.2f} x",
        f"{row['rhofast_saves_cpu']:.2f} x",
    )


def as_markdown(report: dict[str, Any]) -> str:
    data, machine = report["data"], report["machine"]
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(cells(row))} |" for row in report["results"]),
        "",
        f"rho = {report['clips']['num_clips']}, {report['clips']['num_frames']} frames at stride "
        f"{report['clips']['frame_stride']}, {report['augment']['size']} px, batches of {report['batch_size']} videos, "
        f"{report['workers']} workers or decode threads, {report['rounds']} rounds of {report['batches']} batches. "
        f"{data['entries']} entries from {', '.join(data['videos'])}; shards made in {data['ingest_seconds']:.0f} s, "
        f"{data['shard_bytes'] / data['video_bytes']:.1f} times the videos' bytes.",
        "",
        facts_line(machine, report["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument(
        "--entries", type=int, default=64, help="entries of the data set; the files are repeated (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="workers per peer, and decode threads of rhofast (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="videos per batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=6, help="timed batches per measurement (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels per side (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for loader_vs_peers.json and loader_vs_peers.md")
    options = parser.parse_args()

    videos = find_videos(options.videos)
    clips, augment = ClipConfig(), AugmentConfig(size=options.size)
    warm_up = 2 * options.workers + 2  # more batches than any contender holds ready
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        shards = make_shards(videos, Path(folder) / "shards", options.entries, options.workers)
        ingest_seconds = time.perf_counter() - began
        sources, load = list_sources(shards, videos), os.getloadavg()[0]
        contenders = [
            make(shards, clips, augment, options.batch_size, options.workers)
            for make in (rhofast_contender, floor_contender)
        ]
        contenders += [
            peer_contender(name, ClipDataset(sources, decode, clips, augment), options.batch_size, options.workers)
            for name, decode in available_peers().items()
        ]
        expected = (options.batch_size, clips.num_clips, 3, clips.num_frames, options.size, options.size)
        for one in contenders:
            pixels = one.next_batch()
            if pixels.shape != expected or pixels.dtype != torch.float32 or not pixels.isfinite().all():
                raise SystemExit(
                    f"{one.name} returns {pixels.dtype}{list(pixels.shape)}, expected float32{list(expected)}"
                )
        settle()
        for number in range(options.rounds):
            with console.status(f"round {number + 1} of {options.rounds}") as status:
                for place in range(len(contenders)):
                    one = contenders[(place + number) % len(contenders)]
                    status.update(f"round {number + 1} of {options.rounds}: {one.name}")
                    one.measure(warm_up, options.batches)
        for one in contenders:
            one.close()
        report = {
            "machine": facts_of_the_machine(PACKAGES),
            "load_average_before": load,
            "clips": clips.model_dump(),
            "augment": augment.model_dump(),
            "batch_size": options.batch_size,
            "workers": options.workers,
            "rounds": options.rounds,
            "batches": options.batches,
            "data": {
                "videos": [path.name for path in videos],
                "entries": len(shards),
                "ingest_seconds": ingest_seconds,
                "video_bytes": sum(Path(source.path).stat().st_size for source in sources),
                "shard_bytes": sum(shard.bytes for shard in shards.info.shards),
            },
            "results": summarize(contenders),
        }
    table = Table(*COLUMNS)
    for row in report["results"]:
        table.add_row(*cells(row))
    console.print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "loader_vs_peers.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "loader_vs_peers.md").write_text(as_markdown(report))


if __name__ == "__main__":
    main()
