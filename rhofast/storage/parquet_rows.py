"""Read the rows of a parquet file in their order, on this machine or behind an address, with little memory.

Values are read by pages, the smallest parts that the format lets a reader take: memory holds one page of each column
(1 MiB, or one value if it is larger, unless the writer chose otherwise, and up to the 1 MiB of a dictionary), never a
row group or a column.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rhofast.storage.span_file import open_anywhere

_BUFFER = 1 << 16  # bytes that are read at once, at least
_BUFFER_REMOTE = 4 << 20
_ROWS = 1_024  # of small values, at once


class ParquetRows:
    """An open parquet file.

    Attributes:
        schema: Its columns and their types.
        num_rows: Number of its rows.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its footer.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not a parquet file.
        """
        buffer = _BUFFER if isinstance(path, Path) else _BUFFER_REMOTE
        self._file = open_anywhere(path)
        try:
            self._parquet = pq.ParquetFile(self._file, pre_buffer=False, buffer_size=buffer)
        except BaseException:
            self._file.close()
            raise
        self.schema: pa.Schema = self._parquet.schema_arrow
        self.num_rows: int = self._parquet.metadata.num_rows
        self._first = [0]  # row of each row group
        for group in range(self._parquet.num_row_groups):
            self._first.append(self._first[-1] + self._parquet.metadata.row_group(group).num_rows)

    def close(self) -> None:
        """Close the file."""
        self._parquet.close(force=True)
        self._file.close()

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows as objects of some columns, of which none may have large values.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged.
        """
        for batch in self._parquet.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False):
            yield from batch.to_pylist()

    def column(self, name: str, row: int) -> Iterator[bytes | None]:
        """Yield the values of a column of bytes from one row on.

        Args:
            name: Name of the column, or `struct.field`.
            row: Number of the first row. The rows before it in its row group are read and dropped.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged, or has no such column.
        """
        if not is_binary(type_of(self.schema, name)):
            raise ValueError(f"column {name!r} does not hold bytes")
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row {row} of {self.num_rows}")
        group = bisect_right(self._first, row) - 1
        skipped = row - self._first[group]
        groups = list(range(group, len(self._first) - 1))
        for batch in self._parquet.iter_batches(batch_size=1, row_groups=groups, columns=[name], use_threads=False):
            if skipped:
                skipped -= 1
                continue
            (values,) = batch.columns
            if pa.types.is_struct(values.type):
                values = values.field(0)
            yield values[0].as_py()


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a field of a struct (`struct.field`); None if there is no such column."""
    if name in schema.names:
        return schema.field(name).type
    outer, _, inner = name.rpartition(".")
    if outer in schema.names and pa.types.is_struct(kind := schema.field(outer).type):
        place = kind.get_field_index(inner)
        return None if place < 0 else kind.field(place).type
    return None


def is_binary(kind: pa.DataType | None) -> bool:
    """Return whether a type is that of bytes."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return kind is not None and any(test(kind) for test in tests)
