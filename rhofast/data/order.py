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
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rhofast.rng import Stream, UInt64Array, bits

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
    """The shards in the order of one epoch. begins: position of each one's first slot, i64[shards + 1]; block_begins:
    the same of each block, i64[blocks + 1]."""

    shards: Int64Array
    begins: Int64Array
    block_begins: Int64Array


class Order:
    """The order of one shard set's samples, epoch after epoch. Immutable; thread-safe.

    starts: number of each shard's first sample, and of samples at the end: i64[shards + 1] (`ShardSet.starts`).
    block_shards: shards a block, or None to permute the samples of the whole set. Raises ValueError for starts that
    do not ascend from 0 to at least 1, or blocks without a shard.
    """

    def __init__(self, starts: npt.ArrayLike, *, seed: int, block_shards: int | None = None) -> None:
        self._starts = np.array(starts, dtype=np.int64)
        if self._starts.ndim != 1 or len(self._starts) < 2 or self._starts[0] or self._starts[-1] < 1:
            raise ValueError("starts must begin at 0, one a shard and the number of samples at the end")
        if (np.diff(self._starts) < 0).any():
            raise ValueError("starts must ascend")
        if block_shards is not None and block_shards < 1:
            raise ValueError(f"a block of {block_shards} shards")
        self.seed = seed
        self.block_shards = block_shards
        # What is kept of an epoch grows with the number of shards, so few epochs are kept: a loader crosses from one
        # to the next, a replay may stand in a third.
        self._arrangement = lru_cache(maxsize=4)(self._arrange)

    def __len__(self) -> int:
        """Samples: positions lie in [0, len)."""
        return int(self._starts[-1])

    def at(self, epoch: int | Int64Array, positions: npt.ArrayLike) -> Int64Array:
        """The samples at the given positions: i64, same shape; over all positions of an epoch a permutation of
        [0, len). epoch: one for all positions, or one each. Raises ValueError if a position is outside."""
        position = _checked(positions, len(self))
        if np.ndim(epoch) == 0:
            return self._at(int(epoch), position)
        samples = np.empty(position.shape, dtype=np.int64)
        for one in np.unique(epoch):
            samples[epoch == one] = self._at(int(one), position[epoch == one])
        return samples

    def block_of(self, epoch: int, position: int) -> range:
        """The positions of the block that a position lies in; without blocks all."""
        begins = self._arrangement(epoch).block_begins
        block = int(np.searchsorted(begins, position, side="right")) - 1
        return range(int(begins[block]), int(begins[block + 1]))

    def shards_of(self, samples: Int64Array) -> Int64Array:
        """The shard that holds each sample: i64, same shape."""
        shards: Int64Array = np.searchsorted(self._starts, samples, side="right") - 1
        return shards

    def shards_from(self, epoch: int, position: int) -> Iterator[int]:
        """The shards that are needed from a position on, in the order of their first need: those of the rest of its
        block, then of block after block and epoch after epoch, without end."""
        while True:
            begins = self._arrangement(epoch).block_begins
            for block in range(int(np.searchsorted(begins, position, side="right")) - 1, len(begins) - 1):
                first, end = int(begins[block]), int(begins[block + 1])
                yield from self._first_needs(
                    epoch, max(first, position), end, self.block_shards or len(self._starts) - 1
                )
            epoch, position = epoch + 1, 0

    def _first_needs(self, epoch: int, first: int, end: int, shards: int) -> Iterator[int]:
        """The shards of the positions [first, end), at most so many, each once."""
        seen: set[int] = set()
        for begin in range(first, end, _LOOK_AHEAD):
            needed = self.shards_of(self._at(epoch, np.arange(begin, min(begin + _LOOK_AHEAD, end))))
            for shard in dict.fromkeys(needed.tolist()):
                if shard not in seen:
                    seen.add(shard)
                    yield shard
            if len(seen) == shards:
                return

    def _at(self, epoch: int, position: Int64Array) -> Int64Array:
        if self.block_shards is None:
            return sample_at(position, len(self), seed=self.seed, epoch=epoch)
        epoch_of = self._arrangement(epoch)
        flat = position.reshape(-1)
        block = np.searchsorted(epoch_of.block_begins, flat, side="right") - 1
        begin, end = epoch_of.block_begins[block], epoch_of.block_begins[block + 1]
        distinct, which = np.unique(block, return_inverse=True)
        keys = bits(self.seed, epoch, distinct + 1, Stream.ORDER, _ROUNDS)  # address 0 is that of the shards' order
        slot = begin + _permute(flat - begin, end - begin, keys[which])
        place = np.searchsorted(epoch_of.begins, slot, side="right") - 1
        samples: Int64Array = self._starts[epoch_of.shards[place]] + slot - epoch_of.begins[place]
        return samples.reshape(position.shape)

    def _arrange(self, epoch: int) -> _Arrangement:
        count = len(self._starts) - 1
        if self.block_shards is None:
            ends = self._starts[[0, -1]]
            return _Arrangement(shards=np.arange(count), begins=self._starts, block_begins=ends)
        shards = sample_at(np.arange(count), count, seed=self.seed, epoch=epoch)
        begins = np.concatenate([[0], np.cumsum(np.diff(self._starts)[shards])])
        firsts = np.append(np.arange(0, count, self.block_shards), count)
        return _Arrangement(shards=shards, begins=begins, block_begins=begins[firsts])


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
