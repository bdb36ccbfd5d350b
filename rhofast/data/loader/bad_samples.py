"""What becomes of samples that cannot be read or decoded.

They are counted, named in a file, and limited in number (`BadSampleLog`). Training then replaces each by another
sample, the same on every rank and in every repetition; evaluation leaves it out and reports it (`BadSamplePolicy`).
"""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock

import numpy as np

from rhofast.data.loader.batch import BatchInProgress, Int64Array
from rhofast.data.sampling.mixture import Mixture, MixtureOrder
from rhofast.data.sampling.rng import Stream, uniform
from rhofast.errors import SampleError, TooManyBadSamplesError

_WAITING_LINES = 10_000
GRACE = 1000  # samples before which the share of bad ones is taken of so many


class BadSampleLog:
    """The number and the names of bad samples. Thread-safe.

    Args:
        log: File to which a line of JSON is appended per bad sample; None for no file.
        limit: Share of bad samples above which the run ends, in [0, 1]; None for no limit.

    Attributes:
        count: Number of bad samples.
        write_error: Why the file could not be written last time, or None. Lines wait until it can be written again.
    """

    def __init__(self, log: Path | None, limit: float | None) -> None:
        self.count = 0
        self.write_error: OSError | None = None
        self._waiting: deque[str] = deque(maxlen=_WAITING_LINES)
        self._torn = False  # The last line was written in part: the next one begins on a line of its own.
        self._log, self._limit = log, limit
        self._lock = Lock()

    def add(self, error: SampleError, sample: int, where: dict[str, int], seen: int) -> None:
        """Count a bad sample and write its line.

        Args:
            error: Why it is bad.
            sample: Its number in the data.
            where: Rank and position at which it was needed.
            seen: Number of samples that were needed so far.

        Raises:
            TooManyBadSamplesError: The share of bad samples is above the limit.
        """
        with self._lock:
            self.count += 1
            if self._log is not None:
                line = {"sample": sample, "shard": error.shard, "key": error.key, "offset": error.offset}
                self._waiting.append(json.dumps({**where, **line, "reason": error.reason}) + "\n")
                self._write(self._log)
            if self._limit is not None and self.count > self._limit * max(seen, GRACE):
                raise TooManyBadSamplesError(
                    f"{self.count} bad samples among {seen}, the last one: {error.reason}",
                    shard=error.shard,
                    key=error.key,
                    offset=error.offset,
                    hint="check the set with `rhofast verify`, or raise data.max_bad",
                )

    def _write(self, path: Path) -> None:
        """Append the lines that wait; on a full disk they go on waiting, because a line is not worth a run."""
        try:
            with path.open("ab", buffering=0) as file:
                while self._waiting:
                    line = ("\n" * self._torn + self._waiting[0]).encode()
                    self._torn = (file.write(line) or 0) < len(line)
                    if self._torn:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self._waiting.popleft()
        except OSError as error:
            self.write_error = error
        else:
            self.write_error = None


class BadSamplePolicy(ABC):
    """What a loader does about samples that could not be read or decoded.

    Args:
        log: Where they are counted and named.
        rank: This rank, for the log.
    """

    def __init__(self, log: BadSampleLog, rank: int) -> None:
        self.log, self._rank = log, rank
        self._seen = 0

    def expect(self, samples: int) -> None:
        """Count samples that are about to be read, as what the share of bad ones is taken of."""
        self._seen += samples

    @abstractmethod
    def handle(self, batch: BatchInProgress, failed: Mapping[int, SampleError]) -> Int64Array:
        """Handle the samples that failed, which are not part of `batch.batch`.

        Args:
            batch: The batch; `current`, `attempts` and `replaced` are updated.
            failed: By slot, why the sample that stands there failed.

        Returns:
            The slots into which another sample, in `batch.current`, is to be read, i64[N].

        Raises:
            TooManyBadSamplesError: The share of bad samples is above the limit.
        """


class ReplaceBadSamples(BadSamplePolicy):
    """Puts another sample in the place of each bad one, drawn by the address of the planned one.

    Args:
        log: Where bad samples are counted and named.
        rank: This rank.
        data: The data.
        order: Order of the samples.
        seed: Seed of the run.
    """

    def __init__(self, log: BadSampleLog, rank: int, *, data: Mixture, order: MixtureOrder, seed: int) -> None:
        super().__init__(log, rank)
        self._data, self._order, self._seed = data, order, seed

    def handle(self, batch: BatchInProgress, failed: Mapping[int, SampleError]) -> Int64Array:
        """Replace the samples that failed."""
        where = {"rank": self._rank, **asdict(batch.selection.position)}
        for slot, error in failed.items():
            self.log.add(error, int(batch.current[slot]), where, self._seen)
            batch.replaced.setdefault(slot, str(error))
            batch.current[slot] = self._replacement(batch, slot)
        return np.array(list(failed), dtype=np.int64)

    def _replacement(self, batch: BatchInProgress, slot: int) -> int:
        """Draw the next replacement for a slot's sample in its epoch.

        It is of the same set, and of the same block of shards where there are blocks; it is not one of the same global
        batch, unless there is no other.
        """
        selection = batch.selection
        sample, epoch, place = (int(of[slot]) for of in (selection.samples, selection.epochs, selection.places))
        number, _ = self._data.locate(sample)
        candidates = self._order.beside(number, epoch, place)
        while True:
            batch.attempts[slot] = attempt = batch.attempts.get(slot, 0) + 1
            draws = uniform(self._seed, epoch, sample, Stream.REPLACEMENT, attempt)
            candidate = self._order.sample(number, epoch, candidates[int(draws[-1] * len(candidates))])
            if candidate not in selection.global_samples or len(candidates) <= len(selection.global_samples):
                return candidate


class DropBadSamples(BadSamplePolicy):
    """Leaves bad samples out of their batches and keeps their errors.

    Attributes:
        errors: The errors of all samples that were left out.
    """

    def __init__(self, log: BadSampleLog, rank: int) -> None:
        super().__init__(log, rank)
        self.errors: list[SampleError] = []

    def handle(self, batch: BatchInProgress, failed: Mapping[int, SampleError]) -> Int64Array:
        """Report the samples that failed; nothing is read in their place."""
        for slot, error in failed.items():
            self.errors.append(error)
            self.log.add(error, int(batch.selection.samples[slot]), {"rank": self._rank}, self._seen)
        return np.empty(0, dtype=np.int64)
