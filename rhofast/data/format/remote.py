"""Shards behind an address, through a bounded cache of this node; and any shards, wherever they are.

    open_shards("/data/kinetics")  open_shards("s3://bucket/kinetics")  open_shards("https://host/kinetics")

A remote set is a ShardSet whose files are copied to the cache (cache.py) when they are first opened (download.py), and
`dataset.json` at once. `DownloadAhead` fetches shards before they are needed, in the order in which they will be. What
it is not: it streams nothing; a shard is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Condition, Event, Thread
from typing import BinaryIO

from rhofast.data.format.dataset import DatasetInfo, ShardInfo, ShardSet, parse_dataset
from rhofast.data.format.index import DATASET_FILE, ShardIndex
from rhofast.errors import RhofastError, ShardError, ShardFormatError, ShardMissingError
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder

_EVICTED_AGAIN = 3
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def is_remote(source: str) -> bool:
    """Whether it is an address of something that is not on this machine's disks."""
    scheme, mark, _ = source.partition("://")
    return bool(mark) and scheme != "file"


class StoppedError(RhofastError):
    """A download was given up, because its loader is closing: says nothing of the file."""


class RemoteShardSet(ShardSet):
    """A shard set behind an address. `local` and `open` fetch a file that is not in the cache. Where that fails they
    raise ShardMissingError or ShardFormatError naming the address, or ConfigError where the cache has no room.

    ahead_bytes: how much may lie in the cache ahead of its use.
    """

    keeps_files = False

    def __init__(self, folder: RemoteFolder, cache: Cache) -> None:
        """Fetches `dataset.json`. Raises ShardMissingError, ShardFormatError."""
        info = parse_dataset(folder.read(DATASET_FILE), f"{folder.url}/{DATASET_FILE}")
        _check_names(info, folder.url)
        self._key = info.digest[:32]
        super().__init__(cache.folder / self._key, info)
        self.where = folder.url
        self.cache = cache
        self.ahead_bytes = cache.max_bytes // 2
        self._folder = folder
        self._number = {shard.name: number for number, shard in enumerate(info.shards)}
        self._failed: dict[str, tuple[float, ShardError]] = {}
        self._lines: tuple[_Line, ...] = ()
        self._stop = Event()

    def local(self, name: str) -> Path:
        """Where a file lies in the cache, from which it may be evicted any time."""
        return self._get(name, self._stop)

    def open(self, name: str) -> int:
        for _ in range(_EVICTED_AGAIN):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self.local(name), os.O_RDONLY | os.O_CLOEXEC)
                for line in self._lines:
                    line.used(self._number[_stem(name)])
                return descriptor
        raise self._evicted(name)

    def fetch(self, shard: int, stop: Event) -> None:
        """Have a shard's files in the cache, or on their way there by another process. stop: set to give up. Raises as
        `local` does."""
        info = self.info.shards[shard]
        for name in (info.index, info.tar):
            if not self.cache.claimed(self._key, name):
                self._get(name, stop)

    def listen(self, line: _Line) -> None:
        """Tell `line` which shard is opened, from now on."""
        self._lines = (*self._lines, line)
        self.allow()

    def unlisten(self, line: _Line) -> None:
        """No more. When nobody fetches ahead any more, what is asked for on demand is given up, too."""
        self._lines = tuple(one for one in self._lines if one is not line)
        if not self._lines:
            self._stop.set()

    def allow(self) -> None:
        """What is asked for on demand is fetched again."""
        if self._stop.is_set():
            self._stop = Event()

    def keep_mapped(self, block_shards: int) -> None:
        """Two blocks of so many shards are needed at a time: more indices are not kept mapped, which would take the
        space of evicted ones."""
        self._open_indices = min(self._open_indices, 3 * block_shards)

    def _load_index(self, shard: int) -> ShardIndex:
        name = self.info.shards[shard].index
        for attempt in range(_EVICTED_AGAIN):
            self.local(name)
            try:
                return super()._load_index(shard)
            except ShardMissingError:  # evicted before it was mapped
                continue
            except ShardFormatError:  # damaged in the cache: once more from where it came
                if attempt:
                    raise
                self.cache.drop(self._key, name)
        raise self._evicted(name)

    def _evicted(self, name: str) -> ShardMissingError:
        return ShardMissingError(
            f"{self.where}/{name}: left the cache before it was read, {_EVICTED_AGAIN} times",
            hint="the cache is too small: --set data.cache_gb=...",
        )

    def _get(self, name: str, stop: Event) -> Path:
        since, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - since < self._folder.patience.again_s:
            raise type(error)(error.message, hint=error.hint)
        shard = self.info.shards[self._number[_stem(name)]]
        index = name == shard.index
        size, sha256 = (shard.index_bytes, shard.index_sha256) if index else (shard.bytes, shard.tar_sha256)

        def wait(seconds: float) -> None:
            if stop.wait(seconds):
                raise StoppedError(f"{self.where}/{name}: its download was stopped")

        def fill(file: BinaryIO) -> None:
            self._folder.download(name, file, size=size, sha256=sha256, wait=wait)

        try:
            return self.cache.get(self._key, name, size, fill, wait=wait)
        except ShardError as error:
            self._failed[name] = (time.monotonic(), error)
            raise
        except OSError as error:
            raise ShardMissingError(f"{self.where}/{name}: {error}") from None


