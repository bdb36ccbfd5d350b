"""Mix one or several weighted shard sets: which samples make up which batch of a run.

Samples are numbered one set after another. With one set, an epoch is one pass over it. With several, batches are cut
from an endless stream, of which each set has its share of places, up to rounding. Let r_k(n) be the places among the
first n that the sets before set k leave. Then set k has

    c_k(n) = floor(r_k(n) w_k / (w_k + ... + w_K)),    r_0(n) = n,    r_k+1(n) = r_k(n) - c_k(n)

of them. c_k never decreases as n grows, and the c_k sum to n. Each set goes through epochs of its own, at a speed that
follows from its share. If batches are divided into lanes (shuffle.py), there is one such stream per lane, so every lane
has its share of every set. All of this is arithmetic at any position, so resuming, replaying and changing the number of
ranks need no history. sources.py opens the sets, reader.py reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.rng import Stream, uniform
from rhofast.data.sampling.shuffle import Order, steps_per_epoch
from rhofast.data.types import Position

Int64Array = npt.NDArray[np.int64]


class Places(NamedTuple):
    """The samples of a batch and where they stand.

    Attributes:
        samples: Numbers of the samples in the mixture, i64[B].
        epochs: Epoch of each one's set, i64[B].
        places: Position of each in that epoch, i64[B].
        earlier: How often each was visited before in that epoch, i64[B]; 0 without weights of samples.
    """

    samples: Int64Array
    epochs: Int64Array
    places: Int64Array
    earlier: Int64Array


class Mixture:
    """Shard sets and their weights.

    Attributes:
        sets: The sets, in the order in which their samples are numbered.
        weights: The weight of each set.
        starts: Number of each set's first sample, and the number of samples at the end, i64[sets + 1].
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        """Mix sets.

        Args:
            sets: The sets, at least one.
            weights: A positive weight per set; None for equal weights.

        Raises:
            ValueError: There is no set, or not one positive weight per set.
        """
        self.sets = tuple(sets)
        self.weights = (1.0,) * len(self.sets) if weights is None else tuple(weights)
        if not self.sets or len(self.weights) != len(self.sets) or not all(weight > 0 for weight in self.weights):
            raise ValueError("a mixture needs at least one set, and a positive weight for each")
        self.starts: Int64Array = np.cumsum([0, *(len(shards) for shards in self.sets)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __repr__(self) -> str:
        if len(self.sets) == 1:
            return repr(self.sets[0])
        weighted = (f"{weight:g} x {shards!r}" for weight, shards in zip(self.weights, self.sets, strict=True))
        return f"Mixture({', '.join(weighted)})"

    @property
    def digest(self) -> str:
        """Digest of the content: equal digests mean equal batches for equal seeds. One set keeps its own digest."""
        if len(self.sets) == 1:
            return self.sets[0].digest
        text = json.dumps([[shards.digest, weight] for shards, weight in zip(self.sets, self.weights, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def parts(self) -> str | None:
        """What parts of the sets are used, in words; None if all sets are whole."""
        if all(shards.part is None for shards in self.sets):
            return None
        return ", ".join(
            f"{len(shards):,} of {shards.info.num_samples:,} samples"
            + (
                ""
                if shards.part is None
                else f" ({'weighted, ' if shards.part.rates is not None else ''}{shards.digest[:8]})"
            )
            for shards in self.sets
        )

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the number of a sample's set, and its number in that set.

        Raises:
            IndexError: The sample is not in [0, len).
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return number, int(sample - self.starts[number])

    def shard_starts(self, number: int) -> Int64Array:
        """Return the number of each shard's first sample in its set, and the number of samples at the end."""
        return self.sets[number].starts

    def rates(self, number: int) -> Int64Array | None:
        """Return how often each sample of a set is visited per epoch (`Subset.rates`); None for once."""
        part = self.sets[number].part
        return None if part is None else part.rates

    def row(self, sample: int) -> IndexRow:
        """Return what the index knows of a sample."""
        number, local = self.locate(sample)
        return self.sets[number].row(local)

    def order(
        self, *, seed: int, block_shards: int | None = None, lanes: int = 1, fixed_lanes: bool = False
    ) -> MixtureOrder:
        """Return the order of the samples for a seed; see `MixtureOrder` for the arguments."""
        return MixtureOrder(self, seed=seed, block_shards=block_shards, lanes=lanes, fixed_lanes=fixed_lanes)


class MixtureOrder:
    """The order of a mixture's samples, batch after batch. Immutable and thread-safe."""

    def __init__(self, mixture: Mixture, *, seed: int, block_shards: int | None, lanes: int, fixed_lanes: bool) -> None:
        """Define the order; nothing is computed yet.

        Args:
            mixture: The sets and their weights.
            seed: Seed of the run.
            block_shards: Shards per block of each set; None to permute the samples of a whole lane.
            lanes: Number of lanes of each set.
            fixed_lanes: Whether a lane has the same samples in every epoch.

        Raises:
            ValueError: A set has fewer samples than lanes.
        """
        self._mixture = mixture
        self._seed = seed
        self._lanes = lanes
        self._orders = [
            Order(
                mixture.shard_starts(number),
                seed=seed,
                block_shards=block_shards,
                lanes=lanes,
                fixed_lanes=fixed_lanes,
                rates=mixture.rates(number),
            )
            for number in range(len(mixture.sets))
        ]
        weights = [Fraction(weight) for weight in mixture.weights]
        self._shares = [
            weight / sum(weights[number:]) for number, weight in enumerate(weights)
        ]  # of the places that the sets before leave

    def batch(self, at: Position, size: int) -> Places:
        """Return the global batch at a position, lane by lane.

        Args:
            at: Position of the batch in the run.
            size: Size of the global batch.

        Returns:
            The samples, by their numbers in the mixture, and their places.
        """
        if len(self._orders) == 1:
            positions = np.arange(at.position, at.position + size).reshape(-1, self._lanes).T.reshape(-1)
            samples, earlier = self._orders[0].visits_at(at.epoch, positions)
            return Places(samples, np.full(size, at.epoch, dtype=np.int64), positions, earlier)
        first = self._stream_position(at, size)
        parts = []
        for order, start, begin, end in zip(
            self._orders,
            self._mixture.starts[:-1].tolist(),
            self._counts(first),
            self._counts(first + size),
            strict=True,
        ):
            epoch, position = np.divmod(np.arange(begin, end), len(order))
            samples, earlier = order.visits_at(epoch, position)
            parts.append((start + samples, epoch, position, earlier))
        draws = uniform(self._seed, at.epoch, at.position, Stream.MIXTURE, size)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        shuffled = np.lexsort((draws, columns[2] % self._lanes))
        return Places(*(column[shuffled] for column in columns))

    def sample(self, number: int, epoch: int, place: int) -> int:
        """Return the sample at a place in the order of one set.

        Args:
            number: Number of the set.
            epoch: Epoch of the set.
            place: Position in that epoch.

        Returns:
            The number of the sample in the mixture.
        """
        return int(self._mixture.starts[number] + self._orders[number].at(epoch, place))

    def beside(self, number: int, epoch: int, place: int) -> range:
        """Return the places of one set that are needed at about the same time as `place`.

        Args:
            number: Number of the set.
            epoch: Epoch of the set.
            place: Position in that epoch.

        Returns:
            The positions of its block of shards; without blocks, those of its lane.
        """
        return self._orders[number].block_of(epoch, place)

    def steps_per_epoch(self, size: int) -> int:
        """Return the number of whole batches in as many samples as the sets have together.

        Args:
            size: Size of the global batch.

        Returns:
            The number of batches, at least one.

        Raises:
            ValueError: There is not even one batch, or the lanes do not divide a batch.
        """
        if size % self._lanes:
            raise ValueError(f"a global batch of {size} cannot be divided among data.lanes={self._lanes}")
        return steps_per_epoch(len(self._mixture), size)

    def normalized(self, at: Position, size: int) -> Position:
        """Return `at`, or the start of the next epoch if the rest of this one is shorter than a batch."""
        if at.position + size > len(self._mixture):
            return Position(epoch=at.epoch + 1, position=0)
        return at

    def after(self, at: Position, size: int) -> Position:
        """Return the position of the batch after the one at `at`, for global batches of `size`."""
        at = self.normalized(at, size)
        return self.normalized(Position(epoch=at.epoch, position=at.position + size), size)

    def shards_from(self, at: Position, size: int, lanes: range) -> list[Iterator[int]]:
        """List the shards that some lanes need from a position on.

        Args:
            at: Position in the run.
            size: Size of the global batch.
            lanes: The lanes.

        Returns:
            For each set an endless iterator over its shards, in the order of their first need.
        """
        if len(self._orders) == 1:
            return [self._orders[0].shards_from(at.epoch, at.position, lanes)]
        counts = self._counts(self._stream_position(at, size))
        return [
            order.shards_from(*divmod(count, len(order)), lanes)
            for order, count in zip(self._orders, counts, strict=True)
        ]

    def _stream_position(self, at: Position, size: int) -> int:
        """Return the number of samples before a position; each epoch has only whole batches."""
        return at.epoch * self.steps_per_epoch(size) * size + at.position

    def _counts(self, first: int) -> list[int]:
        """Return how many of the first `first` places of the stream each set has, equally many in each lane."""
        counts, left = [], first // self._lanes
        for share in self._shares:  # exact fractions: the last share is 1
            count = int(left * share)
            counts.append(count * self._lanes)
            left -= count
        return counts
