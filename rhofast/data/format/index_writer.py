"""Write the index of a shard, whose rows come one after another and may be more than fit into memory.

    rows --one file per buffer of a column--> buffers, mapped --Arrow--> one record batch

A reader maps one record batch (index_file.py), so it cannot be written before the last row is known. Until then,
columns grow on the disk. The bytes are those that Arrow writes of the same columns in memory.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from rhofast.data.format.index import SCHEMA, IndexRow, pack_colors
from rhofast.data.format.index_file import MAX_INDEX_BYTES
from rhofast.data.units import frames_in
from rhofast.errors import ShardError

_PIECE = 1 << 20  # bytes that are copied at a time
_START = np.dtype(np.int32)  # of where a list or a text begins
_OVERHEAD = 1 << 16  # bytes of an index that are not in its columns, at most


def write_index(path: Path, rows: Iterable[IndexRow], metadata: Mapping[str, str]) -> str:
    """Write the index of one shard as one record batch, with memory that does not grow with the number of rows.

    Args:
        path: The file to write. Columns are kept beside it until then.
        rows: The samples in the order of the tar.
        metadata: Notes that are stored in the schema of the file.

    Returns:
        The SHA-256 of the file, hexadecimal.

    Raises:
        ValueError: There are bytes between two units of a member.
        ShardError: The index becomes too large.
        OSError: A file cannot be written.
    """
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        place = Path(stack.enter_context(folder))
        columns = [_Column(field, lambda name: stack.enter_context((place / name).open("w+b"))) for field in SCHEMA]
        count = 0
        for row in rows:
            values = _values_of(row)
            for column in columns:
                column.add(values[column.name] if column.name in values else getattr(row, column.name))
            count += 1
            if sum(column.num_bytes for column in columns) > MAX_INDEX_BYTES - _OVERHEAD:
                raise ShardError(
                    f"{path.name}: the index of {count:,} samples exceeds {MAX_INDEX_BYTES >> 20} MiB",
                    hint="choose a smaller --samples-per-shard, or list parts of long videos as records of their own",
                )
        maps = [each for column in columns for each in column.map()]
        target = _Target(stack.enter_context(path.open("wb")), maps)
        schema = SCHEMA.with_metadata(dict(metadata))
        with pa.ipc.new_file(pa.PythonFile(target, "w"), schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([column.array(count) for column in columns], schema=schema))
    return target.digest.hexdigest()


def _values_of(row: IndexRow) -> dict[str, Any]:
    """Return the columns of a row that are not its attributes."""
    units, counts = row.units, frames_in(row.units, row.num_frames)
    if (units.offset[1:] != units.offset[:-1] + units.size[:-1]).any():
        raise ValueError(f"sample {row.key}: its units do not follow one another without gaps")
    lead = -int(units.frame[0])
    return {
        "key": np.frombuffer(row.key.encode(), dtype=np.uint8),
        "lead": lead,
        "labels": [label.label for label in row.labels],
        "label_start": [math.nan if label.start is None else label.start for label in row.labels],
        "label_end": [math.nan if label.end is None else label.end for label in row.labels],
        "begin": int(units.offset[0]),
        "unit_size": units.size,
        "unit_crc": units.crc,
        "unit_frames": [] if (counts == 1).all() and lead == units.after == 0 else counts,
        "color": pack_colors(units.rgb),
    }


class _Column:
    """A column of the index that grows on the disk.

    Attributes:
        name: Its name.
        num_bytes: Size of its buffers so far.
    """

    def __init__(self, field: pa.Field, open_file: Callable[[str], BinaryIO]) -> None:
        """Begin a column without values.

        Args:
            field: Its name and type.
            open_file: Creates a file of a name, for its values and for where its lists or texts begin.
        """
        self.name, self.num_bytes, self._type = field.name, 0, field.type
        self._valid = bytearray() if field.nullable else None
        self._each = field.type.value_type if pa.types.is_list(field.type) else field.type
        self._dtype = _dtype_of(self._each)
        self._values, self._length = open_file(field.name), 0  # number of values of all rows
        self._starts = None
        if self._each != field.type or pa.types.is_string(field.type):
            self._starts = open_file(f"{field.name}.starts")
            self._write(self._starts, 0, _START)
        self._buffers = list[pa.Buffer]()

    def add(self, value: Any) -> None:
        """Append the value of a row: a number or bytes, None for a null, or the numbers of a list."""
        if self._valid is not None:
            self._valid.append(value is not None)
            value = 0 if value is None else value
        self._write(self._values, value, self._dtype)
        if self._starts is not None:
            self._length += len(value)
            self._write(self._starts, self._length, _START)

    def map(self) -> list[mmap.mmap]:
        """Map the files of the finished column, and return the maps."""
        maps = list[mmap.mmap]()
        for file in filter(None, (self._starts, self._values)):
            file.flush()
            if file.tell():
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._buffers.append(pa.py_buffer(maps[-1] if file.tell() else b""))
        return maps

    def array(self, rows: int) -> pa.Array:
        """Return the mapped column of so many rows."""
        nulls = 0 if self._valid is None else self._valid.count(0)
        valid = None
        if self._valid is not None and nulls:
            valid = pa.py_buffer(np.packbits(np.frombuffer(self._valid, dtype=np.uint8), bitorder="little"))
        if pa.types.is_list(self._type):
            starts, values = self._buffers
            each = pa.Array.from_buffers(self._each, self._length, [None, values], null_count=0)
            return pa.Array.from_buffers(self._type, rows, [valid, starts], null_count=nulls, children=[each])
        return pa.Array.from_buffers(self._type, rows, [valid, *self._buffers], null_count=nulls)

    def _write(self, file: BinaryIO, value: Any, dtype: np.dtype[Any]) -> None:
        self.num_bytes += file.write(np.asarray(value, dtype=dtype).tobytes())


def _dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    """Return the type of the values of a column; those of texts are bytes."""
    if pa.types.is_string(kind):
        return np.dtype(np.uint8)
    return np.dtype(f"S{kind.byte_width}" if pa.types.is_fixed_size_binary(kind) else kind.to_pandas_dtype())


class _Target:
    """The file that Arrow writes an index to.

    Arrow hands over each mapped buffer as a whole. It is copied in pieces, whose pages are let go at once.

    Attributes:
        digest: SHA-256 of what was written.
        closed: Whether nothing more is written.
    """

    def __init__(self, file: BinaryIO, maps: Sequence[mmap.mmap]) -> None:
        self.digest, self.closed = hashlib.sha256(), False
        self._file, self._maps = file, maps

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        for first in range(0, len(view), _PIECE):
            piece = view[first : first + _PIECE]
            self.digest.update(piece)
            self._file.write(piece)
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
        return len(view)

    def flush(self) -> None:
        """Leave it to the file, which is closed by its owner."""

    def close(self) -> None:
        self.closed = True
