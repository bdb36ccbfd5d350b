"""Check that no test sample comes from a video that is in the training shards, by content digest.

The index row of every sample holds the BLAKE2b-128 of its source file. The digests of the test set are kept in memory,
sorted, 16 bytes per sample; the indices of the training set are read one shard at a time. Only exact copies of a file
are found: the same scene in another encoding has another digest. Samples that are cut out of one file have its
digest, so segments of a video overlap wherever they lie in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError

_SHOWN = 3


def source_digests(shards: ShardSet) -> npt.NDArray[np.bytes_]:
    """Return the content digest of every sample's source, S16[N]. Raise ShardError if an index cannot be read."""
    return np.concatenate(list(_digests(shards)))


def _digests(shards: ShardSet) -> Iterator[npt.NDArray[np.bytes_]]:
    """Yield the digests of the samples of each shard. Of an index nothing else is read."""
    numbers = shards.used_shards().tolist()
    for number, column in zip(numbers, shards.read_columns("source_digest", numbers), strict=True):
        yield np.frombuffer(column.buffers()[1], dtype="S16", count=len(column))[shards.rows_of(number)]


def overlap(train: ShardSet, test: ShardSet) -> list[str]:
    """Find the test samples whose source video is in the training shards.

    Args:
        train: Training shards.
        test: Test shards.

    Returns:
        The keys of these test samples, in order.

    Raises:
        ShardError: If an index cannot be read.
    """
    test_digests = source_digests(test)
    order = np.argsort(test_digests, kind="stable")
    ascending = test_digests[order]
    overlapping = np.zeros(len(test_digests), dtype=np.bool_)
    for of_shard in _digests(train):
        digests = np.unique(of_shard)
        first = np.searchsorted(ascending, digests, side="left")
        last = np.searchsorted(ascending, digests, side="right")
        for begin, end in zip(first[first < last].tolist(), last[first < last].tolist(), strict=True):
            overlapping[begin:end] = True
    return [test.row(sample).key for sample in np.sort(order[overlapping]).tolist()]


def check_held_out(train: Sequence[ShardSet], test: ShardSet, *, allow: bool) -> tuple[str, ...]:
    """Check that no source of a test sample is in a training set.

    Args:
        train: Training sets.
        test: Test set.
        allow: Whether an overlap is reported instead of refused.

    Returns:
        One sentence per training set that overlaps, if `allow` is set.

    Raises:
        ConfigError: If a set overlaps and `allow` is not set.
        ShardError: If an index cannot be read.
    """
    found = [refuse_overlap(shards.where, overlap(shards, test), test, allow=allow) for shards in train]
    return tuple(sentence for sentence in found if sentence is not None)


def refuse_overlap(where: str, common: Sequence[str], test: ShardSet, *, allow: bool) -> str | None:
    """Refuse or report an overlap that `overlap` found.

    Args:
        where: Location of the training set.
        common: Keys of test samples whose source is in the training set.
        test: Test set.
        allow: Whether an overlap is reported instead of refused.

    Returns:
        A sentence about the overlap, or None where there is none.

    Raises:
        ConfigError: If there is an overlap and `allow` is not set.
    """
    if not common:
        return None
    shown = ", ".join(common[:_SHOWN]) + (", ..." if len(common) > _SHOWN else "")
    are = "is cut from a video that is" if len(common) == 1 else "are cut from videos that are"
    sentence = f"{len(common)} of {len(test)} test samples of {test.where} {are} in {where}, too: {shown}"
    if not allow:
        raise ConfigError(sentence, hint="test on other videos, or accept that with --allow-overlap")
    return sentence
