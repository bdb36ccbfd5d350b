"""Check the rows of an index, which a stranger may have made, as whole columns. index_file.py opens it."""

from __future__ import annotations

from dataclasses import dataclass
from tarfile import BLOCKSIZE

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import MAX_SIDE, Codec
from rhofast.data.format.index import COLOR_BITS, DATASET_FILE, ShardIndex, json_offset
from rhofast.data.units import MEASURED

MAX_RATE, MIN_RATE = 1e6, 1e-4  # frames per second
MAX_PIXEL_ASPECT = 256  # of the longer to the shorter side of a pixel
MAX_KEY = 80  # characters
MAX_JSON_BYTES = 1 << 20  # of a KEY.json

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
        codecs: Codecs of the members, by their places in `dataset.json`.
    """

    samples: int
    num_bytes: int
    sha256: str
    tar_bytes: int
    num_classes: int
    codecs: tuple[Codec, ...]


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
    known = index.codec < len(facts.codecs)
    _require(index, known, f"its codec is not one of the {len(facts.codecs)} that {DATASET_FILE} lists")
    pixels = index.width.astype(np.int64) * index.height
    most_pixels = np.array([codec.max_pixels for codec in facts.codecs])[index.codec]
    too_large = (np.maximum(index.width, index.height) > MAX_SIDE) | (pixels > most_pixels)
    _require(index, (index.label == -100) | (index.label >= 0), "its label is negative")
    _require(
        index, index.label < facts.num_classes, f"its label is not below the number of classes, {facts.num_classes}"
    )
    _require(index, index.num_frames >= 1, "it has no frames")
    _require(index, (index.fps >= MIN_RATE) & (index.fps <= MAX_RATE), "its frame rate is impossible")  # no NaN
    _require(
        index, (np.minimum(index.width, index.height) >= 1) & ~too_large, "its size is not one that its codec stores"
    )
    aspect = index.pixel_aspect  # no NaN passes
    _require(index, (aspect >= 1 / MAX_PIXEL_ASPECT) & (aspect <= MAX_PIXEL_ASPECT), "the shape of its pixels is odd")
    _require(index, (index.size >= 1) & (index.size <= facts.tar_bytes), "its member extends beyond the tar")
    within = (index.offset >= 0) & (index.offset <= facts.tar_bytes - index.size)
    _require(index, within, "its member extends beyond the tar")
    _require(index, (index.json_size >= 2) & (index.json_size <= MAX_JSON_BYTES), "its KEY.json has an impossible size")
    _require(index, json_offset(index.offset, index.json_size) >= BLOCKSIZE, "its KEY.json begins before the tar")
    _check_labels(index, facts)
    _check_keys(index)
    _check_units(index, facts)


def _require(index: ShardIndex, right: _Bools, what: str) -> None:
    if not right.all():
        row = int(right.argmin())
        raise InvalidIndexError(f"row {row} (key {index.key(row)[:MAX_KEY]!a}): {what}")


def _check_labels(index: ShardIndex, facts: IndexFacts) -> None:
    """Check the further labels: classes that there are, for times of the sample."""
    begins, ends = index.label_start, index.label_end
    rows = np.repeat(np.arange(len(index)), np.diff(index.labels_starts))
    seconds = (index.num_frames / index.fps)[rows]
    is_class = (index.labels >= 0) & (index.labels < facts.num_classes)
    _require_of(index, rows, is_class, f"a label of it is not in [0, {facts.num_classes})")
    in_time = (np.isnan(begins) | (begins >= 0)) & (np.isnan(ends) | (ends <= seconds))
    is_longer = np.nan_to_num(begins, nan=0.0) < np.where(np.isnan(ends), seconds, ends)
    _require_of(index, rows, in_time & is_longer, "a label of it holds for no time of the sample")


def _check_keys(index: ShardIndex) -> None:
    lengths, content = index.key_bytes()
    _require(index, (lengths >= 1) & (lengths <= MAX_KEY), f"its key has not 1 to {MAX_KEY} characters")
    allowed = _KEY_BYTES[content]
    if not allowed.all():
        row = int(np.searchsorted(np.cumsum(lengths), int(allowed.argmin()), side="right"))
        _require(index, np.arange(len(index)) != row, "its key is not of letters, digits, '_' and '-'")


def _check_units(index: ShardIndex, facts: IndexFacts) -> None:
    """Check that the units of each member hold its frames and lie in the member, and that colors belong to them."""
    starts = index.unit_starts
    counts, listed, colors = np.diff(starts), np.diff(index.frames_starts), np.diff(index.color_starts)
    _require(index, counts >= 1, "it has no units")
    covers = "its units do not cover its frames"
    alone = listed == 0  # each unit holds one frame
    pictures = np.array([codec.pictures for codec in facts.codecs])[index.codec]
    _require(index, np.where(alone, counts == index.num_frames, ~pictures & (listed == counts)), covers)
    _require(index, (index.lead == 0) | (~alone & (index.lead > 0)), covers)
    rows = np.flatnonzero(~alone)
    if len(rows):
        first, last = index.frames_starts[rows], index.frames_starts[rows + 1] - 1
        held = np.add.reduceat(index.unit_frames, first, dtype=np.int64)
        lowest = np.minimum.reduceat(index.unit_frames, first)
        behind = held - index.lead[rows] - index.num_frames[rows]
        right = ((behind == 0) | ((behind > 0) & (behind < index.unit_frames[last]))) & (lowest >= 0) & (held < 1 << 31)
        _require_of(index, rows, right, covers)
    _require(index, index.num_frames <= index.size, "it has more frames than bytes")
    beyond = "its units extend beyond the member"
    _require(index, np.minimum.reduceat(index.unit_size, starts[:-1]) >= 1, "a unit of it has no bytes")
    total = np.add.reduceat(index.unit_size, starts[:-1], dtype=np.int64)
    _require(index, (index.begin >= 0) & (index.begin <= index.size) & (total <= index.size - index.begin), beyond)
    measured = (index.num_frames.astype(np.int64) + MEASURED - 2) // MEASURED + 1
    few = (colors == measured) & (counts == index.num_frames)
    _require(index, (colors == counts) | few, "it has too many or too few colors")
    if int(index.color.max()) >> COLOR_BITS:
        bad = int(np.argmax(index.color >> COLOR_BITS > 0))
        row = int(np.searchsorted(index.color_starts, bad, side="right")) - 1
        _require(index, np.arange(len(index)) != row, "a color of it has more than 30 bits")


def _require_of(index: ShardIndex, rows: npt.NDArray[np.int64], right: _Bools, what: str) -> None:
    """Check what holds of some rows, which may occur several times."""
    every = np.ones(len(index), dtype=bool)
    every[rows[~right]] = False
    _require(index, every, what)
