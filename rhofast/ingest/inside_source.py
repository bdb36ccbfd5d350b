"""Copy one video out of a file that holds many, reading little else of it.

A member of an archive is a range of bytes, and no other byte is read. A cell of a parquet file is read by pages, since
nothing smaller can be: rows of one file that are asked for in their order, as jobs do, cost one pass over their row
group, and memory holds one page, never a row group.

These functions run in the isolated process (isolation.py): a damaged file may crash the library that reads it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rhofast.data.inside import ByteRange, Inside, ParquetCell
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.storage.fetch import FetchError
from rhofast.storage.files import open_regular
from rhofast.storage.network import RetryPolicy, network_errors, words
from rhofast.storage.parquet_rows import ParquetRows
from rhofast.storage.span_file import fetch_span
from rhofast.storage.store_path import as_path

_CHUNK = 1 << 20
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FINAL = (errno.EACCES, errno.EPERM, errno.EINVAL)
_cursor: _Cursor | None = None  # of this process; the next row is behind the one that was read last


def copy_inside(path: Path | str, inside: Inside, copy: Path, policy: RetryPolicy) -> None:
    """Copy a video that lies inside a file.

    Args:
        path: The file, or its address.
        inside: Where the video lies in it.
        copy: The local file to write.
        policy: How often and how long a range of a remote file is requested.

    Raises:
        RefusedError: There is no such file, it ends before the video does, or the cell holds no video.
        UnreadableError: It cannot be read.
        OSError: `copy` cannot be written.
    """
    if isinstance(inside, ParquetCell):
        copy.write_bytes(_cell(path, inside))
    elif isinstance(path, str):
        try:
            fetch_span(path, copy, inside.offset, inside.size, policy)
        except FetchError as error:
            if error.missing:
                raise RefusedError(Refusal.MISSING, str(error)) from None
            raise UnreadableError(str(error), passing=False) from None
    else:
        with copy.open("wb") as file:
            for chunk in _chunks(path, inside):
                file.write(chunk)


def _chunks(path: Path, inside: ByteRange) -> Iterator[bytes]:
    """Yield the bytes of a range of a local file; raises RefusedError or UnreadableError."""
    try:
        with open_regular(path) as file:
            file.seek(inside.offset)
            left = inside.size
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise RefusedError(Refusal.DAMAGED, f"the file ends {left} bytes before the video does")
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise _reading_error(error) from None


class _Cursor:
    """The rows of a column from some row on, in their order."""

    def __init__(self, path: Path | str, column: str, row: int) -> None:
        self.path, self.column, self.row = path, column, row
        self._rows = ParquetRows(as_path(path, signed=True) if isinstance(path, str) else path)
        self._values = self._rows.column(column, row)

    def next(self) -> Any:
        """Return the value of the next row."""
        self.row += 1
        return next(self._values)

    def close(self) -> None:
        self._rows.close()


def _cell(path: Path | str, cell: ParquetCell) -> bytes:
    """Return the value of a cell; raises RefusedError or UnreadableError."""
    global _cursor
    cursor, _cursor = _cursor, None
    try:
        if cursor is None or (cursor.path, cursor.column, cursor.row) != (path, cell.column, cell.row):
            if cursor is not None:
                cursor.close()
            cursor = _Cursor(path, cell.column, cell.row)
        value = cursor.next()
    except FileNotFoundError as error:
        raise RefusedError(Refusal.MISSING, words(error)) from None
    except network_errors() as error:
        raise _reading_error(error) from None
    except (ValueError, StopIteration, KeyError) as error:  # what pyarrow says of a damaged file is a ValueError
        raise RefusedError(Refusal.DAMAGED, f"row {cell.row}: {words(error)}") from None
    if value is None:
        raise RefusedError(Refusal.EMPTY, f"row {cell.row} has no value in column {cell.column}")
    _cursor = cursor
    return bytes(value)


def _reading_error(error: BaseException) -> RefusedError | UnreadableError:
    """Return the error of a source for one of reading a local file."""
    number = getattr(error, "errno", None)
    if number in _MISSING:
        return RefusedError(Refusal.MISSING, words(error))
    if number is None and isinstance(error, OSError):  # of pyarrow, about what it has read
        return RefusedError(Refusal.DAMAGED, words(error))
    return UnreadableError(words(error), number not in (*_FINAL, errno.EREMOTEIO))  # that was tried again already
