"""Read parts of a file, on this machine or behind an address, without its rest.

`open_anywhere` gives a file that can seek, of which nothing is read that is skipped; `fetch_span` makes a local copy of
one part of a remote file.
"""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any, BinaryIO, cast

from rhofast.storage.address import redacted
from rhofast.storage.fetch import FetchError, remote_state, with_retries
from rhofast.storage.files import is_local, open_regular, write_all
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.network import RetryPolicy
from rhofast.storage.request_error import Kind, RequestError, short_answer
from rhofast.storage.store import StoreFolder

_POLICY = RetryPolicy(attempts=4)
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
        OSError: The file does not exist, cannot be read, is not a regular file, or its store does not say its size.
    """
    if is_local(path):
        return open_regular(path)
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(str(path)), read_ahead))


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
    """A remote file of known size; each read is one request."""

    def __init__(self, address: str) -> None:
        self._address, self._position = address, 0
        state = remote_state(address, _POLICY)
        if state is None:  # find out why
            try:
                _read_span(address, 0, 1, _POLICY)
            except FetchError as error:
                raise _as_system_error(error, address) from None
            raise OSError(errno.EREMOTEIO, "the server does not say its size", redacted(address))
        self._size = int(state[0])

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
        if count:
            try:
                buffer[:count] = _read_span(self._address, self._position, count, _POLICY)
            except FetchError as error:
                raise _as_system_error(error, self._address) from None
            self._position += count
        return count


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
