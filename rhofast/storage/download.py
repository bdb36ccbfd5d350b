"""Download whole files from a remote folder, check them, and go on from where the network failed.

Every address that storage/store.py opens is accepted. No part of it reaches a shell, and nothing is written to the
remote folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import BinaryIO

from rhofast.errors import MachineError, ShardFormatError, ShardMissingError
from rhofast.storage.address import check_address
from rhofast.storage.files import write_all
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.network import CHUNK, RetryPolicy
from rhofast.storage.open_store import open_store_folder
from rhofast.storage.outages import OUTAGE_HINT, Wait
from rhofast.storage.request_error import Kind, RequestError, short_answer
from rhofast.storage.store import StoreFolder

_SAME_OUTAGE_S = 120.0  # between two sights of one outage, at most

Sleep = Callable[[float], None]


class _DigestError(Exception):
    """The received file has the right size and another content."""


class _Received:
    """What was received of a file so far, over all attempts."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.clear()

    def add(self, chunk: bytes) -> None:
        write_all(self._file, chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def clear(self) -> None:
        """Start again from the first byte."""
        self._file.seek(0)
        self.digest, self.size = hashlib.sha256(), 0


class RemoteFolder:
    """A folder in an object store or on a web server. Thread-safe.

    Attributes:
        url: URL of the folder, without a slash at its end.
        retry_policy: How often and how long a download is tried.
        store: The folder as the store gives it.
        probe: A small file of the folder that is known to be there; it tells an outage from a fault of one file.
        fault: What is wrong with the store, while it does not answer.
    """

    def __init__(self, url: str, retry_policy: RetryPolicy | None = None) -> None:
        """Check the URL; nothing is connected yet.

        Args:
            url: URL of the folder, without user, password, query and fragment.
            retry_policy: How often and how long a download is tried; None for the defaults.

        Raises:
            ConfigError: The URL is malformed, holds a secret, or names an unknown kind of store.
            DependencyError: The package for this kind of store is not installed.
            ShardMissingError: The store cannot be reached.
        """
        self.url = url = check_address(url, "shards").rstrip("/")
        self.retry_policy = retry_policy or RetryPolicy()
        self.probe = self.fault = ""
        self._away = (0.0, float("-inf"))  # when an outage began, and when it was last seen: of all files together
        try:
            self.store: StoreFolder = open_store_folder(url, self.retry_policy.timeout_s)
        except RequestError as fault:
            raise ShardMissingError(f"{url}: {fault.text}") from None

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """Return the content of a small file.

        Args:
            name: Name of the file in the folder.
            max_bytes: Limit on its size in bytes.

        Raises:
            ShardMissingError: The file is not there, or cannot be read after all attempts or within the time limit.
            ShardFormatError: The file is larger than `max_bytes`.
        """
        end, wait = time.monotonic() + self.retry_policy.total_s, Wait(self.url, self.retry_policy.total_s)
        for attempt in range(self.retry_policy.attempts):
            content = bytearray()
            try:
                with self.store.stream(name) as (chunks, _):
                    for chunk in chunks:
                        content += chunk
                        if len(content) > max_bytes:
                            raise ShardFormatError(f"{self.url}/{name}: larger than {max_bytes} bytes")
                        if time.monotonic() >= end:
                            raise RequestError(Kind.PASSING, "timed out")
                wait.ends()
                return bytes(content)
            except RequestError as fault:
                is_last = time.monotonic() >= end
                self._pause_or_raise(name, fault, attempt, _sleep_until(end), wait, is_last=is_last)
        raise AssertionError("the last attempt raises")

    def download(self, name: str, file: BinaryIO, *, size: int, sha256: str, sleep: Sleep) -> None:
        """Write the content of a file to an open local file.

        Args:
            name: Name of the file in the folder.
            file: Local file, open for writing.
            size: Expected size in bytes.
            sha256: Expected SHA-256, hexadecimal.
            sleep: Function that waits for a number of seconds. It is called with 0 between chunks, and for each pause
                between attempts. It may raise an exception to stop the download.

        Raises:
            ShardMissingError: The file is not there, or cannot be read after all attempts or within the time limit.
            ShardFormatError: The file had another content in two attempts.
            MachineError: The store does not answer, which says nothing about the file.
            OSError: `file` cannot be written.
        """
        received, differed, failed, most, suspected = _Received(file), False, 0, 0, False
        outage_s = self.retry_policy.outage_s
        wait = Wait(self.url, outage_s)
        end = time.monotonic() + self.retry_policy.total_s + size / self.retry_policy.min_rate

        def sleep_in_time(seconds: float) -> None:
            if time.monotonic() >= end:
                raise RequestError(Kind.PASSING, f"too slow: {received.size} of {size} bytes")
            sleep(seconds)

        while True:
            try:
                self._attempt(name, received, size, sha256, sleep_in_time)
            except _DigestError:
                if differed:
                    raise ShardFormatError(
                        f"{self.url}/{name}: its SHA-256 differs from the recorded one, in 2 downloads",
                        hint="the file was damaged or replaced: upload it again",
                    ) from None
                differed = True
            except RequestError as fault:
                # Progress counts only beyond the best attempt: a store that always starts again must not loop forever.
                failed += 1
                if received.size >= most + CHUNK:
                    wait.ends()
                    failed, wait = 0, Wait(self.url, outage_s)
                most = max(most, received.size)
                is_last = time.monotonic() >= end
                number = max(0, failed - 1)
                suspected = self._pause_or_raise(
                    name, fault, number, sleep, wait, is_last=is_last, is_patient=outage_s > 0, suspected=suspected
                )
            else:
                wait.ends()
                self._away = (0.0, float("-inf"))
                return

    def _attempt(self, name: str, received: _Received, size: int, sha256: str, sleep: Sleep) -> None:
        """Receive the rest of a file, at most one chunk more than its size; then compare size and digest."""
        with self.store.stream(name, begin=received.size) as (chunks, position):
            if position != received.size:
                received.clear()
            for chunk in chunks:
                sleep(0)
                received.add(chunk)
                self.fault = ""
                if received.size > size:
                    break
        actual, digest = received.size, received.digest.hexdigest()
        if actual != size or digest != sha256:
            received.clear()
            raise _DigestError if actual == size else short_answer(actual, size)

    def _pause_or_raise(
        self,
        name: str,
        fault: RequestError,
        attempt: int,
        sleep: Sleep,
        wait: Wait,
        *,
        is_last: bool = False,
        is_patient: bool = False,
        suspected: bool = False,
    ) -> bool:
        """Pause before the next attempt. Raise ShardMissingError if a retry will not help or none is left.

        If the store is at fault and not the file, and `is_patient`, it is waited for `outage_s` since the wait began,
        and then MachineError is raised.

        Returns:
            Whether the file is suspected: the store answers. Only if the next attempt fails, too, it is the file.
        """
        # Whole files are asked for without a range, but for their rest.
        final = fault.kind in (Kind.MISSING, Kind.DENIED, Kind.FINAL)
        if fault.kind is Kind.DENIED and attempt == 0 and not is_last and self.store.renew():
            final = False  # the credentials may have expired
        is_suspected = False
        if final or is_last or attempt + 1 >= self.retry_policy.attempts:
            where, tries = f"{self.url}/{name}: {fault.text}", "" if final else f", in {attempt + 1} attempts"
            is_of_the_store = is_patient and self._is_of_the_store(fault)
            is_certain = suspected or not is_patient
            if not is_of_the_store and (is_certain or fault.kind in (Kind.MISSING, Kind.FINAL)):
                raise ShardMissingError(f"{where}{tries}") from None
            waited = self._waited(wait.began) if is_of_the_store else 0.0
            if is_of_the_store and waited >= self.retry_policy.outage_s:
                raise MachineError(f"{where}, for {waited:.0f} s", hint=OUTAGE_HINT) from None
            is_suspected = not is_of_the_store
        self.fault = fault.text
        wait.goes_on(fault.text)
        sleep(self.retry_policy.pause(attempt, fault.wait_s))
        return is_suspected

    def _waited(self, since: float) -> float:
        """Return how long the outage has lasted that a file meets which has failed since then."""
        now = time.monotonic()
        began, seen = self._away
        self._away = (began if now - seen < _SAME_OUTAGE_S else since, now)
        return now - self._away[0]

    def _is_of_the_store(self, fault: RequestError) -> bool:
        """Return whether a fault says something about the store, and not about the file."""
        if fault.kind in (Kind.AWAY, Kind.BUSY):
            return True
        if fault.kind in (Kind.MISSING, Kind.FINAL) or not self.probe:
            return False
        try:
            wait_for(self.store.spans(self.probe, [(0, 1)]), self.retry_policy.timeout_s)
        except RequestError as error:
            return error.kind not in (Kind.NO_RANGES, Kind.MISSING)
        except TimeoutError:
            pass
        else:
            return False
        return True


def _sleep_until(end: float) -> Sleep:
    """Return a function that sleeps, but not beyond `end` of the monotonic clock."""
    return lambda seconds: time.sleep(max(0.0, min(seconds, end - time.monotonic())))
