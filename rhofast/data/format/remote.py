"""Shard sets in an object store or on a web server, read through a bounded cache of this node.

    open_shards("/data/kinetics")  open_shards("s3://bucket/kinetics")  open_shards("https://host/kinetics")

A remote set is a ShardSet. Its `dataset.json` is downloaded when it is opened; each other file is downloaded
(storage/download.py) to the cache (storage/cache.py) when it is first opened. `DownloadAhead` downloads shards before
they are needed, in the order in which they will be. A shard is always downloaded as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Condition, Event, Thread
from typing import BinaryIO

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import MAX_DATASET_BYTES, DatasetInfo, ShardInfo, parse_dataset
from rhofast.data.format.index import DATASET_FILE, ShardIndex
from rhofast.errors import RhofastError, ShardError, ShardFormatError, ShardMissingError
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.files import open_regular_descriptor
from rhofast.storage.machine_errors import is_machine_error

_FAREWELL_S = 5.0  # for all threads of a set together
_OPEN_ATTEMPTS = 3  # a file may be evicted between its download and its opening


class StoppedError(RhofastError):
    """A download was stopped because its loader is closing; this says nothing about the file."""


class RemoteShardSet(ShardSet):
    """A shard set behind a URL.

    `local` and `open` download a file that is not in the cache. If that fails, they raise ShardMissingError or
    ShardFormatError with the URL of the file, or ConfigError if the cache has no space for it.

    Attributes:
        cache: The cache that holds the files of the set.
        ahead_bytes: Limit on the bytes that are downloaded ahead of their use.
    """

    keeps_files = False

    def __init__(self, folder: RemoteFolder, cache: Cache) -> None:
        """Download `dataset.json`.

        Args:
            folder: The remote folder of the set.
            cache: The cache for its files.

        Raises:
            ShardMissingError: `dataset.json` is not there or cannot be read.
            ShardFormatError: `dataset.json` has another format or version, or unsafe file names.
        """
        info = parse_dataset(folder.read(DATASET_FILE, max_bytes=MAX_DATASET_BYTES), f"{folder.url}/{DATASET_FILE}")
        self._key = _cache_key(info)
        super().__init__(cache.folder / self._key, info)
        self.where = folder.url
        self.cache = cache
        self.ahead_bytes = cache.max_bytes // 2
        self._folder = folder
        self._number = {shard.name: number for number, shard in enumerate(info.shards)}
        self._failed: dict[str, tuple[float, ShardError]] = {}
        self._queues: tuple[_DownloadQueue, ...] = ()
        self._stop = Event()

    def local(self, name: str) -> Path:
        """Return the path of a file in the cache, from which it may be evicted at any time."""
        return self._get(name, self._stop)

    def open(self, name: str) -> int:
        """Open a file of the set for reading and return its descriptor.

        Raises:
            ShardMissingError: The file cannot be downloaded, or was evicted before it was opened, repeatedly.
            ShardFormatError: The remote file is not the recorded one.
            ConfigError: The cache has no space for the file.
            StoppedError: The loader of the set is closing.
        """
        for _ in range(_OPEN_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                descriptor = open_regular_descriptor(self.local(name))
                for queue in self._queues:
                    queue.used(self._number[_stem(name)])
                return descriptor
        raise self._evicted(name)

    def fetch(self, shard: int, stop: Event) -> None:
        """Download the files of a shard, unless another process is already downloading them.

        Args:
            shard: Number of the shard.
            stop: Event that stops the download.

        Raises:
            RhofastError: Whatever `local` raises.
        """
        info = self.info.shards[shard]
        for name in (info.index, info.tar):
            if not self.cache.is_being_written(self._key, name):
                self._get(name, stop)

    def add_queue(self, queue: _DownloadQueue) -> None:
        """Report each opened shard to `queue` from now on."""
        self._queues = (*self._queues, queue)
        self.allow_downloads()

    def remove_queue(self, queue: _DownloadQueue) -> None:
        """Stop reporting to `queue`. Without any queue left, downloads on demand are stopped too."""
        self._queues = tuple(other for other in self._queues if other is not queue)
        if not self._queues:
            self._stop.set()

    def allow_downloads(self) -> None:
        """Allow downloads on demand again, after the last queue was removed."""
        if self._stop.is_set():
            self._stop = Event()

    def keep_mapped(self, block_shards: int) -> None:
        """Limit the number of mapped indices to what two blocks of `block_shards` shards need.

        An evicted index that stays mapped would still take its space on the disk.
        """
        self._open_indices = min(self._open_indices, 3 * block_shards)

    def _load_index(self, shard: int) -> ShardIndex:
        name = self.info.shards[shard].index
        for attempt in range(_OPEN_ATTEMPTS):
            self.local(name)
            try:
                return super()._load_index(shard)
            except ShardMissingError:  # evicted before it was mapped
                continue
            except ShardFormatError:  # damaged in the cache: download it once more
                if attempt:
                    raise
                self.cache.drop(self._key, name)
        raise self._evicted(name)

    def recheck(self, name: str) -> bool:
        """Delete a file from the cache if it is damaged, so that it is downloaded again; return whether it was."""
        _, sha256 = self._recorded(name)
        with contextlib.suppress(OSError):
            return self.cache.recheck(self._key, name, sha256)
        return False

    def _recorded(self, name: str) -> tuple[int, str]:
        """Return size and SHA-256 of a file, as `dataset.json` gives them."""
        shard = self.info.shards[self._number[_stem(name)]]
        if name == shard.index:
            return shard.index_bytes, shard.index_sha256
        return shard.bytes, shard.tar_sha256

    def _evicted(self, name: str) -> ShardMissingError:
        return ShardMissingError(
            f"{self.where}/{name}: evicted from the cache before it was read, {_OPEN_ATTEMPTS} times",
            hint="the cache is too small: raise --set data.cache_gb=N",
        )

    def _get(self, name: str, stop: Event) -> Path:
        since, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - since < self._folder.retry_policy.failed_for_s:
            raise type(error)(error.message, hint=error.hint)
        size, sha256 = self._recorded(name)

        def sleep(seconds: float) -> None:
            if stop.wait(seconds):
                raise StoppedError(f"{self.where}/{name}: its download was stopped")

        def write(file: BinaryIO) -> None:
            self._folder.download(name, file, size=size, sha256=sha256, sleep=sleep)

        try:
            return self.cache.get(self._key, name, size, sha256, write, sleep=sleep)
        except ShardError as error:
            self._failed[name] = (time.monotonic(), error)
            raise
        except OSError as error:
            if is_machine_error(error):
                raise
            raise ShardMissingError(f"{self.where}/{name}: {error}") from None


class DownloadAhead:
    """Threads that download the shards of remote sets before they are needed.

    A set's threads keep at most `ahead_bytes` ahead of the newest shard that was opened. A shard that cannot be
    downloaded is tried again, and reported, when it is needed.

    To close readers of the sets without waiting for whole shards: call `stop`, end the reading threads, call `close`.
    """

    def __init__(self, needed: Iterable[tuple[ShardSet, Iterator[int]]], *, threads: int) -> None:
        """Start the threads.

        Args:
            needed: Each set with its shards in the order of their first need (`Order.shards_from`). Local sets are
                ignored.
            threads: Number of threads per set.
        """
        self._queues = [
            _DownloadQueue(shards, numbers, threads) for shards, numbers in needed if isinstance(shards, RemoteShardSet)
        ]

    def stop(self) -> None:
        """Stop the downloads in progress.

        Until `close`, reading threads that need a download get a StoppedError, unless another DownloadAhead serves the
        same set.
        """
        for queue in self._queues:
            queue.stop()

    def close(self) -> None:
        """End all threads. It takes as long as one chunk of a download, and may be called twice.

        A thread that hangs in a store's library is abandoned after a while; it ends with the process.
        """
        self.stop()
        for queue in self._queues:
            queue.close()


class _DownloadQueue:
    """The shards of one set in the order of their first need, and the threads that download them."""

    def __init__(self, shards: RemoteShardSet, needed: Iterator[int], threads: int) -> None:
        self._shards, self._needed = shards, needed
        self._next = next(needed, None)
        self._ahead: deque[int] = deque()
        self._times: Counter[int] = Counter()  # how often each shard is in `_ahead`
        self._bytes = 0
        self._changed = Condition()
        self._stop = Event()
        self._threads = [Thread(target=self._work, name="rhofast-download", daemon=True) for _ in range(threads)]
        shards.add_queue(self)
        for thread in self._threads:
            thread.start()

    def used(self, shard: int) -> None:
        """Remove an opened shard, and those before it, from the shards that are ahead."""
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
        self._shards.remove_queue(self)

    def close(self) -> None:
        end = time.monotonic() + _FAREWELL_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._shards.allow_downloads()

    def _work(self) -> None:
        while (shard := self._take()) is not None:
            try:
                self._shards.fetch(shard, self._stop)
            except StoppedError:
                return
            except (RhofastError, OSError):  # whoever needs the shard tries again, and reports it
                continue

    def _take(self) -> int | None:
        """Wait until the next shard may be downloaded and return it; None at the end."""
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
    """Return the size of a shard's tar and index together, in bytes."""
    return shard.bytes + shard.index_bytes


def _cache_key(info: DatasetInfo) -> str:
    """Return a digest of all files of a set: sets that differ in any byte of a tar share nothing in a cache."""
    files = [
        [shard.name, shard.bytes, shard.tar_sha256, shard.index_bytes, shard.index_sha256] for shard in info.shards
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
