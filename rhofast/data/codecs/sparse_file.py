"""A file of which only some pieces are there."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any


class SparseFile(io.RawIOBase):
    """A read-only file that consists of pieces; what is not there reads as zeros.

    Args:
        pieces: (position, bytes) of each piece, ascending and without overlap.
        size: Size of the file in bytes.
    """

    def __init__(self, pieces: Sequence[tuple[int, Any]], size: int) -> None:
        self._begins = [begin for begin, _ in pieces]
        self._pieces = [memoryview(content) for _, content in pieces]
        self._size, self._position = size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position and return it."""
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise OSError(f"cannot seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of the file; return the number of bytes."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        done = 0
        while done < len(view):
            position = self._position + done
            number = bisect_right(self._begins, position) - 1
            following = self._begins[number + 1] if number + 1 < len(self._begins) else self._size
            inside = position - self._begins[number] if number >= 0 else 0
            piece = self._pieces[number][inside : inside + len(view) - done] if number >= 0 else memoryview(b"")
            count = len(piece) or min(len(view) - done, following - position)
            view[done : done + count] = piece if len(piece) else bytes(count)
            done += count
        self._position += done
        return done
