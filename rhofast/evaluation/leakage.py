"""Held out means held out: no test sample may come from a video that is in the training shards, by content digest.

Every sample's index row has the BLAKE2b-128 of its source file. The test set's are kept, sorted, 16 bytes a sample; the
training set's indices are gone through one shard at a time. What it is not: it knows copies, not look-alikes (the same
scene in another encoding has another digest).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError

_SHOWN = 3


def source_digests(shards: ShardSet) -> npt.NDArray[np.bytes_]:
    """The content digest of every sample's source, S16[N]. Raises ShardError."""
    return np.concatenate([shards.index(shard).source_digest for shard in range(len(shards.info.shards))])


def overlap(train: ShardSet, test: ShardSet) -> list[str]:
    """The keys of test samples whose source video is in the training shards, in order. Raises ShardError."""
    held = source_digests(test)
    order = np.argsort(held, kind="stable")
    ascending = held[order]
    seen = np.zeros(len(held), dtype=np.bool_)
    for shard in range(len(train.info.shards)):
        digests = np.unique(train.index(shard).source_digest)
        first = np.searchsorted(ascending, digests, side="left")
        last = np.searchsorted(ascending, digests, side="right")
        for begin, end in zip(first[first < last].tolist(), last[first < last].tolist(), strict=True):
            seen[begin:end] = True
    return [test.row(sample).key for sample in np.sort(order[seen]).tolist()]


def check_held_out(train: Sequence[ShardSet], test: ShardSet, *, allow: bool) -> tuple[str, ...]:
    """See that the test samples' sources are in none of the training sets. allow: say so instead of refusing: a
    sentence a set. Raises ConfigError, ShardError."""
    found = [refuse_overlap(shards.where, overlap(shards, test), test, allow=allow) for shards in train]
    return tuple(sentence for sentence in found if sentence is not None)


def refuse_overlap(where: str, common: Sequence[str], test: ShardSet, *, allow: bool) -> str | None:
    """A sentence about the keys of test samples that `overlap` found in the training set `where`; None where it found
    none. Raises ConfigError instead, unless `allow`."""
    if not common:
        return None
    shown = ", ".join(common[:_SHOWN]) + (", ..." if len(common) > _SHOWN else "")
    are = "is cut from a video that is" if len(common) == 1 else "are cut from videos that are"
    sentence = f"{len(common)} of {len(test)} test samples of {test.where} {are} in {where}, too: {shown}"
    if not allow:
        raise ConfigError(sentence, hint="test on other videos, or accept that with --allow-overlap")
    return sentence
