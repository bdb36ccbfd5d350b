"""Shard sets in an object store or on a web server.

    open_shards("/data/kinetics")  open_shards("s3://bucket/kinetics")  open_shards("https://host/kinetics")

A remote set is a ShardSet. Its `dataset.json` is downloaded when it is opened, and an index is downloaded
(storage/download.py) to a bounded cache of this node (storage/cache.py) when it is first opened. Tars are read in one
of two ways: as a whole through the cache, too, or only the needed bytes by range requests (ranges.py), of which nothing
is kept. download_ahead.py downloads files before they are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import MAX_DATASET_BYTES, DatasetInfo, ShardInfo, parse_dataset
from rhofast.data.format.index import DATASET_FILE, ShardIndex
from rhofast.data.format.index_columns import fetch_column, is_worth_it, side_by_side
from rhofast.data.format.ranges import RangeOptions, RangeSource, SpanFetch
from rhofast.errors import MachineError, RhofastError, ShardError, ShardFormatError, ShardMissingError
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.files import open_regular_descriptor
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.machine_errors import is_machine_error
from rhofast.storage.range_client import RangeClient, RangeLimits
from rhofast.storage.request_error import Kind, RequestError

_OPEN_ATTEMPTS = 3  # a file may be evicted between its download and its opening
_INDICES_AT_ONCE = 32
_SCAN, _SCAN_AHEAD = 4, 256  # indices opened in their order after which more are expected, and how many are fetched


class StoppedError(RhofastError):
    """A download was stopped because its loader is closing; this says nothing about the file."""


class _Listener(Protocol):
    """Who wants to know which shards were opened."""

    def used(self, shard: int) -> None:
        """Note that a file of a shard was opened."""


class RemoteShardSet(ShardSet):
    """A shard set behind a URL.

    `local` and `open` download a file that is not in the cache. If that fails, they raise ShardMissingError or
    ShardFormatError with the URL of the file, or ConfigError if the cache has no space for it.

    Attributes:
        cache: The cache that holds the files of the set.
        ahead_bytes: Limit on the bytes that are downloaded ahead of their use.
        ranges: How tars are read without the cache; None if they are read through it.
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
        folder.probe = DATASET_FILE
        self._key = _cache_key(info)
        super().__init__(cache.folder / self._key, info)
        self.where = folder.url
        self.cache = cache
        self.ahead_bytes = cache.max_bytes // 2
        self._folder = folder
        self._number = {shard.name: number for number, shard in enumerate(info.shards)}
        self._failed: dict[str, tuple[float, ShardError | MachineError]] = {}
        self._queues: tuple[_Listener, ...] = ()
        self.ranges: RangeSource | None = None
        limits = RangeLimits(patience_s=folder.retry_policy.total_s)
        self._indices = RangeClient(folder.store, limits, folder.retry_policy, DATASET_FILE)
        self._sends_ranges: bool | None = None  # the server, as far as it is known
        self._stop = Event()
        # The last index that was opened, how many in a row, and up to where they are fetched.
        self._scanned = (-1, 0, 0)

    @property
    def fault(self) -> str:
        """Why the store did not answer the last time that it was asked; empty if it did."""
        return self._folder.fault or self._indices.fault or ("" if self.ranges is None else self.ranges.fault)

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
                self._note_use(self._number[_stem(name)])
                return descriptor
        raise self._evicted(name)

    def fetch(self, shard: int, stop: Event) -> None:
        """Download the files of a shard that the cache holds, unless another process is already downloading them.

        Args:
            shard: Number of the shard.
            stop: Event that stops the download.

        Raises:
            RhofastError: Whatever `local` raises.
        """
        info = self.info.shards[shard]
        for name in (info.index, info.tar) if self.ranges is None else (info.index,):
            if not self.cache.is_being_written(self._key, name):
                self._get(name, stop)

    def use_ranges(self, options: RangeOptions) -> None:
        """Read only the needed bytes of tars from now on."""
        self.ranges = RangeSource(self._folder.store, options, self._folder.retry_policy, DATASET_FILE)

    def answers_ranges(self) -> bool:
        """Return whether the server answers range requests; True as well if it does not answer at all now."""
        asked = self._folder.store.spans(DATASET_FILE, [(1, 1)])
        try:
            wait_for(asked)
        except RequestError as fault:
            return fault.kind is not Kind.NO_RANGES
        return True

    def fetch_spans(self, shard: int, spans: Sequence[tuple[int, int]]) -> SpanFetch | None:
        """Begin to fetch spans of a tar, each an offset and a size in bytes; None if it is read through the cache."""
        return None if self.ranges is None else self.ranges.fetch(self.info.shards[shard].tar, spans)

    def cached_bytes(self, shard: int) -> int:
        """Return the bytes of a shard that pass through the cache."""
        info = self.info.shards[shard]
        return shard_bytes(info) if self.ranges is None else info.index_bytes

    def load_indices(self, shards: Iterable[int]) -> None:
        """Download the indices of some shards at once, so that `index` has them; what fails is left to it."""
        names = [self.info.shards[shard].index for shard in shards if shard not in self._open]
        if len(names) > 1:
            with ThreadPoolExecutor(_INDICES_AT_ONCE, thread_name_prefix="rhofast-index") as pool:
                for name in names:
                    pool.submit(self.local, name)

    def read_column(self, name: str, shard: int) -> pa.Array:
        """Return a column of the index of one shard; see `ShardSet`.

        Of a large index that is not in the cache, only the bytes of the column are fetched. They have no checksum of
        their own.
        """
        info = self.info.shards[shard]
        if not is_worth_it(info) or self.cache.has(self._key, info.index, *self._recorded(info.index)):
            return super().read_column(name, shard)
        if self._sends_ranges is None:
            self._sends_ranges = self.answers_ranges()
        if not self._sends_ranges:
            return super().read_column(name, shard)
        return fetch_column(self._indices, info, name, f"{self.where}/{info.index}")

    def read_columns(self, name: str, shards: Iterable[int]) -> Iterator[pa.Array]:
        """Yield what `read_column` returns for some shards, in their order; several are read at once."""
        return side_by_side(partial(self.read_column, name), shards)

    def add_queue(self, queue: _Listener) -> None:
        """Report each opened shard to `queue` from now on."""
        self._queues = (*self._queues, queue)
        self.allow_downloads()

    def remove_queue(self, queue: _Listener) -> None:
        """Stop reporting to `queue`. Without any queue left, downloads on demand are stopped too."""
        self._queues = tuple(other for other in self._queues if other is not queue)
        if not self._queues:
            self._stop.set()
            if self.ranges is not None:
                self.ranges.stop()

    def allow_downloads(self) -> None:
        """Allow downloads on demand again, after the last queue was removed."""
        if self._stop.is_set():
            self._stop = Event()

    def keep_mapped(self, block_shards: int) -> None:
        """Limit the number of mapped indices to what two blocks of `block_shards` shards need.

        An evicted index that stays mapped would still take its space on the disk.
        """
        self._open_indices = min(self._open_indices, 3 * block_shards)

    def _read_ahead(self, shard: int) -> None:
        """Download the indices that follow at once, if somebody opens one after the other."""
        last, row, end = self._scanned
        follows = last < shard and self.starts[last + 1] == self.starts[shard]  # no sample lies between them
        row = row + 1 if follows else 0
        if row >= _SCAN and shard >= end:
            used = self.used_shards()
            ahead = used[np.searchsorted(used, shard) :][:_SCAN_AHEAD].tolist()
            sizes = np.cumsum([self.info.shards[number].index_bytes for number in ahead])
            ahead = ahead[: int(np.searchsorted(sizes, self.cache.max_bytes // 4))]
            self.load_indices(ahead)
            end = max(ahead, default=shard) + 1
        self._scanned = shard, row, end

    def _load_index(self, shard: int) -> ShardIndex:
        self._read_ahead(shard)
        name = self.info.shards[shard].index
        for attempt in range(_OPEN_ATTEMPTS):
            self.local(name)
            try:
                index = super()._load_index(shard)
            except ShardMissingError:  # evicted before it was mapped
                continue
            except ShardFormatError:  # damaged in the cache: download it once more
                if attempt:
                    raise
                self.cache.drop(self._key, name)
            else:
                if self.ranges is not None:  # else its tar will be opened
                    self._note_use(shard)
                return index
        raise self._evicted(name)

    def _note_use(self, shard: int) -> None:
        for queue in self._queues:
            queue.used(shard)

    def recheck(self, name: str) -> bool:
        """Return whether a tar that gave damaged bytes is worth another attempt.

        A file in the cache is, if it is damaged; it is deleted, so that it is downloaded again. Bytes of a range
        request are, because they may have been damaged on their way.

        Raises:
            ShardFormatError: The set was replaced by another one since it was opened.
        """
        if self.ranges is not None:
            self._check_unchanged()
            return True
        _, sha256 = self._recorded(name)
        with contextlib.suppress(OSError):
            return self.cache.recheck(self._key, name, sha256)
        return False

    def _check_unchanged(self) -> None:
        content = self._folder.read(DATASET_FILE, max_bytes=MAX_DATASET_BYTES)
        if _cache_key(parse_dataset(content, f"{self.where}/{DATASET_FILE}")) != self._key:
            raise ShardFormatError(
                f"{self.where}: the set was replaced while it was read",
                hint="begin a new run, or put the former set back and continue with --resume",
            )

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
        except (ShardError, MachineError) as error:
            self._failed[name] = (time.monotonic(), error)
            raise
        except OSError as error:
            if is_machine_error(error):
                raise
            raise ShardMissingError(f"{self.where}/{name}: {error}") from None


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
