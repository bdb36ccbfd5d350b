"""Copy one remote file to this machine whose size and digest nobody has recorded: a video that becomes a sample.

storage/download.py is for the files of a shard set, which have a recorded size and digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from rhofast.storage.files import write_all
from rhofast.storage.network import RetryPolicy
from rhofast.storage.open_store import open_store_file
from rhofast.storage.request_error import Kind, RequestError
from rhofast.storage.store import StoreFolder

Result = TypeVar("Result")

_MOST_BYTES = 1 << 37  # of an answer: it may have no end


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
        with_retries(address, policy, lambda folder, name: _receive(folder, name, copy))
    except _WriteError as error:
        raise error.__cause__ or error from None


def remote_state(address: str, policy: RetryPolicy) -> list[Any] | None:
    """Return the size of a remote file and what its store says of its version; None if the store says neither.

    Args:
        address: Its address.
        policy: How often and how long the store is asked.
    """
    try:
        size, version = with_retries(address, policy, lambda folder, name: folder.state(name))
    except FetchError:
        return None
    return [size, version]


def with_retries(address: str, policy: RetryPolicy, use: Callable[[StoreFolder, str], Result]) -> Result:
    """Open the store of an address and use it, again if a request fails and another attempt may help.

    Args:
        address: The address.
        policy: How often and how long it is tried.
        use: Called with a folder and the name of the file in it.

    Returns:
        What `use` returns.

    Raises:
        FetchError: There is no such file, or the network failed in all attempts.
        Exception: Whatever else `use` raises.
    """
    for attempt in range(policy.attempts):
        try:
            return use(*open_store_file(address, policy.timeout_s))
        except RequestError as error:
            if error.kind is Kind.MISSING:
                raise FetchError("no such file at this address", missing=True) from None
            if error.kind in (Kind.DENIED, Kind.FINAL, Kind.NO_RANGES) or attempt + 1 == policy.attempts:
                tries = f", in {attempt + 1} attempts" if attempt else ""
                raise FetchError(error.text + tries) from None
            time.sleep(policy.pause(attempt, error.wait_s))
    raise AssertionError("the last attempt returns or raises")


def _receive(folder: StoreFolder, name: str, copy: Path) -> None:
    """Receive a file once, from its first byte to its last."""
    received = 0
    with folder.stream(name) as (chunks, _):
        try:
            file = copy.open("wb", buffering=0)
        except OSError as error:
            raise _WriteError from error
        with file:
            for chunk in chunks:
                received += len(chunk)
                if received > _MOST_BYTES:
                    raise FetchError(f"longer than {_MOST_BYTES} bytes")
                try:
                    write_all(cast(BinaryIO, file), chunk)
                except OSError as error:
                    raise _WriteError from error
