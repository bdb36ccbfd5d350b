"""One or several weighted shard sets as the training data of a run: which samples make up which batch.

The sets' samples are numbered one set after another. With one set, an epoch is one pass over it. With several, batches
are cut from an endless stream in which set k has its share of places, up to rounding: of the places that the sets
before it leave over, so many of the first n are its own,

    c_k(n) = floor(r_k(n) w_k / (w_k + ... + w_K)),    r_0(n) = n,    r_k+1(n) = r_k(n) - c_k(n)

which never falls as n grows, and adds up to n. Every set goes through epochs of its own, as fast as its share takes it.
Where batches are dealt to lanes (order.py), the stream is that of each lane, so every lane has its share of every set.
Who is where is arithmetic at any position: resuming, other numbers of ranks and replaying need no memory of what was.

What it is not: it opens no set (remote.py) and reads none (reader.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.rng import Stream, uniform
from rhofast.data.sampling.shuffle import Order, steps_per_epoch
from rhofast.data.types import Position

Int64Array = npt.NDArray[np.int64]


class Mixture:
    """Shard sets and their weights. sets: in the order in which their samples are numbered. Raises ValueError for no
    set, or weights that are not positive and one a set."""

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        self.sets = tuple(sets)
        self.weights = (1.0,) * len(self.sets) if weights is None else tuple(weights)
        if not self.sets or len(self.weights) != len(self.sets) or not all(weight > 0 for weight in self.weights):
            raise ValueError("a mixture needs at least one set, and a positive weight for each")
        self.starts: Int64Array = np.cumsum([0, *(len(one) for one in self.sets)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """Names the content: equal digests mean equal batches for equal seeds. Of one set it is the set's own."""
        if len(self.sets) == 1:
            return self.sets[0].info.digest
        text = json.dumps([[one.info.digest, weight] for one, weight in zip(self.sets, self.weights, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()

    def locate(self, sample: int) -> tuple[int, int]:
        """(number of the set, sample in it). Raises IndexError outside [0, len)."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return number, int(sample - self.starts[number])

    def row(self, sample: int) -> IndexRow:
        number, local = self.locate(sample)
        return self.sets[number].row(local)

    def order(
        self, *, seed: int, block_shards: int | None = None, lanes: int = 1, fixed_lanes: bool = False
    ) -> MixtureOrder:
        return MixtureOrder(self, seed=seed, block_shards=block_shards, lanes=lanes, fixed_lanes=fixed_lanes)


class MixtureOrder:
    """The order of a mixture's samples, batch after batch. Immutable; thread-safe. block_shards, lanes, fixed_lanes: as
    `Order` has them, of each set. Raises ValueError where a set has fewer samples than lanes."""

    def __init__(self, mixture: Mixture, *, seed: int, block_shards: int | None, lanes: int, fixed_lanes: bool) -> None:
        self._mixture = mixture
        self._seed = seed
        self._lanes = lanes
        self._orders = [
            Order(one.starts, seed=seed, block_shards=block_shards, lanes=lanes, fixed_lanes=fixed_lanes)
            for one in mixture.sets
        ]
        weights = [Fraction(weight) for weight in mixture.weights]
        self._shares = [weight / sum(weights[number:]) for number, weight in enumerate(weights)]  # of what is left

    def batch(self, at: Position, size: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """(samples, epochs, places), i64[size] each, of the global batch at a position, lane by lane: numbers in the
        mixture; which time it is that each one's set is gone through; and its position in that order."""
        if len(self._orders) == 1:
            positions = np.arange(at.position, at.position + size).reshape(-1, self._lanes).T.reshape(-1)
            return self._orders[0].at(at.epoch, positions), np.full(size, at.epoch, dtype=np.int64), positions
        first = self._stream_position(at, size)
        samples, epochs, places = [], [], []
        for order, start, begin, end in zip(
            self._orders,
            self._mixture.starts[:-1].tolist(),
            self._counts(first),
            self._counts(first + size),
            strict=True,
        ):
            epoch, position = np.divmod(np.arange(begin, end), len(order))
            samples.append(start + order.at(epoch, position))
            epochs.append(epoch)
            places.append(position)
        draws = uniform(self._seed, at.epoch, at.position, Stream.MIXTURE, size)
        place = np.concatenate(places)
        shuffled = np.lexsort((draws, place % self._lanes))
        return np.concatenate(samples)[shuffled], np.concatenate(epochs)[shuffled], place[shuffled]

    def sample(self, number: int, epoch: int, place: int) -> int:
        """The sample, by its number in the mixture, at a place of the order of one set."""
        return int(self._mixture.starts[number] + self._orders[number].at(epoch, place))

    def beside(self, number: int, epoch: int, place: int) -> range:
        """The places of one set that are needed about the same time: of its block of shards, or of its
        lane."""
        return self._orders[number].block_of(epoch, place)

    def steps_per_epoch(self, size: int) -> int:
        """Whole batches in as many samples as the sets have together. Raises ValueError if there is not even one, or
        the lanes do not divide a batch."""
        if size % self._lanes:
            raise ValueError(f"a global batch of {size} cannot be dealt to {self._lanes} lanes (data.lanes)")
        return steps_per_epoch(len(self._mixture), size)

    def normalized(self, at: Position, size: int) -> Position:
        """The same place, or the next epoch's first where the rest of this one is too short for a batch."""
        if at.position + size > len(self._mixture):
            return Position(epoch=at.epoch + 1, position=0)
        return at

    def after(self, at: Position, size: int) -> Position:
        """The place of the batch that follows."""
        at = self.normalized(at, size)
        return self.normalized(Position(epoch=at.epoch, position=at.position + size), size)

    def shards_from(self, at: Position, size: int, lanes: range) -> list[Iterator[int]]:
        """For each set the shards that some lanes need from a position on, in the order of their first need, without
        end."""
        if len(self._orders) == 1:
            return [self._orders[0].shards_from(at.epoch, at.position, lanes)]
        counts = self._counts(self._stream_position(at, size))
        return [
            order.shards_from(*divmod(count, len(order)), lanes)
            for order, count in zip(self._orders, counts, strict=True)
        ]

    def _stream_position(self, at: Position, size: int) -> int:
        """Samples before a position: each epoch has only whole batches."""
        return at.epoch * self.steps_per_epoch(size) * size + at.position

    def _counts(self, first: int) -> list[int]:
        """How many of the first so many places of the stream each set has: equally many in each lane."""
        counts, left = [], first // self._lanes
        for share in self._shares:  # exact fractions: the last share is 1
            count = int(left * share)
            counts.append(count * self._lanes)
            left -= count
        return counts
