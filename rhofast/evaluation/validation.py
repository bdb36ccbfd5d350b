"""Parts of sets: training samples on which settings are compared, and held-out ones on which a training is watched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.subset import Subset, visit_rates
from rhofast.errors import ConfigError
from rhofast.evaluation.leakage import source_digests


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """A labeled training set in two parts.

    Attributes:
        fitting: The samples to train on.
        validation: Numbers of the samples to compare settings on, in the whole training set, ascending, i64[M].
    """

    fitting: ShardSet
    validation: npt.NDArray[np.int64]


def validation_mask(
    digest: npt.NDArray[np.bytes_], label: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """Select the samples on which settings are compared: a share of each class that has at least two samples.

    Samples are chosen by the order of the digests of their sources, so that the selection does not depend on the order
    of the set. Samples of one source stay together.

    Args:
        digest: S16[N], digest of each sample's source.
        label: i64[N], class numbers.
        share: The share, at least one sample.

    Returns:
        bool[N], True for validation samples.
    """
    order = np.lexsort((digest, label))
    ordered = label[order]
    first = np.searchsorted(ordered, ordered, side="left")
    size = np.searchsorted(ordered, ordered, side="right") - first
    wanted = np.where(size > 1, np.maximum(np.rint(share * size), 1), 0)
    chosen = order[np.arange(len(order)) - first < wanted]
    mask: npt.NDArray[np.bool_] = np.isin(digest, digest[chosen])
    return mask


def check_split(chosen: npt.NDArray[np.bool_], shards: ShardSet) -> None:
    """Raise ConfigError if one part of N labeled samples is empty; bool[N], True for validation samples."""
    if not chosen.any() or chosen.all():
        raise ConfigError(
            f"{shards.where}: {len(chosen)} labeled samples cannot be split for training and validation",
            hint="use shards with two labeled videos of different files per class at least",
        )


def validation_part(shards: ShardSet, stride: int) -> ShardSet:
    """Return every so many-th sample of a held-out set, on which a training is watched.

    Args:
        shards: The held-out shards, or a part of them.
        stride: Samples from one to the next.
    """
    if stride == 1:
        return shards
    numbers = np.arange(0, len(shards), stride)
    digest = hashlib.sha256(shards.digest.encode() + numbers.astype("<i8").tobytes()).hexdigest()
    samples = numbers if shards.part is None else shards.part.samples[numbers]
    return shards.subset(Subset(samples=samples, rates=None, digest=digest))


def split_off(shards: ShardSet, share: float, *, several: bool = False) -> Split:
    """Split a part for validation off the labeled samples of a training set; unlabeled samples are in neither part.

    Args:
        shards: Labeled training shards, or a part of them.
        share: Share of each class that is split off, as `validation_mask` does.
        several: Whether samples may have several classes: a share of all samples is split off, whatever they are.

    Returns:
        Both parts.

    Raises:
        ConfigError: If a part would be empty.
        ShardError: If an index cannot be read.
    """
    if several:
        label = np.zeros(len(shards), dtype=np.int64)
    else:
        parts = (shards.index(each).label[shards.rows_of(each)] for each in shards.used_shards().tolist())
        label = np.concatenate(list(parts))
    known = np.flatnonzero(label >= 0)
    chosen = validation_mask(source_digests(shards)[known], label[known], share)
    check_split(chosen, shards)
    part, fitting = shards.part, known[~chosen]
    digest = hashlib.sha256(shards.digest.encode() + fitting.astype("<i8").tobytes()).hexdigest()
    samples = fitting if part is None else part.samples[fitting]
    rates = None if part is None or part.rates is None else visit_rates(part.rates[fitting].astype(np.float64))
    return Split(fitting=shards.subset(Subset(samples=samples, rates=rates, digest=digest)), validation=known[chosen])
