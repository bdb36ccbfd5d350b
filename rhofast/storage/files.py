"""Read and write whole files, on this machine or behind an address: a reader never sees a half-written file."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO, cast

from rhofast.errors import ConfigError


class Uploaded(Protocol):
    """A path behind an address; see store_path.py."""

    def upload(self, file: Path) -> None:
        """Write a file of this machine to it, as a whole or not at all."""


def is_local(path: Path) -> bool:
    """Return whether a path is on this machine."""
    return isinstance(path, Path)


def open_regular(path: Path) -> BinaryIO:
    """Open a file of this machine for reading; nothing but a regular file is opened, and nothing is waited for.

    Args:
        path: The file, or a link to it.

    Returns:
        The open file.

    Raises:
        OSError: The file does not exist, cannot be opened, or is a folder, a FIFO, a socket or a device.
    """
    return open(path, "rb", opener=lambda name, _: open_regular_descriptor(Path(name)))


def open_regular_descriptor(path: Path) -> int:
    """Open a file of this machine as `open_regular` does and return its descriptor, which the caller closes."""
    # Without O_NONBLOCK, opening a FIFO waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_unicode(path: Path) -> None:
    """Check that a path that Arrow, FFmpeg and JSON are to hold is text, which they write as UTF-8.

    Raises:
        ConfigError: The path, or the current folder that it begins in, has bytes that are not UTF-8.
    """
    if is_local(path) and any("\ud800" <= one <= "\udfff" for one in str(path.absolute())):
        raise ConfigError(f"{path.absolute()}: the path is not UTF-8", hint="choose another folder, or rename it")


def check_writable(path: Path) -> None:
    """Check that a file can be written at `path`, before anything is computed.

    Raises:
        ConfigError: The path is a folder or not UTF-8, or its folder does not exist or is not writable.
    """
    check_unicode(path)
    if path.is_dir():
        raise ConfigError(f"{path}: a folder, not a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}", hint=f"create it: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: the folder {path.parent} is not writable")


def publish(temporary: Path, target: Path) -> None:
    """Move a finished local file to its final name, as a whole or not at all.

    Args:
        temporary: The finished file, on the same file system as a local target.
        target: Its final path, on this machine or in an object store.

    Raises:
        OSError: The file cannot be moved or uploaded.
        MachineError: The store of the target does not answer.
    """
    if is_local(target):
        flush(temporary)
        temporary.replace(target)
    else:
        cast(Uploaded, target).upload(temporary)
        temporary.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file. The file is the old one or the whole new one, even after a power failure.

    Args:
        path: The file, on this machine or in an object store.
        text: Its new content, written as UTF-8.

    Raises:
        OSError: The file cannot be written; no partial file remains.
    """
    with writing_atomically(path) as file:
        file.write(text)


@contextmanager
def writing_atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file that replaces `path` at the end of the block; after an exception the old file remains."""
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "text"
            with temporary.open("w", encoding="utf-8") as file:
                yield file
            publish(temporary, path)
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
    flush(path.parent)


@contextmanager
def replacing(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Provide a temporary file that replaces a local file at the end of the block.

    Args:
        path: The file to replace.
        suffix: End of the temporary file's name, for writers that choose a format by it.

    Yields:
        The path of a hidden file in the same folder, which no other process uses. After an exception it is deleted.

    Raises:
        OSError: The file cannot be replaced.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{suffix}")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write all bytes: one call of an unbuffered file may write only some of them."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
