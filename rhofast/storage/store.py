"""One way to whatever holds remote files: whole files as streams, and many spans of bytes at once.

    open_store_folder("s3://bucket/set") --> a folder of obstore: s3, gs, az, http and https
                                         --> a folder of fsspec: every other kind of store (hf, memory, ...)

obstore is written in Rust, and a request costs a third of the CPU time that one of fsspec costs (benchmarks/results,
remote). Its threads do not survive a fork, so a process that was forked from one that used it takes fsspec instead.

Every failure is a `RequestError`: nothing else leaves this layer, whatever a library raises. Nothing is tried again
here.
"""

from __future__ import annotations

import asyncio
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rhofast.storage.network import CHUNK, as_written, file_info, is_http, open_store, open_stream, read_chunk
from rhofast.storage.request_error import Kind, RequestError, request_error

Span = tuple[int, int]  # first byte and size
_THREADS = 32  # for stores of fsspec that answer one request at a time
_INFO_S = 60.0
_OPEN_FOLDERS = 64
# Names that mean the same to every library: no signs that one of them encodes or forbids.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._ -]*/)*[A-Za-z0-9_-][A-Za-z0-9._ -]*")
_VERSIONS = ("ETag", "e_tag", "Last-Modified", "LastModified", "mtime", "commit_hash")


class StoreFolder(ABC):
    """A folder of a store. Thread-safe.

    Attributes:
        url: Its address, without a slash at its end.
    """

    url: str

    @abstractmethod
    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass.

        Args:
            name: Name of the file in the folder.
            begin: Position of the first byte to read.

        Yields:
            (chunks of the file, the position of their first byte): 0 where the store can begin nowhere else.

        Raises:
            RequestError: The file, or the rest of it, cannot be read; chunks raise it, too.
        """

    @abstractmethod
    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file, side by side. A span that reaches beyond the file's end is short.

        Raises:
            RequestError: One of them cannot be read.
        """

    @abstractmethod
    def state(self, name: str) -> tuple[int, str]:
        """Return the size of a file and what the store says of its version, which may be nothing.

        Raises:
            RequestError: The store does not say.
        """

    @abstractmethod
    def put(self, name: str, path: Path) -> None:
        """Write a file of this machine into the folder, as a whole or not at all.

        Raises:
            RequestError: It cannot be written.
        """

    def renew(self) -> None:  # noqa: B027 - most stores have nothing to renew
        """Forget the credentials in use, which may have expired, and find some anew."""


class FsspecFolder(StoreFolder):
    """A folder that fsspec opens.

    Args:
        url: Its address.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.

    Raises:
        ConfigError: The address is of an unknown kind, or the configuration of the store is malformed.
        DependencyError: The package for this kind of store is not installed.
        RequestError: The store connects at once, and cannot.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self._timeout_s = url, timeout_s
        with _as_faults():
            self._store, self._root = open_store(url, timeout_s, **as_written(url))
        self._pool: ThreadPoolExecutor | None = None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass; see `StoreFolder`."""
        with _as_faults():
            opened = open_stream(self._store, self._path(name), begin=begin)
            remote, position, _ = opened.__enter__()
        try:
            yield self._chunks(remote), position
        finally:
            with _as_faults():
                opened.__exit__(None, None, None)

    def _chunks(self, remote: Any) -> Iterator[bytes]:
        while True:
            with _as_faults():
                chunk = read_chunk(self._store, remote, 2 * self._timeout_s)
            if not chunk:
                return
            yield chunk

    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file; see `StoreFolder`."""
        paths = [self._path(name)] * len(spans)
        begins, ends = [begin for begin, _ in spans], [begin + size for begin, size in spans]
        with _as_faults():
            if getattr(self._store, "async_impl", False):
                # They run in the event loop of fsspec, which is another one.
                asked = self._store._cat_ranges(paths, begins, ends, on_error="raise")
                found = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._store.loop))
            else:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rhofast-store")
                loop, cat = asyncio.get_running_loop(), self._store.cat_file
                asked = (loop.run_in_executor(self._pool, cat, *span) for span in zip(paths, begins, ends, strict=True))
                found = await asyncio.gather(*asked)
        contents = [memoryview(content) for content in found]
        if is_http(self._store) and any(len(one) > size for one, (_, size) in zip(contents, spans, strict=True)):
            raise RequestError(Kind.NO_RANGES, "the server ignores range requests")
        return contents

    def state(self, name: str) -> tuple[int, str]:
        """Return size and version of a file; see `StoreFolder`."""
        with _as_faults():
            info = file_info(self._store, self._path(name), _INFO_S)
        if info is None:
            raise RequestError(Kind.MISSING, "no such file")
        if info.get("size") is None:
            raise RequestError(Kind.FINAL, "the store does not say its size")
        return int(info["size"]), str(next((info[key] for key in _VERSIONS if info.get(key)), ""))

    def put(self, name: str, path: Path) -> None:
        """Write a file of this machine into the folder; see `StoreFolder`."""
        with _as_faults():
            self._store.put_file(str(path), self._path(name), chunksize=CHUNK)


@contextmanager
def _as_faults() -> Iterator[None]:
    """Turn whatever a library raises into a RequestError; errors of this package stay what they are."""
    from rhofast.errors import RhofastError

    try:
        yield
    except (RhofastError, RequestError):
        raise
    except Exception as error:  # noqa: BLE001 - libraries of stores raise errors of any family
        raise request_error(error) from None


def open_store_folder(url: str, timeout_s: float) -> StoreFolder:
    """Open a folder of a store; nothing is connected yet, but for stores of fsspec that connect at once.

    Args:
        url: Its checked address; see `check_address`.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.

    Raises:
        ConfigError: The address is of an unknown kind, or the configuration of the store is malformed.
        DependencyError: A package for this kind of store is not installed.
        RequestError: The store connects at once, and cannot.
    """
    from rhofast.storage.object_store import ObjectFolder, serves

    return ObjectFolder(url, timeout_s) if serves(url) else FsspecFolder(url, timeout_s)


def open_store_file(address: str, timeout_s: float) -> tuple[StoreFolder, str]:
    """Return the folder and the name with which one file is read; files of one bucket or host share connections.

    Args:
        address: Its checked address, which may be signed.
        timeout_s: As for `open_store_folder`, which has the errors, too.
    """
    parts = urlsplit(address)
    name = parts.path.removeprefix("/")
    if parts.query or parts.fragment or not parts.netloc or not _PLAIN.fullmatch(name):
        is_web = parts.scheme in ("http", "https")
        return (open_store_folder if is_web else FsspecFolder)(address, timeout_s), ""
    return _shared_folder(f"{parts.scheme}://{parts.netloc}", timeout_s, os.getpid()), name


@lru_cache(maxsize=_OPEN_FOLDERS)
def _shared_folder(url: str, timeout_s: float, process: int) -> StoreFolder:
    """Open a folder once per process."""
    return open_store_folder(url, timeout_s)
