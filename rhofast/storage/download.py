"""Download whole files from a remote folder, check them, and go on from where the network failed.

Every address that storage/store.py opens is accepted. No part of it reaches a shell, and nothing is written to the
remote folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import BinaryIO

from rhofast.errors import ShardFormatError, ShardMissingError
from rhofast.storage.address import check_address
from rhofast.storage.files import write_all
from rhofast.storage.network import CHUNK, RetryPolicy
from rhofast.storage.open_store import open_store_folder
from rhofast.storage.request_error import Kind, RequestError, short_answer
from rhofast.storage.store import StoreFolder

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
        end = time.monotonic() + self.retry_policy.total_s
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
                return bytes(content)
            except RequestError as fault:
                is_last = time.monotonic() >= end
                self._pause_or_raise(name, fault, attempt, _sleep_until(end), is_last=is_last)
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
            OSError: `file` cannot be written.
        """
        received, differed, failed, most = _Received(file), False, 0, 0
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
                failed = 0 if received.size >= most + CHUNK else failed + 1
                most = max(most, received.size)
                self._pause_or_raise(name, fault, max(0, failed - 1), sleep, is_last=time.monotonic() >= end)
            else:
                return

    def _attempt(self, name: str, received: _Received, size: int, sha256: str, sleep: Sleep) -> None:
        """Receive the rest of a file, at most one chunk more than its size; then compare size and digest."""
        with self.store.stream(name, begin=received.size) as (chunks, position):
            if position != received.size:
                received.clear()
            for chunk in chunks:
                sleep(0)
                received.add(chunk)
                if received.size > size:
                    break
        actual, digest = received.size, received.digest.hexdigest()
        if actual != size or digest != sha256:
            received.clear()
            raise _DigestError if actual == size else short_answer(actual, size)

    def _pause_or_raise(
        self, name: str, fault: RequestError, attempt: int, sleep: Sleep, *, is_last: bool = False
    ) -> None:
        """Pause before the next attempt. Raise ShardMissingError if a retry will not help or none is left."""
        # Whole files are asked for without a range, but for their rest.
        final = fault.kind in (Kind.MISSING, Kind.DENIED, Kind.FINAL)
        if final or is_last or attempt + 1 == self.retry_policy.attempts:
            tries = "" if final else f", in {attempt + 1} attempts"
            raise ShardMissingError(f"{self.url}/{name}: {fault.text}{tries}") from None
        sleep(self.retry_policy.pause(attempt, fault.wait_s))


def _sleep_until(end: float) -> Sleep:
    """Return a function that sleeps, but not beyond `end` of the monotonic clock."""
    return lambda seconds: time.sleep(max(0.0, min(seconds, end - time.monotonic())))