class DownloadAhead:
    """Threads that fetch the shards of remote sets before they are needed.

    needed: each set, and its shards in the order of their first need (`Order.shards_from`); local sets are passed over.
    threads: of each set. A set's threads keep at most `ahead_bytes` ahead of the newest shard that was opened. What
    cannot be fetched is tried again, and said, when it is needed.

    To close what reads the sets without waiting for whole shards: `stop`, end the reading threads, `close`.
    """

    def __init__(self, needed: Iterable[tuple[ShardSet, Iterator[int]]], *, threads: int) -> None:
        self._lines = [_Line(one, shards, threads) for one, shards in needed if isinstance(one, RemoteShardSet)]

    def stop(self) -> None:
        """Give up the downloads under way, and until `close` also what reading threads ask for of a set that nobody
        else fetches ahead: they get a StoppedError."""
        for line in self._lines:
            line.stop()

    def close(self) -> None:
        """End all threads. Takes at most as long as one piece of an answer may take. Safe to call twice."""
        self.stop()
        for line in self._lines:
            line.close()


class _Line:
    """The shards of one set, in the order of their first need: some have been opened, some are fetched ahead."""

    def __init__(self, shards: RemoteShardSet, needed: Iterator[int], threads: int) -> None:
        self._shards, self._needed = shards, needed
        self._next = next(needed, None)
        self._ahead: deque[int] = deque()
        self._times: Counter[int] = Counter()  # of each shard in `_ahead`
        self._bytes = 0
        self._changed = Condition()
        self._stop = Event()
        self._threads = [Thread(target=self._work, name="rhofast-download", daemon=True) for _ in range(threads)]
        shards.listen(self)
        for thread in self._threads:
            thread.start()

    def used(self, shard: int) -> None:
        """A shard was opened: it and those before it are ahead no more."""
        if shard not in self._times:
            return
        with self._changed:
            while self._times[shard]:
                first = self._ahead.popleft()
                self._bytes -= self._size(first)
                self._times[first] -= 1
                if not self._times[first]:
                    del self._times[first]
                if first == shard:
                    break
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._shards.unlisten(self)

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self._shards.allow()

    def _work(self) -> None:
        while (shard := self._take()) is not None:
            try:
                self._shards.fetch(shard, self._stop)
            except StoppedError:
                return
            except RhofastError:
                continue

    def _take(self) -> int | None:
        """The next shard to fetch, when there is room for it; None at the end."""
        with self._changed:
            while not self._stop.is_set() and self._next is not None:
                shard, size = self._next, self._size(self._next)
                if self._bytes + size <= self._shards.ahead_bytes or not self._ahead:
                    self._ahead.append(shard)
                    self._times[shard] += 1
                    self._bytes += size
                    self._next = next(self._needed, None)
                    return shard
                self._changed.wait()
        return None

    def _size(self, shard: int) -> int:
        return shard_bytes(self._shards.info.shards[shard])


def shard_bytes(shard: ShardInfo) -> int:
    return shard.bytes + shard.index_bytes


def _check_names(info: DatasetInfo, url: str) -> None:
    """See that no name leads out of the cache's folder. Raises ShardFormatError."""
    for shard in info.shards:
        if not _SAFE_NAME.fullmatch(shard.name):
            raise ShardFormatError(f"{url}/{DATASET_FILE}: {shard.name!r} is no name of a shard")


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
