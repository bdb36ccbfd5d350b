"""rhofast's loader against DataLoaders over torchcodec, decord and PyAV, on the same videos, in one go.

    python -m benchmarks.data_loading.loader_vs_peers VIDEO_OR_FOLDER... [--out benchmarks/results]

All contenders give rho augmented clips of a video as float32 [B, P, C, T, H, W] on the CPU. The peers decode the videos
themselves; rhofast reads shards of them, made beforehand (the time that takes is reported too). Everyone runs for a few
batches in turn, for several rounds, and only their ratios mean something: they all suffer alike from what else the
machine does. benchmarks/README.md says what is measured and what is not.
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
    """One turn of a contender."""

    seconds: float
    cpu_seconds: float
    clips: int


@dataclass(kw_only=True)
class Contender:
    """name; next_batch: gives [B, P, C, T, H, W]; close: ends its threads; turns: what was measured so far."""

    name: str
    next_batch: Callable[[], torch.Tensor]
    close: Callable[[], None]
    turns: list[Measured] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        return [turn.clips / turn.seconds for turn in self.turns]

    @property
    def cpu(self) -> list[float]:
        return [turn.cpu_seconds / turn.clips for turn in self.turns]

    def take_turn(self, warm_up: int, batches: int) -> None:
        """Time `batches` batches, after what was fetched ahead while others had their turn has been used up."""
        for _ in range(warm_up):
            self.next_batch()
        began, cpu, clips = time.perf_counter(), cpu_seconds(), 0
        for _ in range(batches):
            pixels = self.next_batch()
            clips += pixels.shape[0] * pixels.shape[1]
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        self.turns.append(Measured(seconds=seconds, cpu_seconds=cpu, clips=clips))
        settle()


def cpu_seconds() -> float:
    """User and system time so far, of this process and of the workers it started (Linux)."""
    total = 0.0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return total


def settle() -> None:
    """Wait until everyone has fetched ahead what they will, so that no one works in another's turn."""
    busy = True
    while busy:
        before = cpu_seconds()
        time.sleep(0.5)
        busy = cpu_seconds() - before > 0.02


def make_shards(videos: list[Path], out: Path, entries: int, workers: int) -> ShardSet:
    """The videos, repeated to `entries` samples, as shards."""
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
    """The same graph alone: bytes in memory, plans made. What rhofast's own Python costs is the difference."""
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
        batches = None  # its workers end with it

    return Contender(name=name, next_batch=next_batch, close=close)


def available_peers() -> dict[str, Decode]:
    """The decoders that can be imported here; the others are named, with the reason."""
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
    """Medians over rounds; the ratio is rhofast's speed over the contender's, round by round."""
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
            "turns": [asdict(turn) for turn in one.turns],
        }
        for one in contenders
    ]


COLUMNS = ("contender", "clips/s, median", "lowest to highest", "CPU s/clip", "rhofast is faster", "and saves CPU")


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
    parser.add_argument("--entries", type=int, default=64, help="the files are repeated to so many data set entries")
    parser.add_argument("--workers", type=int, default=2, help="workers of a peer; decode threads of rhofast")
    parser.add_argument("--batch-size", type=int, default=8, help="videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="timed batches of a turn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, help="folder for loader_vs_peers.json and loader_vs_peers.md")
    options = parser.parse_args()

    videos = find_videos(options.videos)
    clips, augment = ClipConfig(), AugmentConfig(size=options.size)
    warm_up = 2 * options.workers + 2  # more than anyone holds ready
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
                raise SystemExit(f"{one.name} gives {pixels.dtype}{list(pixels.shape)}, not float32{list(expected)}")
        settle()
        for turn in range(options.rounds):
            with console.status(f"round {turn + 1} of {options.rounds}") as status:
                for place in range(len(contenders)):
                    one = contenders[(place + turn) % len(contenders)]
                    status.update(f"round {turn + 1} of {options.rounds}: {one.name}")
                    one.take_turn(warm_up, options.batches)
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
