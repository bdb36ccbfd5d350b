"""Visit samples by their weights: how often each of K samples is visited in an epoch of K visits.

A sample of rate r (mean visits per epoch, `Subset.rates`) is visited floor(r) or ceil(r) times, r times on average over
the epochs, and always once if r = 1. The counts come from systematic sampling (Madow, "On the Theory of Systematic
Sampling, II", Ann. Math. Stat. 20, 1949): the rates are laid end to end on a line of length K, and whoever lies at
u, u + 1, u + 2, ... is visited, for one u in [0, 1) per epoch.

    rates     0.5  1.75     0.75  1
    line      |----|--------|-----|------|      from 0 to 4
    u = 0.6        |    |      |      |         0.6, 1.6, 2.6, 3.6
    visits    0    2        1     1

Each epoch lays the samples of a shard in another order, so that all combinations of samples occur. The order of the
shards stays, so a shard has the same number of visits in every epoch, up to one. All numbers are integers, and come
from (seed, epoch).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhofast.data.format.subset import VISIT
from rhofast.data.sampling.permutation import Int64Array, mix
from rhofast.data.sampling.rng import Stream, bits

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64
_SHARD_BITS = 24


def first_visits(rates: Int64Array, starts: Int64Array, *, seed: int, epoch: int) -> Int64Array:
    """Return the number of each sample's first visit in an epoch, if visits are numbered sample after sample.

    Args:
        rates: Mean visits of each sample per epoch, times VISIT, i64[K]; they sum to K * VISIT.
        starts: Number of each shard's first sample, and K at the end, i64[shards + 1]; at most 2**24 shards.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        i64[K + 1]; sample s has the visits [first[s], first[s + 1]), and there are K in all.
    """
    count = len(rates)
    scatter, start = bits(seed, epoch, np.arange(2), Stream.VISITS, 1)[:, 0]
    places = mix(np.arange(count, dtype=np.uint64) * _GOLDEN + scatter)
    shard = np.repeat(np.arange(len(starts) - 1, dtype=np.uint64), np.diff(starts))
    # Equal places are as good as a draw, but must come in one order on all machines.
    order = np.argsort(shard << np.uint64(64 - _SHARD_BITS) | places >> np.uint64(_SHARD_BITS), kind="stable")
    u = int(start) % VISIT
    reached = (np.cumsum(rates[order]) - u + VISIT - 1) // VISIT  # visits up to the end of each sample
    first = np.zeros(count + 1, dtype=np.int64)
    first[1 + order] = np.diff(reached, prepend=0)
    return np.cumsum(first, out=first)


def samples_of(visits: npt.ArrayLike, first: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the samples of visits.

    Args:
        visits: Numbers of visits, of any shape.
        first: What `first_visits` returned.

    Returns:
        The sample of each visit, and how often it was visited before in the epoch, i64 of the same shape each.
    """
    visit = np.asarray(visits, dtype=np.int64)
    samples: Int64Array = np.searchsorted(first, visit, side="right") - 1
    return samples, visit - first[samples]


def visit_numbers(samples: Int64Array, earlier: Int64Array) -> Int64Array:
    """Return the numbers by which the random draws of visits are addressed, so that each visit gets other clips.

    Args:
        samples: Numbers of the samples, in [0, 2**32), i64[B].
        earlier: How often each was visited before in its epoch, i64[B]; draws repeat after 2**24 visits.

    Returns:
        i64[B], the number of the sample for a first visit.
    """
    return samples + (earlier % (1 << 24) << 32)
