"""Movies of the replica of AVA, as members of shards."""

from __future__ import annotations

from benchmarks.evaluation.ava_replica import FPS, frames_of
from tests.helpers.shards import encode_mjpeg


def movie(number: int) -> bytes:
    """Return a movie in which two persons act."""
    return encode_mjpeg(frames_of(number), fps=FPS)
