"""Sizes of the GPU measurements: as on a GPU, or small enough for a rehearsal on the CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the measurements.

    Attributes:
        videos: Distinct videos.
        seconds: Length of each stored video.
        short_side: Height or width of the stored pictures, whichever is smaller, in pixels.
        samples: Least number of samples of a set, with repetitions.
        size: Side of the network's input in pixels.
        frames: Frames per clip.
        batch: Videos per batch.
        model: Settings that change the network, as for `--set`.
        threads: Threads of the loader, and of the decoders.
        rounds: Measurements of each kind.
        batches: Timed batches or steps per measurement.
        more_batches: Batches of the optional part `memory`.
    """

    videos: int
    seconds: float
    short_side: int
    samples: int
    size: int
    frames: int
    batch: int
    model: tuple[str, ...]
    threads: int
    rounds: int
    batches: int
    more_batches: int


FULL = Scale(
    videos=12,
    seconds=10.0,
    short_side=256,
    samples=256,
    size=224,
    frames=8,
    batch=64,
    model=(),
    threads=14,
    rounds=3,
    batches=8,
    more_batches=1000,
)
TINY = Scale(
    videos=3,
    seconds=3.0,
    short_side=64,
    samples=8,
    size=64,
    frames=4,
    batch=2,
    model=("backbone.width=8", "method.hidden=64"),
    threads=2,
    rounds=2,
    batches=2,
    more_batches=40,
)
