"""Run a network over every sample of a shard set, through the same data path as training.

Each rank computes its own part, and the parts are joined in sample order, in one copy per machine that its ranks share
(shared_rows.py). No sample is padded, repeated or replaced: a sample that cannot be read is missing from the result and
listed in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.distributed.collectives import gather_objects
from rhofast.errors import NotFiniteError, SampleError, ShardFormatError
from rhofast.evaluation.feature_cache import FeatureCache, weights_digest
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBatch:
    """The output of a network for one batch.

    Attributes:
        values: f32[B, V, D], or the result of `reduce` on it.
        sample: i64[B], sample numbers.
        label: i64[B], -100 for a sample without a label.
    """

    values: npt.NDArray[np.float32]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]


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


class FeatureStream:
    """Iterator of FeatureBatches over the part of a shard set that belongs to this rank.

    The network runs in evaluation mode without gradients; its mode is restored at the end. The host waits for the
    values of a batch only after it has submitted the next batch to the device.
    """

    def __init__(
        self,
        network: nn.Module,
        shards: ShardSet,
        config: Config,
        *,
        views: int | None = None,
        crops: int = 1,
        samples: npt.NDArray[np.int64] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Open the loader.

        Args:
            network: [N, C, T, H, W] -> [N, D], on the device on which it runs.
            shards: The shard set.
            config: Sections `clips` and `augment` for the input, `data` for reading, `eval.batch_size` for the number
                of clips per forward pass and rank (at least the clips of one video), `train.precision` for the
                precision on a GPU.
            views: Clips per video. None means `eval.views`.
            crops: Crops per clip. The features have V = views * crops views.
            samples: Sample numbers to process. None means all samples.
            reduce: Function that is applied to f32[B, V, D] on the device of the network. It keeps three dimensions.
            progress: Called with (samples done, total samples), as if every rank had done as much as this one.
        """
        views = config.eval.views if views is None else views
        self._network, self._views, self._reduce, self._progress = network, views * crops, reduce, progress
        self._device = next(network.parameters()).device
        state = PartialState()
        self._total, self._ranks = len(shards) if samples is None else len(samples), state.num_processes
        lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
        self._lower = lower if self._device.type == "cuda" else None
        self._loader = EvalLoader(
            shards,
            clips=config.clips,
            augment=config.augment,
            data=config.data,
            batch_size=max(1, config.eval.batch_size // self._views),
            views=views,
            crops=crops,
            samples=samples,
            rank=state.process_index,
            world_size=state.num_processes,
            device=self._device,
            dtype=torch.float16 if self._lower is not None else torch.float32,
        )

    @property
    def bad(self) -> list[SampleError]:
        """Return the samples that could not be read so far."""
        return self._loader.bad

    def __iter__(self) -> Iterator[FeatureBatch]:
        network, was_training = self._network, self._network.training
        network.eval()
        done = 0
        previous: _HostCopy | None = None
        try:
            with self._loader as loader, torch.inference_mode():
                for batch in loader:
                    current = _HostCopy([self._forward(batch.pixels), batch.sample, batch.label])
                    if previous is not None:
                        done += previous.count
                        yield previous.wait()
                        self._report_progress(done)
                    previous = current
                if previous is not None:
                    done += previous.count
                    yield previous.wait()
            self._report_progress(self._total)
        finally:
            network.train(was_training)

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._lower, enabled=self._lower is not None):
            out = self._network(pixels.flatten(0, 1)).float()
        values: Tensor = out.view(len(pixels), self._views, -1)
        return values if self._reduce is None else self._reduce(values)

    def _report_progress(self, done: int) -> None:
        if self._progress is not None:
            self._progress(min(done * self._ranks, self._total), self._total)


class _HostCopy:
    """Values, samples and labels of a batch that are being copied to the host."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.count = len(tensors[0])
        self._copied: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            places = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
            self._tensors = places

    def wait(self) -> FeatureBatch:
        if self._copied is not None:
            self._copied.synchronize()
        values, sample, label = (tensor.numpy() for tensor in self._tensors)
        return FeatureBatch(values=values, sample=sample, label=label)


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
        how = [*input_settings, config.train.precision, None if reduce is None else reduce.__qualname__]
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
