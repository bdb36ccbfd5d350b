"""Notes beside the files of a cache: which content was found in which file.

    FOLDER/KEY/shard-000003.tar          the file
    FOLDER/KEY/.shard-000003.tar.note    SHA-256 of its content, and the size, inode and time of change it had then

A note is written by whoever has compared the whole content with its digest: at the end of a download, or later. A file
that still is the noted one need not be read to be believed; any other is. A note that was cut short or is of another
file says nothing. Only files and notes of the user who runs this process count.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

SUFFIX = ".note"
_MAX_BYTES = 256


def note_of(path: Path) -> Path:
    """Return the path of a file's note."""
    return path.with_name(f".{path.name}{SUFFIX}")


def own_file(path: Path) -> os.stat_result | None:
    """Return the status of a regular file that belongs to this user; None for anything else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() else None


def has_note(path: Path, sha256: str, status: os.stat_result) -> bool:
    """Return whether a file was found to have a content.

    Args:
        path: The file.
        sha256: The digest of the content.
        status: What `own_file` says about the file now.
    """
    try:
        descriptor = os.open(note_of(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return False
        return os.read(descriptor, _MAX_BYTES) == _text(sha256, status)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def write_note(path: Path, sha256: str, status: os.stat_result) -> None:
    """Note the content of a file; a note that cannot be written is left out.

    Args:
        path: The file, which may get this name only later.
        sha256: The digest of its content.
        status: What `os.stat` says about the file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        descriptor = os.open(note_of(path), flags, 0o600)
        try:
            os.write(descriptor, _text(sha256, status))
        finally:
            os.close(descriptor)


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a file that belongs to this user, or None if there is none that can be read to its end.

    Raises:
        OSError: The machine is short of descriptors or memory, which says nothing about the file.
    """
    if own_file(path) is None:
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return None


def _text(sha256: str, status: os.stat_result) -> bytes:
    return f"{sha256} {status.st_size} {status.st_ino} {status.st_mtime_ns}\n".encode()
