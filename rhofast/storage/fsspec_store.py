"""Folders of the stores that fsspec opens: hf, memory, servers of files, and any that obstore does not open."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import LifoQueue
from typing import Any

from rhofast.errors import RhofastError
from rhofast.storage.network import (
    CHUNK,
    as_written,
    file_info,
    is_http,
    is_hub,
    open_store,
    open_stream,
    read_chunk,
    read_span,
)
from rhofast.storage.request_error import Kind, RequestError, request_error
from rhofast.storage.store import Entry, Span, StoreFolder

_THREADS = 32  # for stores that answer one request at a time
_INFO_S = 60.0
_VERSIONS = ("ETag", "e_tag", "blob_id", "Last-Modified", "LastModified", "mtime")
_SERVERS = {"ftp", "hdfs", "arrow_hdfs", "sftp", "smb", "ssh", "webhdfs"}  # of files, which can be seen half written
_HAVE_FOLDERS = _SERVERS | {"memory"}
_CONNECTIONS = 8  # to such a server at once


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
        is_server = url.partition("://")[0] in _SERVERS
        with as_faults():
            own = {"skip_instance_cache": True} if is_server else as_written(url)
            self._store, self._root = open_store(url, timeout_s, **own)
        self._pool: ThreadPoolExecutor | None = None
        self._idle: LifoQueue[Any] | None = None
        if is_server:
            self._idle = LifoQueue()
            for connection in (*[None] * (_CONNECTIONS - 1), self._store):
                self._idle.put(connection)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Lend the file system, to one thread at a time if it is a connection to a server of files.

        The clients of these take the answers of one thread for those of another. A connection on which something fails
        is given up, for it may be dead.
        """
        if self._idle is None:
            yield self._store
            return
        store = self._idle.get()
        try:
            if store is None:
                store, _ = open_store(self.url, self._timeout_s, skip_instance_cache=True)
            yield store
        except FileNotFoundError:
            raise
        except BaseException:
            store = None
            raise
        finally:
            self._idle.put(store)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass; see `StoreFolder`."""
        opened = ExitStack()
        try:
            with as_faults():
                store = opened.enter_context(self._connected())
                remote, position, _ = opened.enter_context(open_stream(store, self._path(name), begin=begin))
            yield self._chunks(store, remote), position
        except BaseException:
            with as_faults():
                opened.__exit__(*sys.exc_info())
            raise
        with as_faults():
            opened.close()

    def _chunks(self, store: Any, remote: Any) -> Iterator[bytes]:
        while True:
            with as_faults():
                chunk = read_chunk(store, remote, 2 * self._timeout_s)
            if not chunk:
                return
            yield chunk

    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file; see `StoreFolder`."""
        begins, ends = [begin for begin, _ in spans], [begin + size for begin, size in spans]
        with as_faults():
            if getattr(self._store, "async_impl", False):
                # They run in the event loop of fsspec, which is another one.
                asked = self._store._cat_ranges([self._path(name)] * len(spans), begins, ends, on_error="raise")
                found = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._store.loop))
            else:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="store-spans")
                loop = asyncio.get_running_loop()
                found = await asyncio.gather(
                    *(
                        loop.run_in_executor(self._pool, self._span, name, *span)
                        for span in zip(begins, ends, strict=True)
                    )
                )
        contents = [memoryview(content) for content in found]
        if any(len(one) > size for one, (_, size) in zip(contents, spans, strict=True)):
            raise RequestError(Kind.NO_RANGES, "the server ignores range requests")
        return contents

    def _span(self, name: str, begin: int, end: int) -> Any:
        with self._connected() as store:
            return read_span(store, self._path(name), begin, end)

    def state(self, name: str) -> tuple[int, str]:
        """Return size and version of a file; see `StoreFolder`."""
        info = self._info(name)
        if info is None:
            raise RequestError(Kind.MISSING, "no such file")
        if info.get("size") is None:
            raise RequestError(Kind.FINAL, "the store does not say its size")
        return int(info["size"]), str(next((info[key] for key in _VERSIONS if info.get(key)), ""))

    def _info(self, name: str) -> dict[str, Any] | None:
        options = {"expand_info": True, "refresh": True} if is_hub(self._store) else {}
        with as_faults(), self._connected() as store:
            if not options:
                store.invalidate_cache()
            return file_info(store, self._path(name), _INFO_S, **options)

    def _is(self, protocols: set[str]) -> bool:
        own = self._store.protocol
        return not protocols.isdisjoint((own,) if isinstance(own, str) else own)

    def put(self, name: str, path: Path) -> None:
        """Write a file of this machine into the folder; see `StoreFolder`."""
        final = self._path(name)
        folder, _, last = final.rpartition("/")
        with as_faults(), self._connected() as store:
            if not self._is(_SERVERS):
                store.put_file(str(path), final, chunksize=CHUNK)
                return
            unfinished = f"{folder}/.{last}.tmp"
            store.put_file(str(path), unfinished)
            sent, written = path.stat().st_size, store.size(unfinished)
            if written != sent:
                raise RequestError(Kind.PASSING, f"{written} of {sent} bytes arrived")
            if store.exists(final):  # some servers replace no file
                store.rm_file(final)
            store.mv(unfinished, final)

    def find(self, name: str) -> Entry | None:
        """Return what there is under a name; see `StoreFolder`."""
        last = name.rpartition("/")[2]
        if not is_http(self._store):
            info = self._info(name)
            return None if info is None else Entry(last, info.get("type") == "directory", info.get("size"))
        # What a web server has there shows at the beginning of the answer, of which nothing else is read.
        try:
            with as_faults(), open_stream(self._store, self._path(name)) as (remote, _, size):
                kind, place = remote.r.headers.get("Content-Type", ""), remote.r.url.path
        except RequestError as fault:
            if fault.kind is Kind.MISSING:
                return None
            raise
        is_page = kind.startswith("text/html") and (place.endswith("/") or "." not in place.rpartition("/")[2])
        return Entry(last, True) if is_page else Entry(last, False, size)

    def entries(self, name: str) -> list[Entry]:
        """Return what lies in a folder; see `StoreFolder`."""
        found = self.find(name) if is_http(self._store) else None
        if is_http(self._store) and not (found and found.is_folder):
            return []  # what is no page is not read as one
        with as_faults(), self._connected() as store:
            store.invalidate_cache()
            try:
                infos = store.ls(self._path(name), detail=True, **({"refresh": True} if is_hub(store) else {}))
            except (FileNotFoundError, NotADirectoryError):
                return []
        entries = {}
        for info in infos:
            last = str(info["name"]).rstrip("/").rpartition("/")[2]
            if last and not last.startswith("?"):  # links by which a page is sorted
                is_folder = info.get("type") == "directory"
                entries[last] = Entry(last, is_folder, None if is_folder else info.get("size"))
        return [entries[last] for last in sorted(entries)]

    def delete(self, name: str) -> None:
        """Delete a file; see `StoreFolder`."""
        with as_faults(), suppress(FileNotFoundError), self._connected() as store:
            store.rm_file(self._path(name))

    def create(self, name: str) -> None:
        """Create a folder; see `StoreFolder`."""
        if self._is(_HAVE_FOLDERS):
            with as_faults(), self._connected() as store:
                store.makedirs(self._path(name), exist_ok=True)


@contextmanager
def as_faults() -> Iterator[None]:
    """Turn whatever a library raises into a RequestError; errors of this package stay what they are."""
    try:
        yield
    except (RhofastError, RequestError):
        raise
    except Exception as error:  # noqa: BLE001 - libraries of stores raise errors of any family
        raise request_error(error) from None
