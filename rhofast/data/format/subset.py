"""A part of a shard set: the numbers of its samples, and how often each is visited per epoch.

    keys.parquet --keep_list.py--> keys, weights --selection.py, find_keys, visit_rates--> Subset --> ShardSet.subset

Keys are found in one pass over the key columns of all shards, in memory that grows with the part and not with the set:
the columns are compared with Arrow's hash table of the listed keys in batches. A batch has several times as many keys
as are listed, so that building the table costs less than reading the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

VISIT = 1 << 32  # one visit per epoch, as a rate

_LEAST_KEYS, _TIMES = 1 << 16, 4  # keys per batch: at least so many, and so many times those that are listed

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subset:
    """A part of a shard set.

    Attributes:
        samples: Numbers of its samples in the whole set, ascending, i64[K].
        rates: Mean number of visits of each sample per epoch of training, times VISIT, i64[K]; they sum to K * VISIT.
            None if every sample is visited once.
        digest: Digest of set and part, 64 hexadecimal characters. Equal digests mean equal samples and equal rates.
    """

    samples: Int64Array
    rates: Int64Array | None
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Where keys were found.

    Attributes:
        places: Number of each key's sample, -1 if there is none, i64[K].
        twice: A key that two samples have, or None.
    """

    places: Int64Array
    twice: str | None


def find_keys(keys: pa.ChunkedArray, columns: Iterable[pa.Array]) -> Found:
    """Find keys in key columns, which are read once, one after another.

    Args:
        keys: Distinct keys, K of them.
        columns: The keys of all samples, in the order of their numbers, in columns of any length.

    Returns:
        The samples that have the keys.
    """
    listed = pa.concat_arrays(keys.chunks)
    places = np.full(len(listed), -1, dtype=np.int64)
    twice: str | None = None
    first = 0
    for batch in _batches(columns, max(_LEAST_KEYS, _TIMES * len(listed))):
        match = pc.index_in(batch.cast(listed.type), value_set=listed)
        rows = np.flatnonzero(pc.is_valid(match).to_numpy())
        which = pc.drop_null(match).to_numpy()
        if twice is None and (places[which] >= 0).any():
            twice = listed[int(which[places[which] >= 0][0])].as_py()
        elif twice is None and len(np.unique(which)) < len(which):
            twice = listed[int(np.bincount(which).argmax())].as_py()
        places[which] = first + rows
        first += len(batch)
    return Found(places, twice)


def visit_rates(weights: npt.NDArray[np.float64]) -> Int64Array | None:
    """Return how often samples are visited per epoch on average, in units of 1 / VISIT.

    A rate is weight / mean weight, rounded to the unit; the largest takes what rounding leaves, so that the rates sum
    to K * VISIT and an epoch has exactly K visits.

    Args:
        weights: Positive, finite weights, f64[K].

    Returns:
        i64[K], or None if all are equal.
    """
    count, shares = len(weights), weights / weights.max()  # so that no sum overflows
    mean = math.fsum(shares) / count  # exact, unlike numpy's sum, which depends on the machine
    rates: Int64Array = np.maximum(np.rint(shares / mean * VISIT), 1).astype(np.int64)
    if (rates == VISIT).all():
        return None
    rates[rates.argmax()] += count * VISIT - int(rates.sum())
    return rates


def _batches(columns: Iterable[pa.Array], size: int) -> Iterator[pa.ChunkedArray]:
    """Join columns to batches of at least `size` keys, except for the last."""
    waiting: list[pa.Array] = []
    count = 0
    for column in columns:
        waiting.append(column)
        count += len(column)
        if count >= size:
            yield pa.chunked_array(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.chunked_array(waiting)
