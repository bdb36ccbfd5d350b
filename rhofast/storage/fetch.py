"""Copy one remote file to this machine whose size and digest nobody has recorded: a video that becomes a sample.

storage/download.py is for the files of a shard set, which have a recorded size and digest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from rhofast.storage.files import write_all
from rhofast.storage.network import RetryPolicy
from rhofast.storage.open_store import open_store_file
from rhofast.storage.outages import Wait
from rhofast.storage.request_error import Kind, RequestError
from rhofast.storage.store import StoreFolder

Result = TypeVar("Result")

_MOST_BYTES = 1 << 37  # of an answer: it may have no end
_answering: set[str] = set()  # stores and hosts that have answered in this process: if they are away, they come back
_in_vain = [0.0]  # seconds for which this process has waited for stores that did not come back, or never were there


class FetchError(Exception):
    """A remote file cannot be read; the text says why, in one line.

    Attributes:
        kind: What could have been done about it.
    """

    def __init__(self, text: str, *, kind: Kind = Kind.FINAL) -> None:
        """Create an error from its text."""
        super().__init__(text)
        self.kind = kind

    @property
    def missing(self) -> bool:
        """Whether there is no such file."""
        return self.kind is Kind.MISSING


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

    A store that is away or busy, but has answered before, is waited for up to `policy.outage_s`, which is told
    (outages.py). One that has not come back by then is waited for as one that has never answered: for the rest of
    `policy.unknown_s`, which all such stores share. Credentials that are refused are looked up anew once.

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
    failed, renewed, wait = 0, False, Wait(address, policy.outage_s)
    place = wait.place
    while True:
        folder, name = None, ""
        try:
            folder, name = open_store_file(address, policy.timeout_s)
            result = use(folder, name)
        except RequestError as error:
            fault = error
        else:
            _answering.add(place)
            wait.ends()
            return result
        if fault.kind not in (Kind.AWAY, Kind.BUSY):
            _answering.add(place)
        if fault.kind is Kind.MISSING:
            raise FetchError(fault.text, kind=fault.kind) from None
        if fault.kind is Kind.DENIED and not renewed and folder is not None and folder.renew():
            renewed = True
            continue
        failed += 1
        is_final = fault.kind in (Kind.DENIED, Kind.FINAL, Kind.NO_RANGES)
        patience_s, waited = 0.0, wait.seconds
        if fault.kind in (Kind.AWAY, Kind.BUSY):
            at_most = math.inf if place in _answering else policy.unknown_s - _in_vain[0]
            patience_s = min(policy.outage_s, at_most)
        if is_final or (failed >= policy.attempts and waited >= patience_s):
            if patience_s > 0:
                _in_vain[0] += waited
                _answering.discard(place)
            tries = f", in {failed} attempts" if failed > 1 else ""
            raise FetchError(fault.text + tries, kind=fault.kind) from None
        if patience_s > 0:
            wait.goes_on(fault.text)
        pause = policy.pause(failed - 1, fault.wait_s)
        time.sleep(min(pause, patience_s - waited) if failed >= policy.attempts else pause)


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
