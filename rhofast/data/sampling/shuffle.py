"""Which sample stands at which position of which epoch: a stateless permutation, never an O(N) array.

A keyed bijection on [0, N): an alternating Feistel network on just the bits that hold N, and cycle walking (apply
again while the result is N or above; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The
round keys come from (seed, epoch), so every epoch has another order, and position 10**8 costs what position 0 costs:
resuming is arithmetic.

    positions  0 1 2 3 | 4 5 6 7 | ...       one global batch after another
    rank       0 0 1 1 | 0 0 1 1 | ...       each rank takes its slice of every global batch

Shards that must be fetched before they can be read are better needed a few at a time. `block_shards` permutes the
shards, cuts that row of shards into blocks, and permutes the samples of each block among themselves:

    shards     3 0 5 | 1 4 2 | ...           a permutation of the shards, three a block
    positions  the samples of 3, 0, 5 mixed, then those of 1, 4, 2 mixed, ...

That costs one number a shard, once an epoch, and still nothing a sample.

So that a node needs not fetch what only others read, that row of shards can be cut into `lanes`: parts of equally many
samples, each with blocks of its own. Every global batch takes equally many samples of each lane, and a rank's slice of
it comes from the same lanes all the time, whatever the batch. With as many lanes as nodes, the nodes together fetch
each shard once an epoch, and another number of ranks gets the same batches:

    shards     3 0 5 1 | 4 2 6 7      two lanes
    batch      a a a a   b b b b      rank 0 of 2 has what is in lane a
    positions  0 2 4 6   1 3 5 7      of the first batch: lane by lane

Each epoch deals the shards to the lanes anew. Less than one sample a lane is left out of an epoch, others each time.
With `fixed_lanes` the first epoch's lanes stay, and each epoch shuffles what is in them: a node whose cache holds its
lanes fetches once in all. What is left out then is the same in every epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rhofast.data.sampling.rng import Stream, UInt64Array, bits

Int64Array = npt.NDArray[np.int64]

_ROUNDS = 8
_LOOK_AHEAD = 4096  # positions evaluated at once in search of the next shard that is needed


def sample_at(positions: npt.ArrayLike, num_samples: int, *, seed: int, epoch: int) -> Int64Array:
    """The samples at the given positions of an epoch: i64, same shape, a permutation of [0, num_samples) over all.

    Raises ValueError if a position is outside [0, num_samples).
    """
    position = _checked(positions, num_samples)
    keys = bits(seed, epoch, 0, Stream.ORDER, _ROUNDS)
    flat = position.reshape(-1)
    size = np.full(flat.shape, num_samples, dtype=np.int64)
    return _permute(flat, size, np.broadcast_to(keys, (*flat.shape, _ROUNDS))).reshape(position.shape)


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """The shards, or the parts of them that fixed lanes have, in the order of one epoch. samples: each one's first
    sample, i64[parts]; begins: position of its first slot, i64[parts + 1]; block_begins: the same of each block,
    i64[blocks + 1]."""

    samples: Int64Array
    begins: Int64Array
    block_begins: Int64Array


class Order:
    """The order of one shard set's samples, epoch after epoch. Immutable; thread-safe.

    starts: number of each shard's first sample, and of samples at the end: i64[shards + 1] (`ShardSet.starts`).
    block_shards: shards a block, or None to permute the samples of a whole lane. lanes: of position p it is lane
    p % lanes. fixed_lanes: a lane has the same samples in every epoch. Raises ValueError for starts that do not ascend
    from 0 to at least 1, blocks without a shard, or lanes without a sample.
    """

    def __init__(
        self,
        starts: npt.ArrayLike,
        *,
        seed: int,
        block_shards: int | None = None,
        lanes: int = 1,
        fixed_lanes: bool = False,
    ) -> None:
        self._starts = np.array(starts, dtype=np.int64)
        if self._starts.ndim != 1 or len(self._starts) < 2 or self._starts[0] or self._starts[-1] < 1:
            raise ValueError("starts must begin at 0, one a shard and the number of samples at the end")
        if (np.diff(self._starts) < 0).any():
            raise ValueError("starts must ascend")
        if block_shards is not None and block_shards < 1:
            raise ValueError(f"a block of {block_shards} shards")
        if not 1 <= lanes <= self._starts[-1]:
            raise ValueError(f"{self._starts[-1]} samples cannot be dealt to {lanes} lanes")
        self.seed = seed
        self.block_shards = block_shards
        self.lanes = lanes
        self.fixed_lanes = fixed_lanes
        self._lane = int(self._starts[-1]) // lanes  # samples in each
        self._whole = block_shards is None and lanes == 1  # the samples of the set are permuted all together
        # What is kept of an epoch grows with the number of shards, so few epochs are kept: a loader crosses from one
        # to the next, a replay may stand in a third.
        self._arrangement = lru_cache(maxsize=4)(self._arrange)

    def __len__(self) -> int:
        """Positions of an epoch lie in [0, len): the samples, but for those that do not go into equal lanes."""
        return self._lane * self.lanes

    def at(self, epoch: int | Int64Array, positions: npt.ArrayLike) -> Int64Array:
        """The samples at the given positions: i64, same shape; no two of an epoch are the same. epoch: one for all
        positions, or one each. Raises ValueError if a position is outside."""
        position = _checked(positions, len(self))
        if np.ndim(epoch) == 0:
            return self._at(int(epoch), position)
        samples = np.empty(position.shape, dtype=np.int64)
        for one in np.unique(epoch):
            samples[epoch == one] = self._at(int(one), position[epoch == one])
        return samples

    def block_of(self, epoch: int, position: int) -> range:
        """The positions of the block that a position lies in; without blocks those of its lane."""
        lane, slot = position % self.lanes, int(self._slot(position))
        begins = self._arrangement(epoch).block_begins
        block = int(np.searchsorted(begins, slot, side="right")) - 1
        return self._positions(lane, int(begins[block]), int(begins[block + 1]))

    def shards_of(self, samples: Int64Array) -> Int64Array:
        """The shard that holds each sample: i64, same shape."""
        shards: Int64Array = np.searchsorted(self._starts, samples, side="right") - 1
        return shards

    def shards_from(self, epoch: int, position: int, lanes: range | None = None) -> Iterator[int]:
        """The shards that are needed from a position on, in the order of their first need: those of the rest of its
        block, then of block after block and epoch after epoch, without end. lanes: needed in these alone; a shard that
        lies in two of them is named twice."""
        while True:
            needs = (self._needs(epoch, position, lane) for lane in (range(self.lanes) if lanes is None else lanes))
            yield from (shard for _, shard in heapq.merge(*needs))
            epoch, position = epoch + 1, 0

    def _needs(self, epoch: int, position: int, lane: int) -> Iterator[tuple[int, int]]:
        """(position of its first need, shard) from a position to the end of the epoch, of one lane: ascending within a
        block, block after block."""
        arrangement = self._arrangement(epoch)
        begins, cuts = arrangement.begins, arrangement.block_begins
        slot, end = lane * self._lane + max(0, -((lane - position) // self.lanes)), (lane + 1) * self._lane
        while slot < end:
            block = int(np.searchsorted(cuts, slot, side="right")) - 1
            cut, next_cut = int(cuts[block]), int(cuts[block + 1])
            shards = np.searchsorted(begins, next_cut) - np.searchsorted(begins, cut, side="right") + 1
            yield from self._first_needs(epoch, self._positions(lane, slot, next_cut), int(shards))
            slot = next_cut

    def _first_needs(self, epoch: int, positions: range, shards: int) -> Iterator[tuple[int, int]]:
        """(position, shard) where each shard of the positions, at most so many, is needed first."""
        seen: set[int] = set()
        for begin in range(0, len(positions), _LOOK_AHEAD):
            some = positions[begin : begin + _LOOK_AHEAD]
            part = np.arange(some.start, some.stop, some.step)
            needed, first = np.unique(self.shards_of(self._at(epoch, part)), return_index=True)
            for place in np.argsort(first).tolist():
                if (shard := int(needed[place])) not in seen:
                    seen.add(shard)
                    yield int(part[first[place]]), shard
            if len(seen) == shards:
                return

    def _slot(self, position: Int64Array | int) -> Int64Array:
        """The place in the row of lanes that belongs to a position, before blocks are permuted."""
        return np.asarray(position % self.lanes * self._lane + position // self.lanes)

    def _positions(self, lane: int, first: int, end: int) -> range:
        """The positions that belong to the places [first, end) of a lane."""
        first, end = first - lane * self._lane, end - lane * self._lane
        return range(first * self.lanes + lane, end * self.lanes + lane, self.lanes)

    def _at(self, epoch: int, position: Int64Array) -> Int64Array:
        if self._whole:
            return sample_at(position, len(self), seed=self.seed, epoch=epoch)
        epoch_of = self._arrangement(epoch)
        flat = self._slot(position.reshape(-1))
        block = np.searchsorted(epoch_of.block_begins, flat, side="right") - 1
        begin, end = epoch_of.block_begins[block], epoch_of.block_begins[block + 1]
        distinct, which = np.unique(block, return_inverse=True)
        keys = bits(self.seed, epoch, distinct + 1, Stream.ORDER, _ROUNDS)  # address 0 is that of the shards' order
        slot = begin + _permute(flat - begin, end - begin, keys[which])
        place = np.searchsorted(epoch_of.begins, slot, side="right") - 1
        samples: Int64Array = epoch_of.samples[place] + slot - epoch_of.begins[place]
        return samples.reshape(position.shape)

    def _arrange(self, epoch: int) -> _Arrangement:
        count = len(self._starts) - 1
        if self._whole:
            ends = self._starts[[0, -1]]
            return _Arrangement(samples=self._starts[:-1], begins=self._starts, block_begins=ends)
        shards = sample_at(np.arange(count), count, seed=self.seed, epoch=0 if self.fixed_lanes else epoch)
        samples, begins = self._starts[shards], np.concatenate([[0], np.cumsum(np.diff(self._starts)[shards])])
        edges = self._lane * np.arange(self.lanes + 1)
        if self.fixed_lanes:
            samples, begins = self._shuffled_within(edges, samples, begins, epoch)
        firsts = np.searchsorted(begins, edges[:-1], side="right") - 1  # the shard that each lane begins in
        lasts = np.searchsorted(begins, edges[1:])
        size = self.block_shards or count
        parts: list[Int64Array] = []
        for lane, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            parts += [edges[lane : lane + 1], begins[first + size : last : size]]
        return _Arrangement(samples=samples, begins=begins, block_begins=np.concatenate([*parts, edges[-1:]]))

    def _shuffled_within(
        self, edges: Int64Array, samples: Int64Array, begins: Int64Array, epoch: int
    ) -> tuple[Int64Array, Int64Array]:
        """(samples, begins) of a row of shards that is cut at the lanes' edges, each lane's parts in an order of the
        epoch's own."""
        cuts = np.union1d(begins[begins < edges[-1]], edges)
        whole = np.searchsorted(begins, cuts[:-1], side="right") - 1  # the shard that each part is of
        shuffled = sample_at(np.arange(len(whole)), len(whole), seed=self.seed, epoch=epoch)
        order = shuffled[np.argsort(cuts[shuffled] // self._lane, kind="stable")]
        firsts = samples[whole] + cuts[:-1] - begins[whole]
        return firsts[order], np.concatenate([[0], np.cumsum(np.diff(cuts)[order])])


def lanes_of(ranks: range, world_size: int, lanes: int) -> range:
    """The lanes that these ranks' slices of every global batch come from."""
    return range(ranks.start * lanes // world_size, -(-ranks.stop * lanes // world_size))


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole global batches in one pass; the rest of the permutation is left for other epochs' orders. Raises
    ValueError if there is not even one."""
    if batch_size > num_samples:
        raise ValueError(f"a batch of {batch_size} does not fit into {num_samples} samples")
    return num_samples // batch_size


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of every global batch that a rank takes. Raises ValueError where the ranks do not divide it."""
    if batch_size % world_size:
        raise ValueError(f"a global batch of {batch_size} cannot be divided among {world_size} processes")
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def _checked(positions: npt.ArrayLike, num_samples: int) -> Int64Array:
    position = np.asarray(positions, dtype=np.int64)
    if position.size and (position.min() < 0 or position.max() >= num_samples):
        raise ValueError(f"positions must lie in [0, {num_samples})")
    return position


def _permute(position: Int64Array, size: Int64Array, keys: UInt64Array) -> Int64Array:
    """Each position i64[n] under a bijection of its own [0, size), i64[n], keyed by u64[n, rounds]."""
    width = np.maximum(2, np.frexp(size - 1.0)[1]).astype(np.uint64)  # the bit length of size - 1, exact below 2**53
    value, bound = position.astype(np.uint64), size.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):  # on average below two times: the domain is less than twice the size
        value[outside] = _feistel(value[outside], width[outside], keys[outside])
        outside = outside[value[outside] >= bound[outside]]
    return value.astype(np.int64)


def _feistel(value: UInt64Array, width: UInt64Array, keys: UInt64Array) -> UInt64Array:
    one = np.uint64(1)
    low = width // np.uint64(2)
    low_mask, high_mask = (one << low) - one, (one << (width - low)) - one
    left, right = value >> low, value & low_mask
    for number in range(_ROUNDS):
        key = keys[:, number]
        if number % 2 == 0:
            left = left ^ (_mix(right + key) & high_mask)
        else:
            right = right ^ (_mix(left + key) & low_mask)
    joined: UInt64Array = (left << low) | right
    return joined


def _mix(value: UInt64Array) -> UInt64Array:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64Array = value ^ (value >> np.uint64(31))
    return mixed
