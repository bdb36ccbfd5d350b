"""Shuffle samples: which sample stands at which position of which epoch, without an O(N) array.

The samples are permuted by a keyed bijection (permutation.py) whose keys come from (seed, epoch). So every epoch has
another order, and position 10**8 costs what position 0 costs. Resuming is arithmetic.

    positions  0 1 2 3 | 4 5 6 7 | ...       one global batch after another
    rank       0 0 1 1 | 0 0 1 1 | ...       each rank takes its slice of every global batch

Shards that must be downloaded before they can be read should be needed only a few at a time. `block_shards` permutes
the shards, cuts that sequence of shards into blocks, and permutes the samples of each block among themselves:

    shards     3 0 5 | 1 4 2 | ...           a permutation of the shards, three per block
    positions  the samples of 3, 0, 5 mixed, then those of 1, 4, 2 mixed, ...

This costs one number per shard and epoch, and still nothing per sample.

So that a node need not download what only others read, the sequence of shards can be cut into `lanes`: parts of equally
many samples, each with blocks of its own. Every global batch takes equally many samples from each lane, and the slice
of a rank always comes from the same lanes. With as many lanes as nodes, the nodes together download each shard once per
epoch, and another number of ranks gets the same batches:

    shards     3 0 5 1 | 4 2 6 7      two lanes
    batch      a a a a   b b b b      rank 0 of 2 gets the samples of lane a
    positions  0 2 4 6   1 3 5 7      of the first batch, lane by lane

Each epoch assigns shards to lanes anew. Fewer than one sample per lane are left out of an epoch, others each time. With
`fixed_lanes` the lanes of the first epoch stay, and each epoch shuffles within them: a node whose cache holds its lanes
downloads each shard once per run. The samples that are left out are then the same in every epoch.

If samples have weights, an epoch has visits in place of samples, which visits.py counts: everything above is then said
of visits. With fixed lanes a shard that lies in two lanes may give either of them some visits more in an epoch than in
another.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rhofast.data.sampling.permutation import Int64Array, check_positions, permute, round_keys, sample_at
from rhofast.data.sampling.visits import first_visits, samples_of

_LOOK_AHEAD = 4096  # positions that are evaluated at once to find the next shard that is needed


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """The parts of one epoch in their order: whole shards, or what fixed lanes have of them.

    Attributes:
        samples: First sample, or visit, of each part, i64[parts].
        begins: First slot of each part, and the number of slots at the end, i64[parts + 1].
        block_begins: First slot of each block, and the number of slots at the end, i64[blocks + 1].
    """

    samples: Int64Array
    begins: Int64Array
    block_begins: Int64Array


class Order:
    """The order of one shard set's samples, epoch after epoch. Immutable and thread-safe.

    Attributes:
        seed: Seed of the run.
        block_shards: Shards per block, or None.
        lanes: Number of lanes; position p belongs to lane p % lanes.
        fixed_lanes: Whether a lane has the same samples in every epoch.
    """

    def __init__(
        self,
        starts: npt.ArrayLike,
        *,
        seed: int,
        block_shards: int | None = None,
        lanes: int = 1,
        fixed_lanes: bool = False,
        rates: Int64Array | None = None,
    ) -> None:
        """Define the order; nothing is computed yet.

        Args:
            starts: Number of each shard's first sample, and the number of samples at the end, i64[shards + 1]
                (`ShardSet.starts`). A shard without samples is never needed, and is not counted in a block.
            seed: Seed of the run.
            block_shards: Shards per block; None to permute the samples of a whole lane.
            lanes: Number of lanes.
            fixed_lanes: Whether a lane has the same samples in every epoch.
            rates: Mean visits of each sample per epoch (`Subset.rates`); None to visit each once.

        Raises:
            ValueError: `starts` does not ascend from 0 to at least 1, a block has no shard, or a lane no sample.
        """
        self._rates = rates
        self._starts = np.array(starts, dtype=np.int64)
        if self._starts.ndim != 1 or len(self._starts) < 2 or self._starts[0] or self._starts[-1] < 1:
            raise ValueError("starts must begin at 0 and hold one number per shard and the number of samples")
        if (np.diff(self._starts) < 0).any():
            raise ValueError("starts must ascend")
        self._shards = np.flatnonzero(np.diff(self._starts))  # those that have samples
        self._starts = self._starts[[*self._shards.tolist(), -1]]
        if block_shards is not None and block_shards < 1:
            raise ValueError(f"block_shards={block_shards} must be at least 1")
        if not 1 <= lanes <= self._starts[-1]:
            raise ValueError(f"{self._starts[-1]} samples cannot be divided among {lanes} lanes")
        self.seed = seed
        self.block_shards = block_shards
        self.lanes = lanes
        self.fixed_lanes = fixed_lanes
        self._lane_size = int(self._starts[-1]) // lanes
        self._whole = block_shards is None and lanes == 1  # all samples of the set are permuted together
        # The size of an arrangement grows with the number of shards, so few are kept: a loader needs those of this
        # epoch and the next one, a replay may need a third.
        self._arrangement = lru_cache(maxsize=4)(self._arrange)
        self._first_visits = lru_cache(maxsize=4)(self._count_visits)

    def __len__(self) -> int:
        """Return the number of positions of an epoch: all samples, except those that equal lanes leave out."""
        return self._lane_size * self.lanes

    def at(self, epoch: int | Int64Array, positions: npt.ArrayLike) -> Int64Array:
        """Return the samples at positions; without weights, no two of an epoch are equal.

        Args:
            epoch: Epoch of all positions, or one per position.
            positions: Positions in [0, len), of any shape.

        Returns:
            Samples, i64 of the same shape.

        Raises:
            ValueError: A position is outside its interval.
        """
        return self.visits_at(epoch, positions)[0]

    def visits_at(self, epoch: int | Int64Array, positions: npt.ArrayLike) -> tuple[Int64Array, Int64Array]:
        """Return the samples at positions, and how often each was visited before in its epoch.

        Args:
            epoch: Epoch of all positions, or one per position.
            positions: Positions in [0, len), of any shape.

        Returns:
            Samples, and numbers of earlier visits, which are 0 without weights; i64 of the same shape each.

        Raises:
            ValueError: A position is outside its interval.
        """
        position = check_positions(positions, len(self))
        if np.ndim(epoch) == 0:
            return self._at(int(epoch), position)
        samples, earlier = np.empty((2, *position.shape), dtype=np.int64)
        for number in np.unique(epoch):
            here = epoch == number
            samples[here], earlier[here] = self._at(int(number), position[here])
        return samples, earlier

    def block_of(self, epoch: int, position: int) -> range:
        """Return the positions of the block of a position in an epoch; without blocks, those of its lane."""
        lane, slot = position % self.lanes, int(self._slot(position))
        begins = self._arrangement(epoch).block_begins
        block = int(np.searchsorted(begins, slot, side="right")) - 1
        return self._positions(lane, int(begins[block]), int(begins[block + 1]))

    def shards_of(self, samples: Int64Array) -> Int64Array:
        """Return the shard that holds each sample, i64 of the same shape."""
        return self._shards[np.searchsorted(self._starts, samples, side="right") - 1]

    def shards_from(self, epoch: int, position: int, lanes: range | None = None) -> Iterator[int]:
        """Iterate over the shards that are needed from a position on, without end.

        Args:
            epoch: Number of the epoch.
            position: Position in the epoch.
            lanes: The lanes that need the shards; None for all.

        Yields:
            Shards in the order of their first need: those of the rest of the block, then block after block and epoch
            after epoch. A shard that lies in two lanes is yielded twice.
        """
        while True:
            needs = (self._needs(epoch, position, lane) for lane in (range(self.lanes) if lanes is None else lanes))
            yield from (shard for _, shard in heapq.merge(*needs))
            epoch, position = epoch + 1, 0

    def _needs(self, epoch: int, position: int, lane: int) -> Iterator[tuple[int, int]]:
        """Yield (position of its first need, shard) of one lane from a position to the end of the epoch.

        The positions ascend within a block, and block after block.
        """
        arrangement = self._arrangement(epoch)
        begins, cuts = arrangement.begins, arrangement.block_begins
        slot, end = lane * self._lane_size + max(0, -((lane - position) // self.lanes)), (lane + 1) * self._lane_size
        while slot < end:
            block = int(np.searchsorted(cuts, slot, side="right")) - 1
            cut, next_cut = int(cuts[block]), int(cuts[block + 1])
            shards = np.searchsorted(begins, next_cut) - np.searchsorted(begins, cut, side="right") + 1
            yield from self._first_needs(epoch, self._positions(lane, slot, next_cut), int(shards))
            slot = next_cut

    def _first_needs(self, epoch: int, positions: range, shards: int) -> Iterator[tuple[int, int]]:
        """Yield (position, shard) where each shard of the positions is needed first, for at most `shards` shards."""
        seen: set[int] = set()
        for begin in range(0, len(positions), _LOOK_AHEAD):
            chunk = positions[begin : begin + _LOOK_AHEAD]
            position = np.arange(chunk.start, chunk.stop, chunk.step)
            needed, first = np.unique(self.shards_of(self._at(epoch, position)[0]), return_index=True)
            for place in np.argsort(first).tolist():
                if (shard := int(needed[place])) not in seen:
                    seen.add(shard)
                    yield int(position[first[place]]), shard
            if len(seen) == shards:
                return

    def _slot(self, position: Int64Array | int) -> Int64Array:
        """Return the slot of a position: its place in the sequence of lanes, before blocks are permuted."""
        return np.asarray(position % self.lanes * self._lane_size + position // self.lanes)

    def _positions(self, lane: int, first: int, end: int) -> range:
        """Return the positions that belong to the slots [first, end) of a lane."""
        first, end = first - lane * self._lane_size, end - lane * self._lane_size
        return range(first * self.lanes + lane, end * self.lanes + lane, self.lanes)

    def _at(self, epoch: int, position: Int64Array) -> tuple[Int64Array, Int64Array]:
        visits = self._shuffled(epoch, position)
        return (visits, np.zeros_like(visits)) if self._rates is None else samples_of(visits, self._first_visits(epoch))

    def _count_visits(self, epoch: int) -> Int64Array:
        assert self._rates is not None
        return first_visits(self._rates, self._starts, seed=self.seed, epoch=epoch)

    def _shuffled(self, epoch: int, position: Int64Array) -> Int64Array:
        """Return the visits at positions; without weights, the only visit of a sample has the sample's number."""
        if self._whole:
            return sample_at(position, len(self), seed=self.seed, epoch=epoch)
        arrangement = self._arrangement(epoch)
        flat = self._slot(position.reshape(-1))
        block = np.searchsorted(arrangement.block_begins, flat, side="right") - 1
        begin, end = arrangement.block_begins[block], arrangement.block_begins[block + 1]
        distinct, which = np.unique(block, return_inverse=True)
        keys = round_keys(self.seed, epoch, distinct + 1)  # number 0 belongs to the order of the shards
        slot = begin + permute(flat - begin, end - begin, keys[which])
        part = np.searchsorted(arrangement.begins, slot, side="right") - 1
        visits: Int64Array = arrangement.samples[part] + slot - arrangement.begins[part]
        return visits.reshape(position.shape)

    def _arrange(self, epoch: int) -> _Arrangement:
        count = len(self._starts) - 1
        starts = self._starts if self._rates is None else self._first_visits(epoch)[self._starts]
        if self._whole:
            return _Arrangement(samples=starts[:-1], begins=starts, block_begins=starts[[0, -1]])
        shards = sample_at(np.arange(count), count, seed=self.seed, epoch=0 if self.fixed_lanes else epoch)
        samples, begins = starts[shards], np.concatenate([[0], np.cumsum(np.diff(starts)[shards])])
        edges = self._lane_size * np.arange(self.lanes + 1)
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
        """Cut a sequence of shards at the edges of the lanes, and shuffle the parts of each lane for an epoch.

        Returns:
            `samples` and `begins` of the `_Arrangement`.
        """
        cuts = np.union1d(begins[begins < edges[-1]], edges)
        whole = np.searchsorted(begins, cuts[:-1], side="right") - 1  # the shard of each part
        shuffled = sample_at(np.arange(len(whole)), len(whole), seed=self.seed, epoch=epoch)
        order = shuffled[np.argsort(cuts[shuffled] // self._lane_size, kind="stable")]
        firsts = samples[whole] + cuts[:-1] - begins[whole]
        return firsts[order], np.concatenate([[0], np.cumsum(np.diff(cuts)[order])])


def lanes_of(ranks: range, world_size: int, lanes: int) -> range:
    """Return the lanes from which the slices of some ranks come.

    Args:
        ranks: The ranks.
        world_size: Number of ranks of the run.
        lanes: Number of lanes.

    Returns:
        The numbers of the lanes.
    """
    return range(ranks.start * lanes // world_size, -(-ranks.stop * lanes // world_size))


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of whole global batches in one epoch; the remaining samples are left out of it.

    Args:
        num_samples: Number of samples.
        batch_size: Size of the global batch.

    Returns:
        The number of batches, at least one.

    Raises:
        ValueError: There is not even one batch.
    """
    if batch_size > num_samples:
        raise ValueError(f"a batch of {batch_size} does not fit into {num_samples} samples")
    return num_samples // batch_size


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the slice of every global batch that a rank takes.

    Args:
        batch_size: Size of the global batch.
        rank: Number of the rank.
        world_size: Number of ranks.

    Returns:
        The slice.

    Raises:
        ValueError: The number of ranks does not divide the batch.
    """
    if batch_size % world_size:
        raise ValueError(f"a global batch of {batch_size} cannot be divided among {world_size} processes")
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)
