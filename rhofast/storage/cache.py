"""A bounded folder of whole files, shared by the processes of a node and by run after run.

    FOLDER/KEY/shard-000003.tar         whole, checked, flushed to the disk: a file has its name only then
    FOLDER/KEY/.shard-000003.tar.part   being filled by the process that has it locked; already as long as it will be,
                                        so that its room is taken
    FOLDER/.lock                        held while room is made
    FOLDER/CACHEDIR.TAG                 says that all of this may be deleted, to rhofast and to backup programs

Locks are the kernel's (`flock`): they end with the process that holds them, however it ends. A part that nobody has
locked is what a killed process left behind, and goes. The files that were asked for longest ago make room for new
ones. A file may go while someone reads it: what is open or mapped stays readable until it is closed. What it is not:
it knows no network (remote.py), and locks between nodes only as well as the folder's file system does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rhofast.errors import ConfigError
from rhofast.storage.files import flush

_POLL_S = 0.05
_LOCK = ".lock"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Copies of remote shards, made by rhofast. See https://bford.info/cachedir/\n"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "name a folder on a local disk: --set data.cache=..."

Fill = Callable[[BinaryIO], None]
Wait = Callable[[float], None]


def default_folder() -> Path:
    """`rhofast-cache-UID` in the folder for temporary files, which $TMPDIR names."""
    return Path(tempfile.gettempdir()) / f"rhofast-cache-{os.getuid()}"


class Cache:
    """Whole files under `folder`, at most `max_bytes` of them. Thread-safe, and safe among processes.

    stall_s: a file that another process downloads is waited for, as long as it grows at least once in so many seconds.
    Raises ConfigError for a folder that is another user's, holds other things, cannot be written to, or whose file
    system has no locks.
    """

    def __init__(self, folder: Path, *, max_bytes: int, stall_s: float = 180.0) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._stall_s = stall_s
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise ConfigError(f"data.cache: {folder} belongs to another user", hint=_ELSEWHERE)
            self._claim()
            with tempfile.TemporaryFile(dir=folder), self._alone():
                pass
        except OSError as error:
            message = f"data.cache: {folder} cannot be used: {error.strerror or error}"
            raise ConfigError(message, hint=_ELSEWHERE) from None

    def get(self, key: str, name: str, size: int, fill: Fill, *, wait: Wait = time.sleep) -> Path:
        """The file `name` of `key`, of `size` bytes. `fill` writes it where it is not there; it is called in one
        process at a time, and by one after another where the first ones fail. wait: called to wait so many seconds; may
        raise to give up.

        Raises what `fill` raises; TimeoutError where another process has the file and it stopped growing;
        ConfigError where there is no room on the disk, or never can be within the bound; OSError.
        """
        path = self.folder / key / name
        while not self._touch(path, size):
            part = self._lock_part(path)
            if part is None:
                self._await_other(path, wait)
                continue
            with part:
                if self._touch(path, size):  # finished by another one before the lock was had
                    _part_of(path).unlink(missing_ok=True)
                else:
                    self._fill(path, part, size, fill, wait)
        return path

    def claimed(self, key: str, name: str) -> bool:
        """Whether some process is filling that file just now."""
        part = _part_of(self.folder / key / name)
        return part.exists() and not _remove_unused(part)

    def drop(self, key: str, name: str) -> None:
        """Forget a file."""
        (self.folder / key / name).unlink(missing_ok=True)

    def num_bytes(self) -> int:
        """What lies there, with the room that is taken for what is on its way."""
        return sum(size for _, size, _ in self._files())

    def _claim(self) -> None:
        """Mark the folder as a cache. One that holds anything else is refused: what lies in a cache gets deleted."""
        tag = self.folder / "CACHEDIR.TAG"
        if tag.is_file():
            return
        if any(path.name != _LOCK for path in self.folder.iterdir()) and not tag.is_file():
            raise ConfigError(f"data.cache: {self.folder} is no cache, and not empty", hint="name a folder of its own")
        tag.write_text(_TAG, encoding="utf-8")

    def _touch(self, path: Path, size: int) -> bool:
        """Whether the file is there; if so, it was asked for just now."""
        try:
            status = path.stat()
            if status.st_size != size:
                return False
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # st_mtime stays what says that a file changed
        except FileNotFoundError:
            return False
        return True

    def _lock_part(self, path: Path) -> BinaryIO | None:
        """The part of a file, locked; None where another one has it."""
        part = _part_of(path)
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None
            if _is_at(file.fileno(), part):
                return file
            file.close()  # it was finished or given up, and has another name or none

    def _await_other(self, path: Path, wait: Wait) -> None:
        """Return when the part that another one has locked is a moment older; see that it still grows."""
        wait(_POLL_S)
        try:
            idle = time.time() - _part_of(path).stat().st_mtime
        except FileNotFoundError:
            return
        if idle > self._stall_s:
            raise TimeoutError(f"another process has been downloading it, and got nothing for {idle:.0f} s")

    def _fill(self, path: Path, part: BinaryIO, size: int, fill: Fill, wait: Wait) -> None:
        aside = _part_of(path)
        try:
            self._reserve(path, part, size, wait)
            fill(part)
            part.truncate(size)
            os.fsync(part.fileno())
            aside.replace(path)
            flush(path.parent)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if error.errno in _NO_ROOM:
                message = f"data.cache: no room left on the disk of {self.folder} for {path.name} ({size / 1e9:.2f} GB)"
                raise ConfigError(message, hint="free some, or use less: --set data.cache_gb=...") from None
            raise
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _reserve(self, path: Path, part: BinaryIO, size: int, wait: Wait) -> None:
        """Make the part as long as the file will be, after other files made room for it."""
        if size > self.max_bytes:
            raise ConfigError(
                f"data.cache_gb: {path.name} alone has {size / 1e9:.3g} GB of {self.max_bytes / 1e9:.3g} in all",
                hint="allow more: --set data.cache_gb=...",
            )
        part.truncate(0)  # what a killed process left in it
        end = time.monotonic() + self._stall_s
        while time.monotonic() < end:
            with self._alone():
                if self._make_room(size):
                    part.truncate(size)
                    return
            wait(_POLL_S)  # all that is there is on its way: when it has come, it can go
        raise TimeoutError(f"{self.folder} is full of what others are downloading, for {self._stall_s:.0f} s")

    def _make_room(self, size: int) -> bool:
        """Delete what was asked for longest ago until `size` more bytes are within the bound."""
        files = sorted(self._files())
        total = sum(one for _, one, _ in files) + size
        for _, one, path in files:
            if total <= self.max_bytes:
                break
            if path.suffix == ".part":
                total -= one if _remove_unused(path) else 0
            else:
                path.unlink(missing_ok=True)
                total -= one
        return total <= self.max_bytes

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(when it was last asked for, bytes, path) of every file and part."""
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                yield status.st_atime_ns, status.st_size, path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Held by one thread of one process at a time, for milliseconds."""
        with (self.folder / _LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(part: Path) -> bool:
    """Delete a part that is nobody's, because its process is gone; whether it is deleted."""
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file.fileno(), part):
                return False
            part.unlink()
            return True
    except (FileNotFoundError, BlockingIOError):
        return False
