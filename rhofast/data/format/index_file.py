"""Open the index of a shard, which a stranger may have made: everything is checked once, and relied on afterwards.

    shard-000000.arrow --regular file, size, digest--> bytes --schema, one uncompressed batch, Arrow's own checks-->
    columns without nulls --index_rows.py: invariants of whole columns--> ShardIndex

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from rhofast.data.format.index import DATASET_FILE, LISTS, SCHEMA, VERSION, ShardIndex
from rhofast.data.format.index_rows import IndexFacts, InvalidIndexError, check_rows
from rhofast.errors import ShardFormatError, ShardMissingError
from rhofast.storage.files import open_regular
from rhofast.storage.machine_errors import is_machine_error

MAX_INDEX_BYTES = 1 << 30  # units of 300 hours of video at 30 fps

_MADV_POPULATE_READ = 22  # of Linux 5.14; Python has no name for it
_MAGIC = b"ARROW1\0\0"
_ALIKE = (("unit_size", "unit_crc"), ("labels", "label_start", "label_end"))  # lists of the same lengths
_COPY_HINT = "copy it again, or delete it and run the same `rhofast shard` command again"


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
    with _named_errors(path):
        if not checked:
            _check_file(path, facts)
        with pa.memory_map(str(path)) as file:
            return ShardIndex(_read_batch(file.read_buffer(), checked=True))


def open_column(path: Path, name: str, *, samples: int, num_bytes: int) -> pa.Array:
    """Read a column of an index, and nothing else of it.

    The digest of the file is not compared, for which it would have to be read as a whole; `open_index` does that.

    Args:
        path: The `.arrow` file.
        name: The column, one without nulls.
        samples: Recorded number of rows.
        num_bytes: Recorded size in bytes.

    Returns:
        The column as a copy, which does not keep the file mapped.

    Raises:
        ShardMissingError: There is no such file.
        ShardFormatError: The file is not an index of this format version, or not of the recorded size.
        OSError: The machine refuses to open it, for a reason that is not in the file.
    """
    with _named_errors(path), open_regular(path) as file:
        size = file.seek(0, 2)
        if size != num_bytes:
            raise ShardFormatError(f"{path}: {size} bytes, but {DATASET_FILE} lists {num_bytes}", hint=_COPY_HINT)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # of which only the column's pages are touched
        return _copy_column(_read_batch(pa.py_buffer(content), checked=True).column(name), name, samples)


def parse_column(head: memoryview, name: str, *, samples: int, num_bytes: int, where: str) -> pa.Array | int:
    """Read a column of an index from the beginning of the file.

    Args:
        head: The first bytes of the file.
        name: The column, one without nulls.
        samples: Recorded number of rows.
        num_bytes: Recorded size of the file in bytes.
        where: Name of the file in messages.

    Returns:
        The column as a copy; or, if it is not in `head`, how many of the first bytes have it.

    Raises:
        ShardFormatError: The file is not an index of this format version.
    """
    with _named_errors(where):
        if num_bytes > MAX_INDEX_BYTES:
            raise InvalidIndexError(f"larger than {MAX_INDEX_BYTES} bytes")
        whole = mmap.mmap(-1, num_bytes)  # zeros, which take no memory
        whole[: len(head)] = head
        content = pa.py_buffer(whole)
        column = _read_batch(content, checked=True).column(name)
        ends = [buffer.address - content.address + buffer.size for buffer in column.buffers() if buffer is not None]
        return max(ends) if max(ends) > len(head) else _copy_column(column, name, samples)


def _copy_column(column: pa.Array, name: str, samples: int) -> pa.Array:
    """Check and copy a column of an index."""
    column.validate(full=True)
    if len(column) != samples or column.null_count:
        found = f"{len(column) - column.null_count} values in column {name}"
        raise InvalidIndexError(f"{found}, but {DATASET_FILE} lists {samples} samples")
    return pa.concat_arrays([column, column.slice(0, 0)])


@contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    """Turn what is wrong with an index into an error that names its file."""
    try:
        yield
    except FileNotFoundError:
        raise ShardMissingError(f"{path}: no such file, although {DATASET_FILE} lists it") from None
    except InvalidIndexError as error:
        raise ShardFormatError(f"{path}: {error}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_machine_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ShardFormatError(f"{path}: not a shard index: {reason}") from None


def _check_file(path: Path, facts: IndexFacts) -> None:
    """Check a file; raise OSError, ArrowException, ShardFormatError or InvalidIndexError."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size != facts.num_bytes:
            raise ShardFormatError(f"{path}: {size} bytes, but {DATASET_FILE} lists {facts.num_bytes}", hint=_COPY_HINT)
        if size > MAX_INDEX_BYTES:
            raise InvalidIndexError(f"larger than {MAX_INDEX_BYTES} bytes")
        content = _map_whole(file)
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        what = f"its digest differs from the one in {DATASET_FILE}: the file was damaged or replaced"
        raise ShardFormatError(f"{path}: {what}", hint=_COPY_HINT)
    batch = _read_batch(pa.py_buffer(content))
    if batch.num_rows != facts.samples:
        raise InvalidIndexError(f"{batch.num_rows} rows, but {DATASET_FILE} lists {facts.samples} samples")
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
        InvalidIndexError: It is not what `write_index` writes.
    """
    if content.size < len(_MAGIC) or content[: len(_MAGIC)].to_pybytes() != _MAGIC:
        raise InvalidIndexError("not a shard index: it is not an Arrow file")
    # The messages of an Arrow file are a stream; the footer behind them only repeats where they are.
    reader = pa.ipc.MessageReader.open_stream(content[len(_MAGIC) :])
    schema = pa.ipc.read_schema(reader.read_next_message())
    if not schema.equals(SCHEMA, check_metadata=False):
        raise InvalidIndexError(f"not a shard index of format version {VERSION}: its columns differ")
    message = _next(reader)
    if message is None:
        raise InvalidIndexError("the index has no rows")
    if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
        raise InvalidIndexError("not a shard index: its columns are compressed or encoded")
    batch = pa.ipc.read_record_batch(message, schema)
    if checked:
        return batch
    if batch.num_rows == 0:
        raise InvalidIndexError("the index has no rows")
    if _next(reader) is not None:
        raise InvalidIndexError("not a shard index: it has more than one record batch")
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
    """Check that only labels are null and that the unit columns belong together; raise InvalidIndexError."""
    for name in SCHEMA.names:
        column = batch.column(name)
        if name != "label" and column.null_count:
            raise InvalidIndexError(f"column {name} has nulls")
    for name in LISTS:
        column = batch.column(name)
        starts = column.offsets
        if column.values.null_count:
            raise InvalidIndexError(f"column {name} has nulls")
        if starts[0].as_py() != 0 or starts[-1].as_py() != len(column.values):
            raise InvalidIndexError(f"column {name} has values that belong to no row")
    for first, *others in _ALIKE:
        for name in others:
            if not batch.column(name).offsets.equals(batch.column(first).offsets):
                raise InvalidIndexError(f"column {name} does not have one value per value of {first}")
