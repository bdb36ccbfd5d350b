"""Select the samples of a shard set that a file lists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.keep_list import KeepList, shown_keys
from rhofast.data.format.subset import Subset, find_keys, visit_rates
from rhofast.errors import ConfigError, ShardFormatError

_AT_ONCE = 64  # shards whose keys are read before they are compared


def find_subset(shards: ShardSet, keep: KeepList, *, threads: int = 1) -> Subset:
    """Find the samples of a list.

    Args:
        shards: The whole set.
        keep: The list.
        threads: Number of shards of a remote set that are read at the same time.

    Returns:
        The part of the set.

    Raises:
        ConfigError: A key is not in the set.
        ShardError: The index of a shard cannot be read, or a listed key is in the set twice.
    """
    found = find_keys(keep.keys, _key_columns(shards, threads))
    if found.twice is not None:
        raise ShardFormatError(
            f"{shards.where}: two samples have the key {found.twice!r}", hint="check the set: rhofast verify FOLDER"
        )
    unknown = np.flatnonzero(found.places < 0)
    if len(unknown):
        is_are = "is" if len(unknown) == 1 else "are"
        raise ConfigError(
            f"keep={keep.path}: {len(unknown):,} of {len(keep.keys):,} keys {is_are} not in {shards.where}: "
            f"{shown_keys(keep.keys.take(pa.array(unknown[:4])))}",
            hint="remove them, or name the set that they belong to; `rhofast embed` writes the keys of a set",
        )
    order = np.argsort(found.places)
    samples = found.places[order]
    rates = None if keep.weights is None else visit_rates(keep.weights[order])
    digest = hashlib.sha256(shards.info.digest.encode())
    digest.update(samples.astype("<i8").tobytes())
    if rates is not None:
        digest.update(rates.astype("<i8").tobytes())
    return Subset(samples=samples, rates=rates, digest=digest.hexdigest())


def _key_columns(shards: ShardSet, threads: int) -> Iterator[pa.Array]:
    """Yield the keys of each shard in order; those of a remote set are downloaded some shards ahead."""
    numbers = iter(range(len(shards.info.shards)))
    if shards.keeps_files:
        yield from map(shards.read_keys, numbers)
        return
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(numbers, _AT_ONCE)):
            yield from pool.map(shards.read_keys, some)
