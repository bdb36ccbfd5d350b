"""Select the samples of a shard set that a file lists, or whose keys are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.keep_list import KeepList, shown_keys
from rhofast.data.format.subset import Subset, find_keys, visit_rates
from rhofast.errors import ConfigError, ShardFormatError


def find_subset(shards: ShardSet, keep: KeepList) -> Subset:
    """Find the samples of a list.

    Args:
        shards: The whole set.
        keep: The list.

    Returns:
        The part of the set.

    Raises:
        ConfigError: A key is not in the set.
        ShardError: The index of a shard cannot be read, or a listed key is in the set twice.
    """
    found = find_keys(keep.keys, shards.read_columns("key", range(len(shards.info.shards))))
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


def find_samples(
    shards: ShardSet, keys: Sequence[str], *, on_read: Callable[[int, int], None] | None = None
) -> list[int]:
    """Find samples by their keys. Shards are searched one after the other, until all keys are found.

    Args:
        shards: The set.
        keys: Keys of samples.
        on_read: Called with (shards searched, shards of the set), from time to time.

    Returns:
        The numbers of the samples, in the order of `keys`.

    Raises:
        ConfigError: A key is not in the set.
        ShardError: The index of a shard cannot be read.
    """
    found: dict[str, int] = {}
    listed, numbers = pa.array(dict.fromkeys(keys), pa.string()), shards.used_shards().tolist()
    for place, column in enumerate(shards.read_columns("key", numbers)):
        rows = np.flatnonzero(pc.is_in(column, value_set=listed).to_numpy(zero_copy_only=False))
        if len(rows):
            here, first = shards.rows_of(numbers[place]), int(shards.starts[numbers[place]])
            for at in np.flatnonzero(np.isin(here, rows)).tolist():
                found.setdefault(column[int(here[at])].as_py(), first + at)
        if on_read is not None:
            on_read(place + 1, len(numbers))
        if len(found) == len(listed):
            break
    if missing := [key for key in keys if key not in found]:
        raise ConfigError(f"{shards.where}: no sample has the key {missing[0]!r}")
    return [found[key] for key in keys]
