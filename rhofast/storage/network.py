"""What fsspec and its packages are asked for, with time limits, and what their errors mean.

The only place that knows aiohttp, botocore and fsspec by name.
"""

from __future__ import annotations

import errno
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rhofast.errors import ConfigError, DependencyError
from rhofast.storage.address import redacted
from rhofast.storage.ssh import read_at_once, ssh_options

CHUNK = 1 << 22
TIMEOUT_S = 30.0  # of a connection, and of each wait for more of an answer
_BLOCK = 1 << 24  # bytes to read ahead from stores that answer range requests
_INSTALL = "pip install 'rhofast[s3]'"
_FINAL_STATUS = range(300, 500)  # HTTP status codes for which a retry will not help,
_TRY_LATER = (408, 425, 429)  # except for these
_GONE = (404, 410)
_PARTIAL = 206
_PARSER = "aiohttp.http_exceptions"
_HTTP, _SSH = ("http", "https"), ("sftp", "ssh")
_LONGEST_WORDS = 300  # characters of an error of a library
# Errors of botocore for which a retry will not help; not all have a common base class.
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how long a file is requested.

    The pause after the n-th failed attempt is min(first_pause_s * 2**n, max_pause_s), times a random number in
    [0.5, 1).

    Attributes:
        attempts: Limit on successive attempts for one file that make no progress.
        first_pause_s: Pause after the first failed attempt, in seconds.
        max_pause_s: Limit on a pause, in seconds.
        timeout_s: Limit on a connection, and on each chunk of an answer, in seconds.
        total_s: Limit on one file, all attempts together, in seconds; a large file has more (`min_rate`).
        min_rate: Bytes per second for which `total_s` is extended.
        failed_for_s: Seconds for which a file that failed is not requested again.
        outage_s: Seconds for which more attempts are made while a store does not answer that did so before.
        unknown_s: The same for stores that have not answered this process, which may not exist: of all together.
    """

    attempts: int = 6
    first_pause_s: float = 0.5
    max_pause_s: float = 20.0
    timeout_s: float = TIMEOUT_S
    total_s: float = 600.0
    min_rate: float = 10_000.0
    failed_for_s: float = 60.0
    outage_s: float = 0.0
    unknown_s: float = 0.0

    def pause(self, attempt: int, asked_s: float = 0.0) -> float:
        """Return the seconds to wait after a failed attempt.

        Args:
            attempt: Number of failed attempts before this one.
            asked_s: Seconds that the store asked to wait; `max_pause_s` limits them, too.
        """
        pause: float = min(self.first_pause_s * 2.0 ** min(attempt, 30), self.max_pause_s)
        pause *= 0.5 + 0.5 * random.SystemRandom().random()
        return max(pause, min(asked_s, self.max_pause_s))


def store_options(address: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return options for fsspec that add time limits to its own configuration.

    Args:
        address: Any address of the store.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.
    """
    from fsspec.config import conf

    scheme = urlsplit(address).scheme
    if scheme in _HTTP:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {**conf.get(scheme, {}).get("client_kwargs", {}), "timeout": timeout}}
    if scheme == "s3":
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 1}}
        return {"config_kwargs": {**limits, **conf.get(scheme, {}).get("config_kwargs", {})}}
    if scheme in _SSH:
        return ssh_options(address, timeout_s, {**conf.get("sftp", {}), **conf.get("ssh", {})})
    return {}


def as_written(address: str) -> dict[str, Any]:
    """Return the option of fsspec that sends a web address as it is written, if it is written as one."""
    if urlsplit(address).scheme not in _HTTP:
        return {}
    return {"encoded": re.fullmatch(r"(?:[!#$&-;=?-Z_a-z~\[\]]|%[0-9A-Fa-f]{2})+", address) is not None}


def open_store(address: str, timeout_s: float = TIMEOUT_S, **more: Any) -> tuple[Any, str]:
    """Return the file system of fsspec for an address, and the path in it.

    Args:
        address: A checked address; see `check_address`.
        timeout_s: As for `store_options`.
        **more: More options of the file system.

    Raises:
        ConfigError: The address is of an unknown kind, or the configuration of the store is malformed.
        DependencyError: The package for this kind of store is not installed.
        Exception: One of `network_errors()`, from stores that connect at once.
    """
    try:
        import fsspec
    except ImportError:
        raise DependencyError(f"{redacted(address)}: fsspec is not installed", hint=_INSTALL) from None
    try:
        return fsspec.core.url_to_fs(address, **store_options(address, timeout_s), **more)  # type: ignore[no-any-return]
    except ImportError as error:
        hint = _INSTALL if urlsplit(address).scheme in ("s3", *_HTTP) else "install that package with pip"
        raise DependencyError(f"{redacted(address)}: {words(error)}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(
            f"{redacted(address)}: {words(error)}",
            hint="correct the address, or the configuration of fsspec for this kind of store",
        ) from None


def file_info(store: Any, path: str, seconds: float, **options: Any) -> dict[str, Any] | None:
    """Return what a store says of a file or folder; None if there is no such thing.

    Args:
        store: The file system of fsspec.
        path: The path in it.
        seconds: Limit on the wait.
        **options: Options of the file system.

    Raises:
        Exception: One of `network_errors()`, or ValueError for a malformed endpoint.
    """
    try:
        return dict(_call(store, "info", seconds, path, **options))
    except FileNotFoundError as error:
        cause = error.__cause__
        # fsspec's HTTP says so of every failure.
        if cause is None or not is_http(store) or isinstance(cause, FileNotFoundError) or _status(cause) in _GONE:
            return None
        raise cause from None


