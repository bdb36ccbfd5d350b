"""A bounded folder of whole files, shared by the processes of a node and kept from run to run.

    FOLDER/KEY/shard-000003.tar         a whole file, checked and flushed to the disk: it gets its name only then
    FOLDER/KEY/.shard-000003.tar.note   what was checked (cache_note.py)
    FOLDER/KEY/.shard-000003.tar.part   a file that is being written by the process that holds its lock; it has its
                                        final size from the beginning, so that its space is reserved
    FOLDER/.lock                        locked while space is reserved (cache_space.py)
    FOLDER/CACHEDIR.TAG                 tells rhofast and backup programs that the folder may be deleted

A file is served only as the content with the digest that is asked for: it has a note that says so, or it is read and
compared. FOLDER belongs to one user, and nobody else may write in it; users who share a disk have folders of their own
(`own_folder`).

Locks are those of the kernel (`flock`): they end with the process that holds them, however it ends. A part file without
a lock was left by a killed process and is deleted. The least recently used files are evicted first. A file may be
evicted while it is read: an open or mapped file stays readable until it is closed. Locks hold between nodes only if the
file system of the folder supports that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rhofast.errors import ConfigError
from rhofast.storage.cache_note import digest_of, has_note, own_file, write_note
from rhofast.storage.cache_space import LOCK, CacheSpace, is_at, part_of, remove, remove_unused
from rhofast.storage.files import flush

_POLL_S = 0.05
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Copies of remote shards, made by rhofast. See https://bford.info/cachedir/\n"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ANOTHER_FOLDER = "choose a folder on a local disk: --set data.cache=FOLDER"

WriteFile = Callable[[BinaryIO], None]
Sleep = Callable[[float], None]
_Identity = tuple[int, int, int]


def own_folder(shared: Path | None = None) -> Path:
    """Return this user's cache folder, `rhofast-cache-UID`, in a folder that other users may use as well.

    Args:
        shared: The folder; None: that for temporary files (see $TMPDIR).
    """
    return (shared or Path(tempfile.gettempdir())) / f"rhofast-cache-{os.getuid()}"


class Cache:
    """Whole files in one folder, of a limited total size. Safe to use from several threads and processes.

    Attributes:
        folder: Folder of the cache.
        max_bytes: Limit on the total size of all files, including those that are being written.
    """

    def __init__(self, folder: Path, *, max_bytes: int, stall_s: float = 180.0) -> None:
        """Open the cache, and create its folder if there is none.

        Args:
            folder: Folder of the cache. It must be new, empty, or a cache already.
            max_bytes: Limit on the total size of all files.
            stall_s: Seconds without progress after which a file that another process writes is given up.

        Raises:
            ConfigError: The folder belongs to another user, others can write in it or replace it, it holds other files,
                is not writable, or its file system has no locks.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._stall_s = stall_s
        self._space = CacheSpace(folder, max_bytes=max_bytes)
        self._checked: dict[Path, tuple[str, _Identity]] = {}  # files whose content this process knows
        self._read_again: dict[Path, _Identity] = {}  # files that `recheck` has read
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_permissions(folder)
            self._mark_as_cache()
            with tempfile.TemporaryFile(dir=folder):
                self._space.check()
        except OSError as error:
            message = f"data.cache={folder} cannot be used: {error.strerror or error}"
            raise ConfigError(message, hint=_ANOTHER_FOLDER) from None

    def get(self, key: str, name: str, size: int, sha256: str, write: WriteFile, *, sleep: Sleep = time.sleep) -> Path:
        """Return the path of a file, and write the file first if its content is not in the cache.

        Only one process at a time writes a file. If it fails, the next one that asks for the file tries.

        Args:
            key: Folder of the file in the cache.
            name: Name of the file.
            size: Size of the file in bytes.
            sha256: Digest of its content, 64 hexadecimal characters.
            write: Function that writes the content to an open file, and raises if it has another digest.
            sleep: Function that waits for a number of seconds. It may raise an exception to give up.

        Returns:
            The path of the file, which may be evicted at any time.

        Raises:
            TimeoutError: Another process writes the file and makes no progress.
            ConfigError: The disk is full, or the file is larger than `max_bytes`.
            OSError: The file cannot be written.
            Exception: Whatever `write` or `sleep` raise.
        """
        path = self.folder / key / name
        while not self._touch(path, size, sha256):
            part = self._lock_part(path)
            if part is None:
                self._await_other(path, sleep)
                continue
            with part:
                if not self._touch(path, size, sha256):
                    self._write(path, part, size, sha256, write, sleep)
                    return path
                part_of(path).unlink(missing_ok=True)  # another process finished it before the lock was acquired
        return path

    def has(self, key: str, name: str, size: int, sha256: str) -> bool:
        """Return whether a file is in the cache with this content; arguments are those of `get`."""
        return self._touch(self.folder / key / name, size, sha256)

    def is_being_written(self, key: str, name: str) -> bool:
        """Return whether some process is writing the file."""
        part = part_of(self.folder / key / name)
        return part.exists() and not remove_unused(part)

    def drop(self, key: str, name: str) -> None:
        """Delete a file from the cache, if it is there."""
        remove(self.folder / key / name)

    def recheck(self, key: str, name: str, sha256: str) -> bool:
        """Read a file that seems damaged, whatever its note says, and delete it if it is; once per file and process.

        Args:
            key: Folder of the file in the cache.
            name: Name of the file.
            sha256: Digest that it should have.

        Returns:
            Whether the file was deleted, so that `get` writes it again.
        """
        path = self.folder / key / name
        status = own_file(path)
        if status is None:
            return False
        if self._read_again.get(path) == _identity(status):
            return False
        if digest_of(path) == sha256:
            self._read_again[path] = _identity(status)
            return False
        self._checked.pop(path, None)
        remove(path)
        return True

    def num_bytes(self) -> int:
        """Return the total size of all files in bytes, including those that are being written."""
        return sum(size for _, size, _ in self._space.files())

    def _mark_as_cache(self) -> None:
        """Write the tag file. A folder with other files is refused, because a cache deletes what it holds."""
        tag = self.folder / "CACHEDIR.TAG"
        if tag.is_file():
            return
        if any(path.name != LOCK for path in self.folder.iterdir()) and not tag.is_file():
            raise ConfigError(
                f"data.cache={self.folder} is neither a cache nor empty",
                hint="choose a new or empty folder: --set data.cache=FOLDER",
            )
        tag.write_text(_TAG, encoding="utf-8")

    def _touch(self, path: Path, size: int, sha256: str) -> bool:
        """Return whether the file is there with this content, and mark it as used just now."""
        status = own_file(path)
        if status is None or status.st_size != size:
            return False
        if self._checked.get(path) != (sha256, _identity(status)):
            if not has_note(path, sha256, status):
                if digest_of(path) != sha256:
                    return False
                write_note(path, sha256, status)
            self._checked[path] = (sha256, _identity(status))
        try:
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # st_mtime still shows when the content changed
        except FileNotFoundError:
            return False
        return True

    def _lock_part(self, path: Path) -> BinaryIO | None:
        """Open and lock the part file of a file. Return None if another process holds the lock."""
        part = part_of(path)
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None
            if is_at(file.fileno(), part):
                return file
            file.close()  # the part was finished or deleted before the lock was acquired

    def _await_other(self, path: Path, sleep: Sleep) -> None:
        """Wait a moment for the process that writes the file. Raise TimeoutError if it makes no progress."""
        sleep(_POLL_S)
        try:
            idle = time.time() - part_of(path).stat().st_mtime
        except FileNotFoundError:
            return
        if idle > self._stall_s:
            raise TimeoutError(f"another process is downloading the file, and received nothing for {idle:.0f} s")

    def _write(self, path: Path, part: BinaryIO, size: int, sha256: str, write: WriteFile, sleep: Sleep) -> None:
        """Write the locked part file, then its note, then give it its name; delete the part file after a failure."""
        part_path = part_of(path)
        try:
            self._reserve(path, part, size, sleep)
            write(part)
            part.truncate(size)
            os.fsync(part.fileno())
            status = os.fstat(part.fileno())
            write_note(path, sha256, status)
            part_path.replace(path)
            self._checked[path] = (sha256, _identity(status))
            flush(path.parent)
        except OSError as error:
            part_path.unlink(missing_ok=True)
            if error.errno in _DISK_FULL:
                message = f"data.cache={self.folder}: the disk is full; {path.name} needs {size / 1e9:.2f} GB"
                raise ConfigError(message, hint="free some space, or lower the limit: --set data.cache_gb=N") from None
            raise
        except BaseException:
            part_path.unlink(missing_ok=True)
            raise

    def _reserve(self, path: Path, part: BinaryIO, size: int, sleep: Sleep) -> None:
        """Evict other files until the file fits, then give the part file its final size."""
        if size > self.max_bytes:
            raise ConfigError(
                f"data.cache_gb={self.max_bytes / 1e9:.3g} is too small: {path.name} alone needs {size / 1e9:.3g} GB",
                hint="raise the limit: --set data.cache_gb=N",
            )
        part.truncate(0)  # delete what a killed process left in it
        end = time.monotonic() + self._stall_s
        while time.monotonic() < end:
            if self._space.reserve(part.fileno(), size):
                return
            sleep(_POLL_S)  # all files are still being written; each can be evicted once it is whole
        raise TimeoutError(f"{self.folder} has been full of unfinished downloads for {self._stall_s:.0f} s")


def _check_permissions(folder: Path) -> None:
    """Raise ConfigError if another user owns a folder, or could write in it or put another one in its place."""
    status, above = folder.lstat(), folder.parent.stat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"data.cache={folder} belongs to another user, or is a link", hint=_ANOTHER_FOLDER)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"data.cache={folder}: other users can write in it, so its files cannot be trusted",
            hint=f"delete it, or what others wrote there, and run: chmod 700 {shlex.quote(str(folder))}",
        )
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"data.cache={folder.parent}: every user can rename what others have in it",
            hint=f"run: chmod +t {shlex.quote(str(folder.parent))}",
        )


def _identity(status: os.stat_result) -> _Identity:
    """Return values that change when a file is replaced or written."""
    return status.st_ino, status.st_size, status.st_mtime_ns
