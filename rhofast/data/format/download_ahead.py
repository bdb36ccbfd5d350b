"""Download the files of remote sets to the cache before they are needed, in the order in which they will be.

Of a set that is read by range requests these are the indices, else indices and tars. Whoever needs an index gets it
by itself, if need be, so nothing is downloaded ahead until the first batch is there: it would only come later.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from threading import Condition, Event, Thread

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.remote import RemoteShardSet, StoppedError
from rhofast.errors import RhofastError

_FAREWELL_S = 5.0  # for all threads of a set together


class DownloadAhead:
    """Threads that download the shards of remote sets before they are needed.

    A set's threads keep at most `ahead_bytes`, and no shard twice, ahead of the newest shard that was opened. A shard
    that cannot be downloaded is tried again, and reported, when it is needed.

    Of a set that is read by range requests nothing is downloaded before `go_on` is called.

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

    def go_on(self) -> None:
        """Download what later batches need, too: the first one is there. It may be called several times."""
        for queue in self._queues:
            queue.go_on()

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
        self._held = shards.ranges is not None
        self._ahead: deque[int] = deque()
        self._times: Counter[int] = Counter()  # how often each shard is in `_ahead`
        self._bytes = 0
        self._changed = Condition()
        self._stop = Event()
        self._threads = [Thread(target=self._work, name="rhofast-download", daemon=True) for _ in range(threads)]
        shards.add_queue(self)
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        if self._held:
            with self._changed:
                self._held = False
                self._changed.notify_all()

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
                fits = self._bytes + size <= self._shards.ahead_bytes or not self._ahead
                # Epochs have no end: a set that fits in the cache would be asked for again and again.
                if fits and not self._held and shard not in self._times:
                    self._ahead.append(shard)
                    self._times[shard] += 1
                    self._bytes += size
                    self._next = next(self._needed, None)
                    return shard
                self._changed.wait()
        return None

    def _size(self, shard: int) -> int:
        return self._shards.cached_bytes(shard)
