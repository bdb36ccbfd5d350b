"""Measure what the host spends on a batch up to the device's input: locate, plan, read, check, feed.

    python -m benchmarks.data_loading.host_cost VIDEO_OR_FOLDER... [--out benchmarks/results]

Nothing is decoded, so no GPU is needed: JPEG files are fed as the graph of a GPU takes them, and H.264 streams are
trimmed and fed as NVDEC takes them. Everything runs in one thread, whose CPU time is measured, so a busy machine
changes little. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from zlib_ng.zlib_ng import crc32

from benchmarks.gpu.scale import FULL
from benchmarks.gpu.sets import SETS, build_set, repeat
from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.decode.dali import import_dali
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.batch_planner import TrainingPlanner
from rhofast.data.sampling.augment import AugmentPlan
from rhofast.data.sampling.clips import ClipPlan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Position, Sample

BATCH, CLIPS, FRAMES, SIZE = 64, 2, 8, 224
NVDEC = VideoLimits(engines=7, min_width=48, min_height=16, max_width=8192, max_height=8192, max_blocks=1 << 20)
PHASES = ("locate", "plan", "read", "feed")
ROWS = (*PHASES, "together", "of read: checksums", "of read: headers")
BAR_MS = 0.20

console = Console(width=120)


class Clock:
    """CPU seconds of this thread, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the CPU time within this context to a phase."""
        began = time.thread_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - began


class Feeder:
    """The inputs of a GPU's graphs, in a graph that passes them through."""

    def __init__(self, augment: AugmentConfig, *, is_stream: bool) -> None:
        """Build what computes the arguments of the graph; the graph itself is built with the first batch."""
        self._is_stream = is_stream
        pictures = BATCH * CLIPS * FRAMES
        self._pipeline = DecodePipeline(augment, max_pictures=pictures, color=True, blur=True, threads=1)
        self._graphs: list[Any] = []

    def feed(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan, clock: Clock) -> None:
        """Feed a batch as training does, then take it out of the graphs, which nobody measures."""
        if not self._graphs:
            files = ["encoded", "frames"] if self._is_stream else ["pictures"]
            self._graphs = [_inputs(files, no_copy=True), _inputs(list(self._pipeline.arguments(augment)))]
        graph, arguments = self._graphs
        with clock.phase("feed"):
            if self._is_stream:
                streams = [sample.stream for sample in samples if sample.stream is not None]
                graph.feed_input("encoded", [stream.content for stream in streams])
                graph.feed_input("frames", [stream.wanted for stream in streams])
            else:
                pairs = zip(samples, clips.frames.reshape(len(samples), -1).tolist(), strict=True)
                files = [sample.pictures[frame] for sample, numbers in pairs for frame in numbers]
                graph.feed_input("pictures", files)
            for name, values in self._pipeline.arguments(augment).items():
                flat = values.reshape(BATCH * CLIPS, *values.shape[2:])
                arguments.feed_input(name, np.repeat(flat, FRAMES, axis=0))
        for one in self._graphs:
            one.run()


