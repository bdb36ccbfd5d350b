"""Measure what the faces of the loader cost: `rhofast.clips` in other trainers, and `rhofast.ClipDataset`.

    python -m benchmarks.data_loading.faces VIDEO_OR_FOLDER... [--out benchmarks/results]

A batch that is ready is taken from each loader in turn, and the CPU time of the thread that takes it is measured, so a
busy machine changes little. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

import rhofast
from benchmarks.gpu.scale import FULL
from benchmarks.gpu.sets import SETS, build_set
from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import Views

# A small batch, of which any overhead is a large part.
BATCH, CLIPS, FRAMES, STRIDE, SIZE = 4, 2, 8, 8, 112
READY_S = 2e-3  # a batch for which the consumer waited longer was not ready
BARE, READER = "TrainLoader, next()", "the loader's reader, stacked"
SHAPE = {"num_clips": CLIPS, "num_frames": FRAMES, "frame_stride": STRIDE}

console = Console(width=120)


def open_bare(shards: ShardSet) -> TrainLoader:
    return TrainLoader(
        shards,
        clips=ClipConfig(**SHAPE),
        augment=AugmentConfig(size=SIZE),
        data=DataConfig(),
        batch_size=BATCH,
        seed=0,
    )


def epochs(loop: Any) -> Iterator[Views]:
    return itertools.chain.from_iterable(itertools.repeat(loop))


def all_of_it(loader: TrainLoader) -> Iterator[Views]:
    """Everything that a trainer may do with a loader in a step."""
    for views in epochs(loader):
        dict(**views.to(loader.device))
        loader.state_dict()
        yield views


def faces() -> dict[str, Callable[[TrainLoader], Iterator[Views]]]:
    """Return by name what takes batches out of a loader; torchdata's only where it is installed."""
    found: dict[str, Callable[[TrainLoader], Iterator[Views]]] = {
        "rhofast.clips, for loop": epochs,
        "the same, to(device), **views, state_dict()": all_of_it,
        "DataLoader around it": lambda loader: epochs(DataLoader(loader, batch_size=None)),
    }
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        console.print("torchdata is not installed; StatefulDataLoader is left out")
    else:
        found["StatefulDataLoader around it"] = lambda loader: epochs(StatefulDataLoader(loader, batch_size=None))
    return found


def batch_seconds(shards: ShardSet, batches: int) -> float:
    """Return the least time that a batch can take here: CPU seconds of all threads, divided by the cores."""
    with open_bare(shards) as loader:
        next(loader)
        began = time.process_time()
        for _ in range(batches):
            next(loader)
        return (time.process_time() - began) / batches / (os.cpu_count() or 1)


def measure_loaders(shards: ShardSet, rounds: int) -> list[dict[str, float]]:
    """Return per round the CPU seconds of the taking thread, by contender; rounds that had to wait are left out."""
    opened = {"num_clips": CLIPS, "num_frames": FRAMES, "frame_stride": STRIDE, "size": SIZE, "batch_size": BATCH}
    measured: list[dict[str, float]] = []
    with ExitStack() as stack:
        bare = stack.enter_context(open_bare(shards))
        loaders = {BARE: bare}
        takers: dict[str, Iterator[Views]] = {BARE: iter(lambda: next(bare), None)}
        for name, face in faces().items():
            loaders[name] = stack.enter_context(rhofast.clips(shards.root, **opened))  # type: ignore[arg-type]
            takers[name] = face(loaders[name])
        names = list(takers)
        for number in range(-2, rounds):  # two rounds to start the threads and to fill the queues
            seconds, waited = {}, 0.0
            for place in range(len(names)):
                name = names[(number + place) % len(names)]
                before = loaders[name].stats.wait_s
                began = time.thread_time()
                next(takers[name])
                seconds[name] = time.thread_time() - began
                waited = max(waited, loaders[name].stats.wait_s - before)
            if number >= 0 and waited < READY_S:
                measured.append(seconds)
            wait_until_full(loaders.values())
    return measured


def wait_until_full(loaders: Iterable[TrainLoader]) -> None:
    """Wait until no loader's thread has work any more."""
    opened, busy = list(loaders), -1.0
    while busy != (now := sum(clock.busy for one in opened for clock in one.stats.stages.values())):
        busy = now
        time.sleep(0.2)


