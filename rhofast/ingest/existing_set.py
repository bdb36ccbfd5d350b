"""What a set that gets more shards has already: keys, classes and numbers of shards."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import ShardInfo

_SHARD = re.compile(r"shard-([0-9]{6,9})")


def stored_keys(shards: ShardSet) -> Iterator[str]:
    """Yield the keys of all samples of a set."""
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        yield from (index.key(row) for row in range(len(index)))


def known_classes(shards: ShardSet) -> dict[int, str]:
    """Return the names of a set's classes by label, without mere numbers of classes that have no sample."""
    used: set[int] = set()
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        used.update(np.unique(index.label).tolist(), np.unique(index.labels).tolist())
    names = enumerate(shards.info.classes)
    return {label: name for label, name in names if label in used or name != str(label)}


def next_number(existing: ShardSet | None) -> int:
    """Return the number of the first new shard; `existing` is the set that it is appended to."""
    if existing is None:
        return 0
    return 1 + max(shard_number(shard) for shard in existing.info.shards)


def shard_number(shard: ShardInfo) -> int:
    """Return the number in a shard's name; -1 if it has none, as the names of others may."""
    number = _SHARD.fullmatch(shard.name)
    return int(number[1]) if number else -1
