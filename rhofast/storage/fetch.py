"""Copy one remote file to this machine whose size and digest nobody has recorded: a video that becomes a sample.

storage/download.py is for the files of a shard set, which have a recorded size and digest.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from rhofast.storage.files import write_all
from rhofast.storage.network import (
    RetryPolicy,
    file_info,
    is_final,
    is_missing,
    network_errors,
    open_store,
    open_stream,
    read_chunk,
    words,
)

Result = TypeVar("Result")

_MOST_UNANNOUNCED = 1 << 34  # bytes of an answer whose length is not said: it may have no end
_INFO_S = 60.0


class FetchError(Exception):
    """A remote file cannot be read; the text says why, in one line.

    Attributes:
        missing: Whether there is no such file.
    """

    def __init__(self, text: str, *, missing: bool = False) -> None:
        """Create an error from its text."""
        super().__init__(text)
        self.missing = missing


class _WriteError(Exception):
    """The copy cannot be written; the cause is the OSError."""


def fetch(address: str, copy: Path, policy: RetryPolicy) -> None:
    """Copy a remote file to this machine.

    Args:
        address: Its address.
        copy: The local file to write. It is written anew in each attempt.
        policy: How often and how long the file is requested.

    Raises:
        FetchError: There is no such file, or it cannot be read after all attempts.
        OSError: `copy` cannot be written.
        RhofastError: Nothing opens such an address.
    """
    try:
        with_retries(address, policy, lambda store, path: _receive(store, path, copy, policy.timeout_s))
    except _WriteError as error:
        raise error.__cause__ or error from None


def remote_state(address: str, policy: RetryPolicy) -> list[Any] | None:
    """Return the size of a remote file and what its store says of its version; None if the store says neither.

    Args:
        address: Its address.
        policy: How often and how long the store is asked.
    """
    try:
        info = with_retries(address, policy, lambda store, path: file_info(store, path, min(_INFO_S, policy.total_s)))
    except FetchError:
        return None
    if info is None or info.get("size") is None:
        return None
    version = next((info[key] for key in ("ETag", "Last-Modified", "LastModified", "mtime") if info.get(key)), "")
    return [int(info["size"]), str(version)]


def with_retries(address: str, policy: RetryPolicy, use: Callable[[Any, str], Result]) -> Result:
    """Open the store of an address and use it, again if the network fails and another attempt may help.

    Args:
        address: The address.
        policy: How often and how long it is tried.
        use: Called with the file system of fsspec and the path in it.

    Returns:
        What `use` returns.

    Raises:
        FetchError: There is no such file, or the network failed in all attempts.
        Exception: Whatever else `use` raises.
    """
    for attempt in range(policy.attempts):
        try:
            return use(*open_store(address, policy.timeout_s, **_as_signed(address)))
        except network_errors(ValueError) as error:
            if is_missing(error):
                raise FetchError("no such file at this address", missing=True) from None
            if is_final(error) or attempt + 1 == policy.attempts:
                tries = f", in {attempt + 1} attempts" if attempt else ""
                raise FetchError(words(error) + tries) from None
            time.sleep(policy.pause(attempt, error))
    raise AssertionError("the last attempt returns or raises")


def _receive(store: Any, path: str, copy: Path, timeout_s: float) -> None:
    """Receive a file once, from its first byte to its last."""
    received = 0
    with open_stream(store, path) as (remote, _, size):
        try:
            file = copy.open("wb", buffering=0)
        except OSError as error:
            raise _WriteError from error
        with file:
            while chunk := read_chunk(store, remote, 2 * timeout_s):
                received += len(chunk)
                if size is None and received > _MOST_UNANNOUNCED:
                    raise FetchError(f"its length is not announced, and it is longer than {_MOST_UNANNOUNCED} bytes")
                try:
                    write_all(cast(BinaryIO, file), chunk)
                except OSError as error:
                    raise _WriteError from error
    if size is not None and received != size:
        raise OSError(errno.EREMOTEIO, f"received {received} of {size} bytes")


def _as_signed(address: str) -> dict[str, Any]:
    """Return the option of fsspec that sends a web address as it is written, if it is written as one."""
    if not address.startswith(("http://", "https://")):
        return {}
    return {"encoded": re.fullmatch(r"(?:[!#$&-;=?-Z_a-z~\[\]]|%[0-9A-Fa-f]{2})+", address) is not None}