def measure_frames(root: Path, rounds: int) -> list[dict[str, float]]:
    """Return per round the CPU seconds per item, by contender: the same frames of the same samples."""
    dataset, shards = rhofast.ClipDataset(root), open_folder(root)
    reader = Reader(shards, decode_pictures=True)
    files = [os.open(root / shard.tar, os.O_RDONLY) for shard in shards.info.shards]

    def by_hand(sample: int, frames: list[int], *, check: bool) -> torch.Tensor:
        row, pictures = shards.row(sample), []
        file = files[shards.locate(sample)[0]]
        for frame in frames:
            piece = os.pread(file, int(row.units.size[frame]), row.offset + int(row.units.offset[frame]))
            if check and zlib.crc32(piece) != row.units.crc[frame]:
                raise SystemExit(f"sample {sample}, frame {frame}: checksum mismatch")
            with Image.open(io.BytesIO(piece)) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        return torch.from_numpy(np.stack(pictures))

    def by_reader(sample: int, frames: list[int]) -> torch.Tensor:
        row = reader.locate(sample)
        pictures = reader.read(sample, np.array(frames, dtype=np.int32), row).pictures
        return torch.from_numpy(np.stack([pictures[frame] for frame in frames]))

    contenders: dict[str, Callable[[int, list[int]], torch.Tensor]] = {
        READER: by_reader,
        "by hand: pread, CRC, PIL, stack": lambda sample, frames: by_hand(sample, frames, check=True),
        "by hand, without CRC": lambda sample, frames: by_hand(sample, frames, check=False),
        "rhofast.ClipDataset": lambda sample, frames: dataset[sample, frames],
    }
    names, measured = list(contenders), []
    for number in range(-1, rounds):
        seconds = dict.fromkeys(names, 0.0)
        for sample in range(len(dataset)):
            frames = [(number + place * STRIDE) % dataset.row(sample).num_frames for place in range(1, FRAMES + 1)]
            results = []
            for place in range(len(names)):
                name = names[(number + sample + place) % len(names)]
                began = time.thread_time()
                results.append(contenders[name](sample, frames))
                seconds[name] += (time.thread_time() - began) / len(dataset)
            if not all(torch.equal(results[0], one) for one in results):
                raise SystemExit(f"sample {sample}: the contenders disagree")
        if number >= 0:
            measured.append(seconds)
    for file in files:
        os.close(file)
    reader.close()
    dataset.close()
    return measured


def rows_of(rounds: list[dict[str, float]], bare: str, whole: float | None) -> list[tuple[str, float, float]]:
    """Return per contender its milliseconds and its overhead over the bare one, medians of differences in a round.

    Args:
        rounds: Seconds by contender.
        bare: The contender that the others are compared with.
        whole: Seconds of what the overhead is a share of; None: of the bare contender's own time in that round.
    """
    return [
        (
            name,
            1000 * statistics.median(one[name] for one in rounds),
            statistics.median((one[name] - one[bare]) / (whole or one[bare]) for one in rounds),
        )
        for name in rounds[0]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--out", type=Path, help="folder for faces.json and faces.md")
    parser.add_argument("--rounds", type=int, default=40, help="measurements per contender")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        build_set("jpeg", SETS["jpeg"], find_videos(options.videos)[: FULL.videos], Path(scratch), FULL)
        root = Path(scratch) / "jpeg"
        seconds = batch_seconds(open_folder(root), 10)
        loaders = measure_loaders(open_folder(root), options.rounds)
        frames = measure_frames(root, options.rounds)
    facts = facts_of_the_machine(("torch", "torchdata", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "pillow"))
    report(loaders, frames, seconds, facts, options.out)


def report(
    loaders: list[dict[str, float]],
    frames: list[dict[str, float]],
    seconds: float,
    facts: dict[str, Any],
    out: Path | None,
) -> None:
    """Print the tables, and write them with every measurement to the folder `out` if there is one."""
    if not loaders:
        raise SystemExit("no batch was ready when it was taken: let nothing else run, or increase --rounds")
    lines = []
    for title, rows, bare in (
        ("taking a batch that is ready", rows_of(loaders, BARE, seconds), BARE),
        (f"{FRAMES} frames of a video", rows_of(frames, READER, None), READER),
    ):
        table = Table(title, "CPU ms, median", "overhead, median")
        lines += [f"| {title} | CPU ms | overhead |", "|---|--:|--:|"]
        for name, milliseconds, share in rows:
            cells = (name, f"{milliseconds:.3f}", "" if name == bare else f"{100 * share:+.2f} %")
            table.add_row(*cells)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        console.print(table)
    note = (
        f"Batches of {BATCH} videos x {CLIPS} clips x {FRAMES} frames, {SIZE} pixels; one takes at least "
        f"{1000 * seconds:.0f} ms here (CPU time of all threads by cores), of which the overhead in the first table is "
        f"a share. {len(loaders)} and {len(frames)} rounds."
    )
    console.print(note)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "faces.md").write_text("\n".join([*lines, note, "", facts_line(facts)]) + "\n")
        values = {"facts": facts, "batch_s": seconds, "loaders": loaders, "frames": frames}
        (out / "faces.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
