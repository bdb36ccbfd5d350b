"""What is to be read of a sample: units of its member, in runs whose bytes are adjacent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhofast.data.format.index import IndexRow
from rhofast.data.format.ranges import SpanFetch

Unit = tuple[int, int, int, int]  # its number, first byte, size and CRC-32


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadRequest:
    """What is to be read of a sample.

    Attributes:
        sample: Number of the sample in the set.
        row: Its row of the index.
        frames: The wanted frames, distinct and ascending, i32[F].
        shard: Number of its shard.
        unit_rows: Numbers of the units that hold the frames, i64[U].
        runs: The units, split into runs whose bytes are adjacent.
        spans: Place of each run in the shard, an offset and a size in bytes; with `with_json` that of KEY.json before.
        with_json: Whether KEY.json is read, too.
        fetch: The spans on their way from a remote store; None if they are read from a file.
    """

    sample: int
    row: IndexRow
    frames: npt.NDArray[np.int32]
    shard: int
    unit_rows: npt.NDArray[np.int64]
    runs: list[list[Unit]]
    spans: list[tuple[int, int]]
    with_json: bool
    fetch: SpanFetch | None


def adjacent_units(units: list[Unit]) -> list[list[Unit]]:
    """Split wanted units, in ascending order, into runs whose bytes are adjacent."""
    runs: list[list[Unit]] = []
    next_number = next_begin = -1
    for unit in units:
        number, begin, size, _ = unit
        if number == next_number and begin == next_begin:
            runs[-1].append(unit)
        else:
            runs.append([unit])
        next_number, next_begin = number + 1, begin + size
    return runs
