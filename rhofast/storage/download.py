"""Whole files from a folder behind an address: fetched, compared with what they should be, tried again from where the
network failed.

Whatever fsspec opens can be an address; what its ordinary environment holds (for `s3://` that of boto) is the only
place for credentials. No part of an address reaches a shell. What it is not: it keeps no files (cache.py), and writes
nothing to where they come from.
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

_CHUNK = 1 << 22
_BLOCK = 1 << 24  # bytes fetched ahead where a store answers requests for a part
_INSTALL = "pip install 'rhofast[s3]'"
_FINAL_STATUS = range(400, 500)  # of HTTP: asking again will not help
_TRY_LATER = (408, 425, 429)  # but for these
_PARTIAL = 206

Wait = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """When to give up. attempts: tries of one file in succession that bring no new piece; the pause after the n-th
    of them is min(first_s * 2**n, most_s) times a random number in [0.5, 1). timeout_s: for a connection, and for each
    piece of an answer. again_s: for so long a file that could not be had is not asked for again."""

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20.0
    timeout_s: float = 30.0
    again_s: float = 60.0


class _NetworkError(Exception):
    """Why a file did not come, or not to its end."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _DigestError(Exception):
    """What came has the right length and another content."""


class _Taken:
    """What has come of a file so far, over all attempts."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.clear()

    def add(self, piece: bytes) -> None:
        _write(self._file, piece)
        self.digest.update(piece)
        self.size += len(piece)

    def clear(self) -> None:
        """Begin again."""
        self._file.seek(0)
        self.digest, self.size = hashlib.sha256(), 0


class RemoteFolder:
    """A folder behind an address, whose files can be read from their beginning to their end. Thread-safe."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Connects to nothing yet. Raises ConfigError, DependencyError."""
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"{url}: {error}") from None
        if parts.password is not None:
            raise ConfigError(
                f"{parts.scheme}://{parts.hostname}: no passwords in addresses",
                hint="give credentials in the environment, as fsspec documents for that store",
            )
        if parts.query or parts.fragment or "::" in url:
            raise ConfigError(f"{url}: not the plain address of a folder")
        try:
            import fsspec
        except ImportError:
            raise DependencyError(f"{url}: fsspec is not installed", hint=_INSTALL) from None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **_options(parts.scheme, self.patience.timeout_s))
        except ValueError as error:
            raise ConfigError(f"{url}: {error}", hint="known: file://, s3://, https:// and what fsspec opens") from None
        except ImportError as error:
            raise DependencyError(f"{url}: {error}", hint=_INSTALL) from None
        self._failures = _failures()

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises ShardMissingError."""
        for attempt in range(self.patience.attempts):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except self._failures as error:
                self._fail(name, error, attempt, time.sleep)
        raise AssertionError("the last attempt raises")

    def download(self, name: str, file: BinaryIO, *, size: int, sha256: str, wait: Wait) -> None:
        """Write a file of `size` bytes to `file`. wait: called with 0 between pieces, and to pause; may raise to stop.
        Raises ShardMissingError, ShardFormatError for another content, OSError where `file` cannot be written."""
        taken, differed, failed, most = _Taken(file), False, 0, 0
        while True:
            try:
                self._attempt(name, taken, size, sha256, wait)
            except _DigestError:
                if differed:
                    raise ShardFormatError(
                        f"{self.url}/{name}: its digest is not the one that the set's description names, twice over",
                        hint="it was damaged or replaced: put it there again",
                    ) from None
                differed = True
            except _NetworkError as error:
                # Beyond what any attempt came to: a store that always begins again must not go on for ever.
                failed = 0 if taken.size >= most + _CHUNK else failed + 1
                most = max(most, taken.size)
                self._fail(name, error.cause, max(0, failed - 1), wait)
            else:
                return

    def _attempt(self, name: str, taken: _Taken, size: int, sha256: str, wait: Wait) -> None:
        """The rest of a file, after what was taken."""
        with contextlib.closing(self._pieces(name, size, taken)) as pieces:
            for piece in pieces:
                wait(0)
                taken.add(piece)
        got, digest = taken.size, taken.digest.hexdigest()
        if got != size or digest != sha256:
            taken.clear()
            raise _DigestError if got == size else _NetworkError(OSError(f"{got} bytes came instead of {size}"))

    def _pieces(self, name: str, size: int, taken: _Taken) -> Generator[bytes, None, None]:
        """The bytes of a file after what was taken, as they come, and at most one piece more than it should have; all
        of them, with nothing taken any more, where the store does not answer for a part. Raises _NetworkError."""
        try:
            with self._opened(f"{self._root}/{name}", size, taken.size) as (remote, begins):
                if begins != taken.size:
                    taken.clear()
                while taken.size <= size and (piece := remote.read(_CHUNK)):
                    yield piece
        except self._failures as error:
            raise _NetworkError(error) from error

    @contextlib.contextmanager
    def _opened(self, path: str, size: int, begin: int) -> Iterator[tuple[Any, int]]:
        """(a file to be read on, the byte that it stands at): `begin`, or 0 where that cannot be had."""
        if not self._http:
            with self._fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as remote:
                yield remote, remote.seek(begin) if begin and remote.seekable() else 0
            return
        # In one answer, however long: fsspec would ask for parts one after the other, and wait for each.
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={begin}-"} if begin else {}
        with self._fs.open(path, "rb", size=size, block_size=0, headers=headers) as remote:
            yield remote, begin if remote.r.status == _PARTIAL else 0

    @property
    def _http(self) -> bool:
        return urlsplit(self.url).scheme in ("http", "https")

    def _fail(self, name: str, error: BaseException, attempt: int, wait: Wait) -> None:
        """Pause before another attempt; raises ShardMissingError where there is none."""
        status = getattr(error, "status", None)
        final = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
        final |= status in _FINAL_STATUS and status not in _TRY_LATER
        final |= type(error).__name__ == "NoCredentialsError"
        if final or attempt + 1 == self.patience.attempts:
            what = "not there" if isinstance(error, FileNotFoundError) else _in_words(error)
            tries = "" if final else f", {attempt + 1} times"
            raise ShardMissingError(f"{self.url}/{name}: {what}{tries}") from None
        pause = min(self.patience.first_s * 2**attempt, self.patience.most_s)
        wait(pause * (0.5 + 0.5 * random.SystemRandom().random()))


def _write(file: BinaryIO, content: bytes) -> None:
    """All of it: an unbuffered file may take a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _options(scheme: str, timeout_s: float) -> dict[str, Any]:
    """What fsspec is to be told, beside what its own configuration says: an end to every wait."""
    from fsspec.config import conf

    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {**conf.get(scheme, {}).get("client_kwargs", {}), "timeout": timeout}}
    if scheme == "s3":
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        return {"config_kwargs": {**conf.get(scheme, {}).get("config_kwargs", {}), **limits}}
    return {}


def _failures() -> tuple[type[Exception], ...]:
    """What the packages that are loaded by now raise when a network fails; some of it is no OSError."""
    names = (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    )
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return (OSError, EOFError, *(one for one in found if one is not None))


def _in_words(error: BaseException) -> str:
    status = getattr(error, "status", None)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if status is None else f"{status} {getattr(error, 'message', '')}".strip()