@contextmanager
def open_stream(store: Any, path: str, *, begin: int = 0) -> Iterator[tuple[Any, int, int | None]]:
    """Open a remote file for reading in one pass.

    Args:
        store: The file system of fsspec.
        path: The path in it.
        begin: Position of the first byte to read.

    Yields:
        (the file, its position, its size). The position is 0 if the store cannot begin elsewhere; the size is None if
        the store does not say it.
    """
    if is_hub(store):
        with store.open(path, "rb", block_size=0, cache_type="none") as remote:
            remote.loc = begin  # where its only request begins
            yield remote, begin, None
        return
    if not is_http(store):
        with store.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as remote:
            if begin and remote.seekable():
                remote.seek(begin)
            if is_ssh(store):
                remote.size = remote.stat().st_size
            yield remote, remote.tell(), getattr(remote, "size", None)
        return
    # One request for the whole rest: fsspec would request one part after the other, and wait for each.
    headers = {**store.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={begin}-"} if begin else {}
    with _closed_connections():
        opened = store.open(path, "rb", size=1, block_size=0, headers=headers)
    with opened as remote:
        position = begin if remote.r.status == _PARTIAL else 0
        length = remote.r.headers.get("Content-Length", "")
        encoded = remote.r.headers.get("Content-Encoding", "identity") != "identity"
        yield remote, position, position + int(length) if length.isdecimal() and not encoded else None


def read_chunk(store: Any, remote: Any, seconds: float) -> bytes:
    """Return the next bytes of an open remote file, at most CHUNK; nothing at its end.

    Args:
        store: The file system of fsspec.
        remote: The file, as `open_stream` yields it.
        seconds: Limit on the wait, for stores that can be left waiting.
    """
    if is_ssh(store):
        position = remote.tell()
        return read_at_once(remote, position, min(CHUNK, remote.size - position))
    if not is_http(store):
        return bytes(remote.read(CHUNK))
    from fsspec.asyn import sync

    with _closed_connections():
        return bytes(sync(store.loop, remote._read, CHUNK, timeout=seconds))


def read_span(store: Any, path: str, begin: int, end: int) -> bytes:
    """Return the bytes [begin, end) of a remote file, fewer if it is shorter.

    Args:
        store: The file system of fsspec, one that answers one request at a time.
        path: The path in it.
        begin: Position of the first byte.
        end: Position after the last byte.
    """
    if is_ssh(store):
        with store.open(path, "rb") as remote:
            return read_at_once(remote, begin, end - begin)
    # A file of the hub whose size is not given is looked up among all files of its folder.
    options = {"cache_type": "none", "size": end} if is_hub(store) else {}
    return bytes(store.cat_file(path, begin, end, **options))


@contextmanager
def _closed_connections() -> Iterator[None]:
    """Turn what aiohttp says of a connection that it closed itself, after a garbled answer, into an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.ECONNRESET, f"the answer is garbled: {error}") from None


def is_http(store: Any) -> bool:
    """Return whether a file system of fsspec is a web server."""
    return _is(store, "http")


def is_ssh(store: Any) -> bool:
    """Return whether a file system of fsspec is a server that paramiko connects to."""
    return _is(store, "sftp")


def _is(store: Any, protocol: str) -> bool:
    return protocol in ((store.protocol,) if isinstance(store.protocol, str) else store.protocol)


def is_hub(store: Any) -> bool:
    """Return whether a file system of fsspec is the Hugging Face hub."""
    return bool(store.protocol == "hf")


def network_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return `more` and what the loaded packages raise for a failed network; not all are OSErrors."""
    names = (
        ("aiohttp", "ClientError"),
        ("aiohttp", "InvalidURL"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    )
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return (*more, OSError, EOFError, *(kind for kind in found if kind is not None))


def is_missing(error: BaseException) -> bool:
    """Return whether an error says that there is no such file."""
    return isinstance(error, FileNotFoundError) or _status(error) in _GONE


def is_final(error: BaseException) -> bool:
    """Return whether another attempt cannot help."""
    status = _status(error)
    return (
        isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError | ValueError)
        or (status in _FINAL_STATUS and status not in _TRY_LATER)
        or type(error).__name__ in _FINAL_NAMES
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status code of an answer; None for any other error, of aiohttp's parser too, which has codes."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status and type(error.__cause__).__module__ != _PARSER else None


def words(error: BaseException) -> str:
    """Return what an error of a library says, in one short line without secrets."""
    if (status := _status(error)) is not None:
        text = f"{status} {getattr(error, 'message', '')}"
    elif type(error).__name__ == "ClientPayloadError":
        counts = re.search(r"received \d+ of \d+ bytes", str(error))
        text = "the answer broke off" + (f": {counts[0]}" if counts else "")
    elif type(error.__cause__).__module__ == _PARSER:
        text = f"the answer is garbled: {getattr(error, 'message', error)}"
    elif isinstance(error, TimeoutError):
        text = f"timed out: {error}" if str(error) else "timed out"
    else:
        text = (
            (error.strerror if type(error).__module__ == "builtins" and isinstance(error, OSError) else None)
            or str(error)
            or type(error).__name__
        )
    text = re.sub(r"[\x00-\x1f\x7f]+| +", " ", redacted(text)).strip()
    return text.removeprefix("[Errno None] ")[:_LONGEST_WORDS]  # of paramiko


def _call(store: Any, name: str, seconds: float, *arguments: Any, **options: Any) -> Any:
    """Call a method of a file system of fsspec, with a limit on the wait where it has one."""
    if not getattr(store, "async_impl", False):
        return getattr(store, name)(*arguments, **options)
    from fsspec.asyn import sync

    return sync(store.loop, getattr(store, f"_{name}"), *arguments, timeout=seconds, **options)
