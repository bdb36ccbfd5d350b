"""Check the rows of an index, which a stranger may have made, as whole columns. index_file.py opens it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import MAX_SIDE, Codec
from rhofast.data.format.index import ShardIndex

MAX_RATE, MIN_RATE = 1e6, 1e-4  # frames per second
MAX_KEY = 80  # characters

_KEY_BYTES = np.zeros(256, dtype=bool)
_KEY_BYTES[np.frombuffer(b"-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", dtype=np.uint8)] = True

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFacts:
    """What `dataset.json` says that an index must fit.

    Attributes:
        samples: Number of rows.
        num_bytes: Size of the index in bytes.
        sha256: SHA-256 of the index, hexadecimal.
        tar_bytes: Size of the tar in bytes.
        num_classes: Number of classes.
        codec: Codec of the members.
    """

    samples: int
    num_bytes: int
    sha256: str
    tar_bytes: int
    num_classes: int
    codec: Codec


class InvalidIndexError(Exception):
    """What is wrong with an index, without the name of its file."""


def check_rows(index: ShardIndex, facts: IndexFacts) -> None:
    """Check the numbers of an index, as whole columns.

    Args:
        index: The index. Its columns have no nulls, and its unit columns belong together.
        facts: What `dataset.json` says.

    Raises:
        InvalidIndexError: A number is impossible; it names the first such row.
    """
    codec, pixels = facts.codec, index.width.astype(np.int64) * index.height
    too_large = (np.maximum(index.width, index.height) > MAX_SIDE) | (pixels > codec.max_pixels)
    _require(index, (index.label == -100) | (index.label >= 0), "its label is negative")
    _require(
        index, index.label < facts.num_classes, f"its label is not below the number of classes, {facts.num_classes}"
    )
    _require(index, index.num_frames >= 1, "it has no frames")
    _require(index, (index.fps >= MIN_RATE) & (index.fps <= MAX_RATE), "its frame rate is impossible")  # no NaN
    _require(
        index, (np.minimum(index.width, index.height) >= 1) & ~too_large, f"its size is not one of codec {codec.name}"
    )
    _require(index, (index.size >= 1) & (index.size <= facts.tar_bytes), "its member extends beyond the tar")
    within = (index.offset >= 0) & (index.offset <= facts.tar_bytes - index.size)
    _require(index, within, "its member extends beyond the tar")
    _check_keys(index)
    _check_units(index, facts)


def _require(index: ShardIndex, right: _Bools, what: str) -> None:
    if not right.all():
        row = int(right.argmin())
        raise InvalidIndexError(f"row {row} (key {index.key(row)[:MAX_KEY]!a}): {what}")


def _check_keys(index: ShardIndex) -> None:
    lengths, content = index.key_bytes()
    _require(index, (lengths >= 1) & (lengths <= MAX_KEY), f"its key has not 1 to {MAX_KEY} characters")
    allowed = _KEY_BYTES[content]
    if not allowed.all():
        row = int(np.searchsorted(np.cumsum(lengths), int(allowed.argmin()), side="right"))
        _require(index, np.arange(len(index)) != row, "its key is not of letters, digits, '_' and '-'")


def _check_units(index: ShardIndex, facts: IndexFacts) -> None:
    """Check that the units of each member cover its frames and lie in the member, one after another."""
    units, starts = index.every_unit, index.unit_starts
    counts = np.diff(starts)
    _require(index, counts >= 1, "it has no units")
    first, last = starts[:-1], starts[1:] - 1
    covers = "its units do not cover its frames"
    _require(index, units.frame[first] == 0, covers)
    if facts.codec.pictures:
        _require(index, counts == index.num_frames, covers)
        _require_units(index, units.frame[1:] == units.frame[:-1] + 1, covers)
    else:
        _require_units(index, units.frame[1:] >= units.frame[:-1], covers)
        _require(index, units.frame[last] < index.num_frames, covers)
        _require(index, index.num_frames <= index.size, "it has more frames than bytes")
    beyond = "its units are not in order, or extend beyond the member"
    _require(index, np.full(len(index), units.size.min() >= 1 and units.offset.max() <= facts.tar_bytes), beyond)
    ends = units.offset + units.size
    _require(index, units.offset[first] >= 0, beyond)
    _require(index, ends[last] <= index.size, beyond)
    _require_units(index, units.offset[1:] >= ends[:-1], beyond)
    # As unsigned integers, floats from 0 on are in order, and negative ones and NaN are above all of them.
    if units.rgb.view(np.uint32).max() > np.float32(255).view(np.uint32):
        bad = np.flatnonzero(~((units.rgb >= 0) & (units.rgb <= 255)).all(axis=1))
        if len(bad):
            _require(index, np.arange(len(index)) != _row_of(index, int(bad[0])), "a mean color is not in 0..255")


def _require_units(index: ShardIndex, right: _Bools, what: str) -> None:
    """Check what holds between neighboring units, bool[U - 1]; between two members it need not hold."""
    right[index.unit_starts[1:-1] - 1] = True
    if not right.all():
        _require(index, np.arange(len(index)) != _row_of(index, int(right.argmin())), what)


def _row_of(index: ShardIndex, unit: int) -> int:
    return int(np.searchsorted(index.unit_starts, unit, side="right")) - 1
