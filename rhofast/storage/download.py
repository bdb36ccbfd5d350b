"""Download whole files from a remote folder, check them, and retry from where the network failed.

Every URL that fsspec can open is accepted. Credentials come only from the environment that fsspec reads (for `s3://`,
that of botocore). No part of a URL reaches a shell, and nothing is written to the remote folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator
from typing import BinaryIO

from rhofast.errors import ShardFormatError, ShardMissingError
from rhofast.storage.address import check_address
from rhofast.storage.files import write_all
from rhofast.storage.network import (
    CHUNK,
    RetryPolicy,
    TooLargeError,
    is_final,
    is_missing,
    network_errors,
    open_store,
    open_stream,
    read_chunk,
    read_small,
    words,
)

Sleep = Callable[[float], None]


class _NetworkError(Exception):
    """The reason why a file was not received, or not to its end."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


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
    """A folder in an object store or on a web server, whose files are read as a whole. Thread-safe.

    Attributes:
        url: URL of the folder, without a slash at its end.
        retry_policy: How often and how long a download is tried.
    """

    def __init__(self, url: str, retry_policy: RetryPolicy | None = None) -> None:
        """Check the URL; nothing is connected yet.

        Args:
            url: URL of the folder, without user, password, query and fragment.
            retry_policy: How often and how long a download is tried; None for the defaults.

        Raises:
            ConfigError: The URL is malformed, holds a secret, or names an unknown kind of store.
            DependencyError: The package for this kind of store is not installed.
        """
        self.url = url = check_address(url, "shards").rstrip("/")
        self.retry_policy = retry_policy or RetryPolicy()
        try:
            self._store, self._root = open_store(url, self.retry_policy.timeout_s)
        except network_errors() as error:
            raise ShardMissingError(f"{url}: {words(error)}") from None

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
            try:
                left = max(0.1, end - time.monotonic())
                return read_small(self._store, f"{self._root}/{name}", max_bytes=max_bytes, seconds=left)
            except TooLargeError:
                raise ShardFormatError(f"{self.url}/{name}: larger than {max_bytes} bytes") from None
            except network_errors(ValueError) as error:
                is_last = time.monotonic() >= end
                self._pause_or_raise(name, error, attempt, _sleep_until(end), is_last=is_last)
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
                raise _NetworkError(TimeoutError(f"too slow: {received.size} of {size} bytes"))
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
            except _NetworkError as error:
                # Progress counts only beyond the best attempt: a store that always starts again must not loop forever.
                failed = 0 if received.size >= most + CHUNK else failed + 1
                most = max(most, received.size)
                is_last = time.monotonic() >= end
                self._pause_or_raise(name, error.cause, max(0, failed - 1), sleep, is_last=is_last)
            else:
                return

    def _attempt(self, name: str, received: _Received, size: int, sha256: str, sleep: Sleep) -> None:
        """Receive the rest of a file, then compare size and digest."""
        with contextlib.closing(self._chunks(name, size, received)) as chunks:
            for chunk in chunks:
                sleep(0)
                received.add(chunk)
        actual, digest = received.size, received.digest.hexdigest()
        if actual != size or digest != sha256:
            received.clear()
            raise _DigestError if actual == size else _NetworkError(OSError(f"received {actual} of {size} bytes"))

    def _chunks(self, name: str, size: int, received: _Received) -> Generator[bytes, None, None]:
        """Yield the rest of a file in chunks, at most one chunk more than its size.

        If the store does not answer range requests, `received` is cleared and the whole file is yielded.

        Raises:
            _NetworkError: The connection failed.
        """
        try:
            path = f"{self._root}/{name}"
            with open_stream(self._store, path, begin=received.size) as (remote, begins, _):
                if begins != received.size:
                    received.clear()
                while received.size <= size:
                    chunk = read_chunk(self._store, remote, 2 * self.retry_policy.timeout_s)
                    if not chunk:
                        return
                    yield chunk
        except network_errors() as error:
            raise _NetworkError(error) from error

    def _pause_or_raise(
        self, name: str, error: BaseException, attempt: int, sleep: Sleep, *, is_last: bool = False
    ) -> None:
        """Pause before the next attempt. Raise ShardMissingError if a retry will not help or none is left."""
        final = is_final(error) or is_missing(error)
        if final or is_last or attempt + 1 == self.retry_policy.attempts:
            reason = "no such file" if is_missing(error) else words(error)
            tries = "" if final else f", in {attempt + 1} attempts"
            raise ShardMissingError(f"{self.url}/{name}: {reason}{tries}") from None
        sleep(self.retry_policy.pause(attempt, error))


def _sleep_until(end: float) -> Sleep:
    """Return a function that sleeps, but not beyond `end` of the monotonic clock."""
    return lambda seconds: time.sleep(max(0.0, min(seconds, end - time.monotonic())))
