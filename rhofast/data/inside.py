"""Where a video lies inside a file that holds many: a member of an archive, or a cell of a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """A video that is [offset, offset + size) of a file, as a member of a tar is.

    Attributes:
        offset: Position of its first byte in the file.
        size: Its size in bytes.
        name: Its name in the file, for messages; its suffix is that of the video.
    """

    offset: int
    size: int
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetCell:
    """A video that is the value of a column of bytes in a row of a parquet file.

    Attributes:
        column: Name of the column; that of a field in a struct is `struct.field`.
        row: Number of the row in the file, from 0.
        name: Name of the video, if the file has one, whose suffix is that of the video; otherwise `row 17`.
    """

    column: str
    row: int
    name: str


Inside = ByteRange | ParquetCell
