"""Compute features of every sample of a shard set, through the same data path as training.

Each rank computes its own part (feature_stream.py), and the parts are joined in sample order, in one copy per machine
that its ranks share (shared_rows.py). No sample is padded, repeated or replaced: a sample that cannot be read is
missing from the result and listed in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from accelerate import PartialState
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.distributed.collectives import gather_objects
from rhofast.errors import NotFiniteError, SampleError, ShardFormatError
from rhofast.evaluation.feature_cache import FeatureCache, weights_digest
from rhofast.evaluation.feature_stream import FeatureBatch, FeatureStream
from rhofast.evaluation.shared_rows import SharedRows
from rhofast.storage.user_code import imported_digests

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The output of a network for a whole shard set.

    Attributes:
        values: f32[N, V, D], for V views per sample. The processes of a machine share them: they are to be read only.
        sample: i64[N], ascending sample numbers.
        label: i64[N], -100 for a sample without a label.
        bad: The samples that could not be read.
    """

    values: npt.NDArray[np.float32]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    bad: list[SampleError]


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Report the progress of one part of a larger job as progress of the whole job.

    Args:
        progress: Callback of the whole job.
        before: Number of items that were done before this part.
        total: Number of items of the whole job.

    Returns:
        A callback for the part, or None if `progress` is None.
    """
    return None if progress is None else lambda done, _: progress(before + done, total)


def mean_over_views(values: Tensor) -> Tensor:
    """Average f[B, V, D] over the views: f[B, 1, D]."""
    return values.mean(dim=1, keepdim=True)


def extract_features(
    backbone: nn.Module,
    shards: ShardSet,
    config: Config,
    *,
    views: int | None = None,
    crops: int = 1,
    samples: npt.NDArray[np.int64] | None = None,
    progress: Progress | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    joined: int = 1,
) -> Features:
    """Compute the output of a network for all samples, on every rank.

    With `config.eval.keep`, all features are written to that folder as they are computed, and features that an earlier
    call has left there are read instead of computed.

    Args:
        backbone: [N, C, T, H, W] -> [N, D], on the device on which it runs.
        shards: The shard set.
        config: As for FeatureStream, and `eval.keep`.
        views: Clips per video. None means `eval.views`.
        crops: Crops per clip.
        samples: Sample numbers to process. None means all samples.
        progress: Called with (samples done, total samples).
        reduce: As for FeatureStream.
        joined: As for FeatureStream.

    Returns:
        The features in sample order.

    Raises:
        ShardFormatError: If no sample can be read.
        NotFiniteError: If a feature is not finite.
    """
    state = PartialState()
    requested = np.arange(len(shards)) if samples is None else np.sort(samples)
    rows, known, cache = SharedRows(len(requested), state.device), _Part(), None
    if config.eval.keep is not None:
        pixels = {name: getattr(config.augment, name) for name in ("size", "mean", "std")}
        input_settings = [config.clips.model_dump(), pixels, views or config.eval.views, crops]
        how = [*input_settings, config.train.precision, None if reduce is None else reduce.__qualname__, joined]
        what = {"weights": weights_digest(backbone), "shards": shards.digest, "how": how}
        what |= imported_digests(backbone=config.backbone.name)  # the same weights in other code are other features
        cache = FeatureCache(config.eval.keep, what)
        known = _from_cache(cache, requested, rows)
        samples = np.setdiff1d(requested, known.sample)
        progress = part_of(progress, len(requested) - len(samples), len(requested))
    stream = FeatureStream(
        backbone,
        shards,
        config,
        views=views,
        crops=crops,
        samples=samples,
        reduce=reduce,
        joined=joined,
        progress=progress,
    )
    mine = _Part()
    with contextlib.nullcontext() if cache is None else cache.writing(state.process_index) as part:
        for batch in stream:
            if part is not None:
                part.write(batch.values, batch.sample, batch.label)
            rows.write(np.searchsorted(requested, batch.sample), batch.values)
            mine.add(batch)
    rows.join(np.searchsorted(requested, mine.sample))
    parts = gather_objects((mine, stream.bad))
    bad = [error for _, errors in parts for error in errors]
    found = [known, *(part for part, _ in parts)]
    sample, label = (np.concatenate(column) for column in zip(*((one.sample, one.label) for one in found), strict=True))
    if not len(sample):
        raise ShardFormatError(f"{shards.root}: no sample could be read; the first error: {bad[0]}")
    order = np.argsort(sample, kind="stable")
    check_finite(sum(one.wrong for one in found), len(sample))
    values = rows.compact(np.searchsorted(requested, sample[order]))
    return Features(values=values, sample=sample[order], label=label[order], bad=bad)


class _Part:
    """What is known of some samples besides their features.

    Attributes:
        sample: i64[n], sample numbers.
        label: i64[n].
        wrong: Number of samples with a feature that is not finite.
    """

    def __init__(self) -> None:
        self.sample = self.label = np.empty(0, np.int64)
        self.wrong = 0

    def add(self, batch: FeatureBatch) -> None:
        """Append a batch."""
        self.sample = np.concatenate([self.sample, batch.sample])
        self.label = np.concatenate([self.label, batch.label])
        self.wrong += count_not_finite(batch.values)


def _from_cache(cache: FeatureCache, requested: npt.NDArray[np.int64], rows: SharedRows) -> _Part:
    """Read kept features on each machine, and return what is known of those that all machines have, on every rank."""
    found = _Part()
    if rows.is_first:
        for values, sample, label in cache.read(requested):
            rows.write(np.searchsorted(requested, sample), values)
            found.add(FeatureBatch(values=values, sample=sample, label=label))
    # When this is done, all machines have read, and the first rank may write.
    every = [part for part in gather_objects(found if rows.is_first else None) if part is not None]
    common: _Part = every[0]
    for part in every[1:]:
        keep = np.isin(common.sample, part.sample)
        common.sample, common.label = common.sample[keep], common.label[keep]
    return common


def count_not_finite(values: npt.NDArray[np.float32]) -> int:
    """Count the samples of f32[N, V, D] that have a value that is not finite."""
    return int((~np.isfinite(values).all(axis=(1, 2))).sum())


def check_finite(wrong: int, samples: int) -> None:
    """Check that all features are finite.

    Args:
        wrong: Number of samples with a value that is not finite.
        samples: Number of all samples.

    Raises:
        NotFiniteError: If `wrong` is not 0.
    """
    if wrong:
        raise NotFiniteError(
            f"the features of {wrong:,} of {samples:,} samples are not finite",
            hint="check the weights for NaN; if they are finite, use --set train.precision=fp32",
        )
