"""Folders of the stores that fsspec opens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rhofast.errors import RhofastError
from rhofast.storage.network import CHUNK, as_written, file_info, is_http, open_store, open_stream, read_chunk
from rhofast.storage.request_error import Kind, RequestError, request_error
from rhofast.storage.store import Span, StoreFolder

_THREADS = 32  # for stores that answer one request at a time
_INFO_S = 60.0
_VERSIONS = ("ETag", "e_tag", "Last-Modified", "LastModified", "mtime", "commit_hash")


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
    try:
        yield
    except (RhofastError, RequestError):
        raise
    except Exception as error:  # noqa: BLE001 - libraries of stores raise errors of any family
        raise request_error(error) from None
