"""Download whole files from a remote folder, check them, and retry from where the network failed.

Every URL that fsspec can open is accepted. Credentials come only from the environment that fsspec reads (for `s3://`,
that of botocore). No part of a URL reaches a shell, and nothing is written to the remote folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from rhofast.errors import ConfigError, DependencyError, ShardFormatError, ShardMissingError
from rhofast.storage.address import check_address

_CHUNK = 1 << 22
_BLOCK = 1 << 24  # bytes to read ahead from stores that answer range requests
_INSTALL = "pip install 'rhofast[s3]'"
_FINAL_STATUS = range(400, 500)  # HTTP status codes for which a retry will not help,
_TRY_LATER = (408, 425, 429)  # except for these
_PARTIAL = 206

Sleep = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how long a download is tried.

    The pause after the n-th failed attempt is min(first_pause_s * 2**n, max_pause_s), times a random number in
    [0.5, 1).

    Attributes:
        attempts: Limit on successive attempts for one file that make no progress.
        first_pause_s: Pause after the first failed attempt, in seconds.
        max_pause_s: Limit on a pause, in seconds.
        timeout_s: Limit on a connection, and on each chunk of an answer, in seconds.
        failed_for_s: Seconds for which a file that failed is not requested again.
    """

    attempts: int = 6
    first_pause_s: float = 0.5
    max_pause_s: float = 20.0
    timeout_s: float = 30.0
    failed_for_s: float = 60.0


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
        _write_all(self._file, chunk)
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
            import fsspec
        except ImportError:
            raise DependencyError(f"{url}: fsspec is not installed", hint=_INSTALL) from None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(
                self.url, **_options(urlsplit(url).scheme, self.retry_policy.timeout_s)
            )
        except ValueError as error:
            raise ConfigError(
                f"{url}: {error}", hint="use file://, s3://, https:// or another scheme of fsspec"
            ) from None
        except ImportError as error:
            raise DependencyError(f"{url}: {error}", hint=_INSTALL) from None
        self._network_errors = _network_errors()

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            ShardMissingError: The file is not there, or cannot be read after all attempts.
        """
        for attempt in range(self.retry_policy.attempts):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except self._network_errors as error:
                self._pause_or_raise(name, error, attempt, time.sleep)
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
            ShardMissingError: The file is not there, or cannot be read after all attempts.
            ShardFormatError: The file had another content in two attempts.
            OSError: `file` cannot be written.
        """
        received, differed, failed, most = _Received(file), False, 0, 0
        while True:
            try:
                self._attempt(name, received, size, sha256, sleep)
            except _DigestError:
                if differed:
                    raise ShardFormatError(
                        f"{self.url}/{name}: its SHA-256 differs from the recorded one, in 2 downloads",
                        hint="the file was damaged or replaced: upload it again",
                    ) from None
                differed = True
            except _NetworkError as error:
                # Progress counts only beyond the best attempt: a store that always starts again must not loop forever.
                failed = 0 if received.size >= most + _CHUNK else failed + 1
                most = max(most, received.size)
                self._pause_or_raise(name, error.cause, max(0, failed - 1), sleep)
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
            with self._opened(f"{self._root}/{name}", size, received.size) as (remote, begins):
                if begins != received.size:
                    received.clear()
                while received.size <= size and (chunk := remote.read(_CHUNK)):
                    yield chunk
        except self._network_errors as error:
            raise _NetworkError(error) from error

    @contextlib.contextmanager
    def _opened(self, path: str, size: int, begin: int) -> Iterator[tuple[Any, int]]:
        """Open a remote file at byte `begin`. Yield the file and its position, which is 0 if it cannot seek."""
        if not self._http:
            with self._fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as remote:
                yield remote, remote.seek(begin) if begin and remote.seekable() else 0
            return
        # One request for the whole rest: fsspec would request one part after the other, and wait for each.
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={begin}-"} if begin else {}
        with self._fs.open(path, "rb", size=size, block_size=0, headers=headers) as remote:
            yield remote, begin if remote.r.status == _PARTIAL else 0

    @property
    def _http(self) -> bool:
        return urlsplit(self.url).scheme in ("http", "https")

    def _pause_or_raise(self, name: str, error: BaseException, attempt: int, sleep: Sleep) -> None:
        """Pause before the next attempt. Raise ShardMissingError if a retry will not help or none is left."""
        status = getattr(error, "status", None)
        final = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
        final |= status in _FINAL_STATUS and status not in _TRY_LATER
        final |= type(error).__name__ == "NoCredentialsError"
        if final or attempt + 1 == self.retry_policy.attempts:
            reason = "no such file" if isinstance(error, FileNotFoundError) else _one_line(error)
            tries = "" if final else f", in {attempt + 1} attempts"
            raise ShardMissingError(f"{self.url}/{name}: {reason}{tries}") from None
        pause = min(self.retry_policy.first_pause_s * 2**attempt, self.retry_policy.max_pause_s)
        sleep(pause * (0.5 + 0.5 * random.SystemRandom().random()))


def _write_all(file: BinaryIO, content: bytes) -> None:
    """Write all bytes: one call of an unbuffered file may write only some of them."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _options(scheme: str, timeout_s: float) -> dict[str, Any]:
    """Return options for fsspec that add time limits to its own configuration."""
    from fsspec.config import conf

    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {**conf.get(scheme, {}).get("client_kwargs", {}), "timeout": timeout}}
    if scheme == "s3":
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        return {"config_kwargs": {**conf.get(scheme, {}).get("config_kwargs", {}), **limits}}
    return {}


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the loaded packages raise for a failed network; not all are OSErrors."""
    names = (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    )
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return (OSError, EOFError, *(kind for kind in found if kind is not None))


def _one_line(error: BaseException) -> str:
    status = getattr(error, "status", None)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if status is None else f"{status} {getattr(error, 'message', '')}".strip()
