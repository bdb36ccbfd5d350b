"""How much of a cache's space is taken, and which files make room: those that were used least recently.

    FOLDER/.lock    locked while space is reserved; holds the bytes that all files take at most

Files are counted one by one only if that number says that there is no room, and when a process reserves space for the
first time: a folder may have hundreds of thousands of files. Files that are deleted leave the number too high, which
a next count corrects.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rhofast.storage.cache_note import SUFFIX, note_of

LOCK = ".lock"
_DIGITS = 20


class CacheSpace:
    """The space that the files of a cache take. Safe to use from several threads and processes.

    Args:
        folder: Folder of the cache.
        max_bytes: Limit on the total size of all files, including those that are being written.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._counted = False

    def check(self) -> None:
        """Raise OSError if the folder cannot be locked."""
        with self._locked():
            pass

    def reserve(self, part: int, size: int) -> bool:
        """Evict other files until a part file fits, and give it its final size.

        Args:
            part: Descriptor of the part file, which is empty.
            size: Its final size in bytes.

        Returns:
            Whether it fits; if not, the files that are there are still being written.
        """
        with self._locked() as lock:
            total = _noted(lock) if self._counted else None
            if total is None or total + size > self._max_bytes:
                total = self._evict_for(size)
                self._counted = True
            fits = total + size <= self._max_bytes
            total += size if fits else 0
            os.pwrite(lock, b"%0*d" % (_DIGITS, total), 0)
            if fits:
                os.truncate(part, size)
            return fits

    def files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (time of last use in ns, size in bytes, path) of every file and part file, not of notes."""
        for folder in self._folder.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.suffix == SUFFIX:
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                yield status.st_atime_ns, status.st_size, path

    def _evict_for(self, num_bytes: int) -> int:
        """Delete the least recently used files until so many more bytes fit; return the size of those that are left."""
        files = sorted(self.files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total + num_bytes <= self._max_bytes:
                break
            if path.suffix == ".part":
                total -= size if remove_unused(path) else 0
            else:
                remove(path)
                total -= size
        return total

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of the folder and yield its descriptor. One thread of one process holds it at a time."""
        descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file and its note."""
    path.unlink(missing_ok=True)
    note_of(path).unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return the path of the part file of a file."""
    return path.with_name(f".{path.name}.part")


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def remove_unused(part: Path) -> bool:
    """Delete a part file if the process that wrote it is gone. Return whether it was deleted."""
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_at(file.fileno(), part):
                return False
            part.unlink()
            return True
    except (FileNotFoundError, BlockingIOError):
        return False


def _noted(lock: int) -> int | None:
    """Return the most that all files take, in bytes, as the last reservation left it; None if that is not there."""
    content = os.pread(lock, _DIGITS + 1, 0)
    return int(content) if len(content) == _DIGITS and content.isdigit() else None
