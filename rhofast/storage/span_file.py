"""Read parts of a file, on this machine or behind an address, without its rest.

`open_anywhere` gives a file that can seek, of which nothing is read that is skipped; `fetch_span` makes a local copy of
one part of a remote file.
"""

from __future__ import annotations

import errno
import io
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from rhofast.storage.address import redacted
from rhofast.storage.fetch import FetchError, fetch, with_retries
from rhofast.storage.files import is_local, open_regular, write_all
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.network import RetryPolicy
from rhofast.storage.request_error import Kind, RequestError, short_answer
from rhofast.storage.store import StoreFolder

_POLICY = RetryPolicy(attempts=4, outage_s=120.0)
_AHEAD = 1 << 14  # bytes that are read at once of a remote file: the header of a member and the small ones behind it
_PIECE = 8 << 20  # bytes of a request for a part that is copied


def open_anywhere(path: Path, *, read_ahead: int = _AHEAD) -> BinaryIO:
    """Open a file for reading in any order.

    Args:
        path: The file, on this machine or in an object store or on a web server.
        read_ahead: Bytes of a remote file that are requested at once, at least.

    Returns:
        The file. Reading a remote one raises OSError when it fails in all attempts.

    Raises:
        OSError: The file does not exist, cannot be read, or is not a regular file.
    """
    if is_local(path):
        return open_regular(path)
    address = str(path)
    try:
        size = with_retries(address, _POLICY, lambda folder, name: folder.state(name))[0]
        first = _read_span(address, 0, min(size, read_ahead), _POLICY) if size else b""
    except FetchError as error:
        if error.kind not in (Kind.FINAL, Kind.NO_RANGES):
            raise _as_system_error(error, address) from None
        return _open_copy(address)
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(address, size, first, read_ahead)))


def _open_copy(address: str) -> BinaryIO:
    """Open a copy of a file whose server does not say its size, or gives it only as a whole; raises OSError."""
    copy = tempfile.NamedTemporaryFile(prefix="rhofast-copy.")  # noqa: SIM115 - the caller closes it
    try:
        fetch(address, Path(copy.name), _POLICY)
    except FetchError as error:
        copy.close()
        raise _as_system_error(error, address) from None
    return cast(BinaryIO, copy)


def fetch_span(address: str, copy: Path, offset: int, size: int, policy: RetryPolicy) -> None:
    """Copy a part of a remote file to this machine.

    Args:
        address: Address of the file.
        copy: The local file to write.
        offset: Position of the first byte.
        size: Number of bytes.
        policy: How often and how long each piece of the part is requested.

    Raises:
        FetchError: There is no such file, it ends before the part does, or it cannot be read after all attempts.
        OSError: `copy` cannot be written.
    """
    with copy.open("wb", buffering=0) as file:
        for begin in range(offset, offset + size, _PIECE):
            content = _read_span(address, begin, min(_PIECE, offset + size - begin), policy)
            write_all(cast(BinaryIO, file), content)


class _RemoteFile(io.RawIOBase):
    """A remote file of known size; one request for each block of it that is read.

    Args:
        address: Its address.
        size: Its size in bytes.
        first: Its first bytes.
        read_ahead: Bytes of a request, at least.
    """

    def __init__(self, address: str, size: int, first: bytes, read_ahead: int) -> None:
        self._address, self._size, self._read_ahead = address, size, read_ahead
        self._position, self._block, self._begin = 0, memoryview(first), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        if not count:
            return 0
        if not self._begin <= self._position < self._begin + len(self._block):
            self._ask(count)
        content = self._block[self._position - self._begin :][:count]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:
        content = bytearray(max(0, self._size - self._position))
        read = 0
        while read < len(content):
            read += self.readinto(memoryview(content)[read : read + _PIECE])
        return bytes(content)

    def _ask(self, count: int) -> None:
        """Request the block that begins here."""
        size = min(max(count, self._read_ahead), self._size - self._position)
        try:
            block = _read_span(self._address, self._position, size, _POLICY)
        except FetchError as error:
            raise _as_system_error(error, self._address) from None
        self._block, self._begin = memoryview(block), self._position


def _as_system_error(error: FetchError, address: str) -> OSError:
    return OSError(errno.ENOENT if error.missing else errno.EREMOTEIO, str(error), redacted(address))


def _read_span(address: str, begin: int, size: int, policy: RetryPolicy) -> bytes:
    """Return `size` bytes of a remote file from `begin` on; raises FetchError."""

    def read(folder: StoreFolder, name: str) -> bytes:
        try:
            (content,) = wait_for(folder.spans(name, [(begin, size)]), policy.total_s)
        except TimeoutError:
            raise RequestError(Kind.PASSING, f"timed out: not received within {policy.total_s:g} s") from None
        if len(content) != size:
            raise short_answer(len(content), size)
        return bytes(content)

    return with_retries(address, policy, read)