def _inputs(names: list[str], *, no_copy: bool = False) -> Any:
    """Return a graph that passes its inputs through."""
    fn, pipeline_def, _ = import_dali()

    @pipeline_def(batch_size=BATCH * CLIPS * FRAMES, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        return tuple(fn.external_source(name=name, no_copy=no_copy) for name in names)

    built = graph()
    built.build()
    return built


def measure(folder: Path, batches: int) -> dict[str, float]:
    """Measure batches of one set.

    Args:
        folder: The set.
        batches: Number of batches. Those of one epoch are taken first and not counted: they open files.

    Returns:
        CPU milliseconds per clip, by the names of ROWS.
    """
    data = Mixture([open_folder(folder)])
    shards = data.sets[0]
    reader = Reader(shards, {"h264": NVDEC})
    augment, clip_config = AugmentConfig(size=SIZE), ClipConfig(num_clips=CLIPS, num_frames=FRAMES, frame_stride=8)
    order = data.order(seed=1, block_shards=None, lanes=1, fixed_lanes=False)
    planner = TrainingPlanner(
        order,
        clip_config,
        augment,
        batch_size=BATCH,
        share=slice(0, BATCH),
        seed=1,
        duplicate_single_clip=True,
    )
    feeder = Feeder(augment, is_stream=not reader.codecs[0].pictures)
    positions = planner.positions(Position(epoch=0, position=0))
    clock = Clock()
    opening = -(-len(data) // BATCH)
    for number in range(opening + batches):
        if number == opening:
            clock = Clock()
        with clock.phase("locate"):
            selection = planner.select(next(positions))
            rows = [reader.locate(data.locate(sample)[1]) for sample in selection.samples.tolist()]
        with clock.phase("plan"):
            clips, plan = planner.plan(rows, selection.samples, selection.epochs, selection.earlier)
        with clock.phase("read"):
            samples = [
                reader.read(data.locate(sample)[1], frames, row)
                for sample, frames, row in zip(selection.samples.tolist(), clips.needed, rows, strict=True)
            ]
        feeder.feed(samples, clips, plan, clock)
        pieces = [
            (piece, row)
            for sample, row in zip(samples, rows, strict=True)
            for piece in ([sample.stream.content] if sample.stream is not None else sample.pictures.values())
        ]
        with clock.phase("of read: checksums"):
            for piece, _ in pieces:
                crc32(piece)
        with clock.phase("of read: headers"):
            for piece, row in pieces:
                if reader.codecs[row.codec].pictures:
                    reader.codecs[row.codec].find_fault(0, memoryview(piece), row.width, row.height)
    clock.seconds["together"] = sum(clock.seconds[name] for name in PHASES)
    return {name: 1000 * clock.seconds[name] / (batches * BATCH * CLIPS) for name in ROWS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--out", type=Path, help="folder for host_cost.json and host_cost.md")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per codec")
    parser.add_argument("--batches", type=int, default=20, help="batches per measurement")
    options = parser.parse_args()
    sources = find_videos(options.videos)[: FULL.videos]
    with tempfile.TemporaryDirectory() as scratch:
        for name, codec in SETS.items():
            build_set(name, codec, sources, Path(scratch), FULL, samples_per_shard=6)
            repeat(Path(scratch) / name, Path(scratch) / f"{name}-repeated", FULL.samples)
        rounds = [
            {name: measure(Path(scratch) / f"{name}-repeated", options.batches) for name in SETS}
            for _ in range(options.rounds)
        ]
    facts = facts_of_the_machine(("nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy"))
    report(rounds, facts, options.out)


def report(rounds: list[dict[str, dict[str, float]]], facts: dict[str, Any], out: Path | None) -> None:
    """Print the table, and write it with every measurement to the folder `out` if there is one."""
    median = {codec: {row: statistics.median(one[codec][row] for one in rounds) for row in ROWS} for codec in rounds[0]}
    table = Table("CPU ms per clip, median of the rounds", *median)
    for row in ROWS:
        table.add_row(row, *(f"{median[codec][row]:.3f}" for codec in median))
    table.add_row("clips/s that one core can feed", *(f"{1000 / median[codec]['together']:,.0f}" for codec in median))
    console.print(table)
    for codec, values in median.items():
        met = "met" if values["together"] <= BAR_MS else "missed"
        console.print(f"{codec}: {values['together']:.3f} ms per clip; the bar of {BAR_MS:.2f} is {met}")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"| CPU ms per clip | {' | '.join(median)} |", f"|---|{'--:|' * len(median)}"]
    lines += [f"| {row} | {' | '.join(f'{median[codec][row]:.3f}' for codec in median)} |" for row in ROWS]
    speeds = " | ".join(f"{1000 / median[codec]['together']:,.0f}" for codec in median)
    lines += [f"| clips/s that one core can feed | {speeds} |", "", facts_line(facts)]
    (out / "host_cost.md").write_text("\n".join(lines) + "\n")
    (out / "host_cost.json").write_text(json.dumps({"facts": facts, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
