"""Open the index of a shard, which a stranger may have made: everything is checked once, and relied on afterwards.

    shard-000000.arrow --regular file, size, digest--> bytes --schema, one uncompressed batch, Arrow's own checks-->
    columns without nulls --check_rows: invariants of whole columns--> ShardIndex

Arrow believes the compressed size, the offsets and the lengths that a file states. So a file is refused before Arrow
allocates anything for it if a buffer is compressed; `RecordBatch.validate` then checks that all buffers are as long as
the columns need. Buffers are views of the mapped file. A batch that passes needs no further check anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhofast.data.codecs.codec import MAX_SIDE, Codec
from rhofast.data.format.index import DATASET_FILE, SCHEMA, VERSION, ShardIndex
from rhofast.errors import ShardFormatError, ShardMissingError
from rhofast.storage.files import open_regular
from rhofast.storage.machine_errors import is_machine_error

MAX_INDEX_BYTES = 1 << 30  # units of 300 hours of video at 30 fps
MAX_RATE, MIN_RATE = 1e6, 1e-4  # frames per second
MAX_KEY = 80  # characters

_MADV_POPULATE_READ = 22  # of Linux 5.14; Python has no name for it
_MAGIC = b"ARROW1\0\0"
_COPY_HINT = "copy it again, or delete it and run the same `rhofast shard` command again"
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


class _InvalidError(Exception):
    """What is wrong with an index, without the name of its file."""


def open_index(path: Path, facts: IndexFacts, *, checked: bool = False) -> ShardIndex:
    """Map the index of one shard.

    Args:
        path: The `.arrow` file.
        facts: What is known of it.
        checked: Whether this process has already checked the same file, unchanged since. Nothing is read then.

    Returns:
        The mapped index.

    Raises:
        ShardMissingError: There is no such file.
        ShardFormatError: The file is not the recorded one, not an index of this format version, or a row of it is
            impossible. The message names the row.
        OSError: The machine refuses to open it, for a reason that is not in the file.
    """
    try:
        if not checked:
            _check_file(path, facts)
        with pa.memory_map(str(path)) as file:
            return ShardIndex(_read_batch(file.read_buffer(), checked=True))
    except FileNotFoundError:
        raise ShardMissingError(f"{path}: no such file, although {DATASET_FILE} lists it") from None
    except _InvalidError as error:
        raise ShardFormatError(f"{path}: {error}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_machine_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ShardFormatError(f"{path}: not a shard index: {reason}") from None


def _check_file(path: Path, facts: IndexFacts) -> None:
    """Check a file; raise OSError, ArrowException, ShardFormatError or _InvalidError."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size != facts.num_bytes:
            raise ShardFormatError(f"{path}: {size} bytes, but {DATASET_FILE} lists {facts.num_bytes}", hint=_COPY_HINT)
        if size > MAX_INDEX_BYTES:
            raise _InvalidError(f"larger than {MAX_INDEX_BYTES} bytes")
        content = _map_whole(file)
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        what = f"its digest differs from the one in {DATASET_FILE}: the file was damaged or replaced"
        raise ShardFormatError(f"{path}: {what}", hint=_COPY_HINT)
    batch = _read_batch(pa.py_buffer(content))
    if batch.num_rows != facts.samples:
        raise _InvalidError(f"{batch.num_rows} rows, but {DATASET_FILE} lists {facts.samples} samples")
    check_rows(ShardIndex(batch), facts)


def _map_whole(file: BinaryIO) -> mmap.mmap:
    """Map a file and load all of its pages, which only the check touches: they must not stay in this process's memory.

    So this mapping is let go after the check. A file that cannot be read is an OSError here, not a signal later.
    """
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # a mapping is read in smaller pieces
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        content.madvise(_MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux before 5.14 loads pages when they are touched
            raise
    return content


def _read_batch(content: pa.Buffer, *, checked: bool = False) -> pa.RecordBatch:
    """Return the record batch of an Arrow file, as views of its content.

    Args:
        content: The whole file.
        checked: Whether the same content was read and checked before.

    Returns:
        A batch with the columns of SCHEMA, whose buffers are as long as its columns need.

    Raises:
        ArrowException: Arrow finds the content malformed.
        _InvalidError: It is not what `write_index` writes.
    """
    if content.size < len(_MAGIC) or content[: len(_MAGIC)].to_pybytes() != _MAGIC:
        raise _InvalidError("not a shard index: it is not an Arrow file")
    # The messages of an Arrow file are a stream; the footer behind them only repeats where they are.
    reader = pa.ipc.MessageReader.open_stream(content[len(_MAGIC) :])
    schema = pa.ipc.read_schema(reader.read_next_message())
    if not schema.equals(SCHEMA, check_metadata=False):
        raise _InvalidError(f"not a shard index of format version {VERSION}: its columns differ")
    message = _next(reader)
    if message is None:
        raise _InvalidError("the index has no rows")
    if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
        raise _InvalidError("not a shard index: its columns are compressed or encoded")
    batch = pa.ipc.read_record_batch(message, schema)
    if checked:
        return batch
    if batch.num_rows == 0:
        raise _InvalidError("the index has no rows")
    if _next(reader) is not None:
        raise _InvalidError("not a shard index: it has more than one record batch")
    batch.validate(full=True)
    _check_columns(batch)
    return batch


def _next(reader: pa.ipc.MessageReader) -> pa.ipc.Message | None:
    try:
        return reader.read_next_message()
    except StopIteration:
        return None


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the record batch of a message (a flatbuffer that Arrow has verified) has compressed buffers."""

    def field(table: int, number: int) -> int:
        """Return the position of a field of a table; 0 if the table lacks it."""
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        (length,) = struct.unpack_from("<H", metadata, fields)
        place = 4 + 2 * number
        return (table + offset) if place < length and (offset := _u16(metadata, fields + place)) else 0

    def follow(position: int) -> int:
        return position + int(struct.unpack_from("<I", metadata, position)[0])

    header = field(follow(0), 2)  # Message.header
    return header == 0 or field(follow(header), 3) != 0  # RecordBatch.compression


def _u16(content: bytes, position: int) -> int:
    return int(struct.unpack_from("<H", content, position)[0])


def _check_columns(batch: pa.RecordBatch) -> None:
    """Check that only labels are null and that the unit columns belong together; raise _InvalidError."""
    for name in SCHEMA.names:
        column = batch.column(name)
        if name != "label" and column.null_count:
            raise _InvalidError(f"column {name} has nulls")
        if name.startswith("unit_") and column.values.null_count:
            raise _InvalidError(f"column {name} has nulls")
    starts = batch.column("unit_frame").offsets.to_numpy()
    if starts[0] != 0 or starts[-1] != len(batch.column("unit_frame").values):
        raise _InvalidError("column unit_frame has values that belong to no row")
    for name, values in (("offset", 1), ("size", 1), ("crc", 1), ("rgb", 3)):
        column = batch.column(f"unit_{name}")
        agrees = np.array_equal(column.offsets.to_numpy(), values * starts.astype(np.int64))
        if not agrees or len(column.values) != values * int(starts[-1]):
            raise _InvalidError(f"column unit_{name} does not have {values} value(s) per unit")


def check_rows(index: ShardIndex, facts: IndexFacts) -> None:
    """Check the numbers of an index, as whole columns.

    Args:
        index: The index. Its columns have no nulls, and its unit columns belong together.
        facts: What `dataset.json` says.

    Raises:
        _InvalidError: A number is impossible; it names the first such row.
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
        raise _InvalidError(f"row {row} (key {index.key(row)[:MAX_KEY]!a}): {what}")


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
