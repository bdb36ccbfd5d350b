"""What a network says of every sample of a shard set, through the same data path as training.

Each rank takes its own part; the parts are joined in sample order on every rank. No sample is padded, repeated or
replaced: one that cannot be read is missing from the result, and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.errors import NotFiniteError, SampleError, ShardFormatError
from rhofast.evaluation.feature_cache import FeatureCache, weights_digest

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """values f32[N, V, D] of V views; sample i64[N] ascending; label i64[N], -100 for none; bad: what was left out."""

    values: npt.NDArray[np.float32]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    bad: list[SampleError]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBatch:
    """values f32[B, V, D], or what `reduce` left of them; sample, label i64[B]."""

    values: npt.NDArray[np.float32]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of a larger job, told as progress of the whole: `before` items were done before it."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def mean_over_views(values: Tensor) -> Tensor:
    """[B, V, D] -> [B, 1, D]"""
    return values.mean(dim=1, keepdim=True)


class FeatureStream:
    """This rank's part of a shard set as FeatureBatches, while one iterates; `bad` names what was left out so far.

    network: [N, C, T, H, W] -> [N, D], on the device it should run on; it runs in evaluation mode, without gradients,
    and its mode is put back at the end. config: what goes in (`clips`, `augment`), how it is read (`data`), clips a
    forward on each rank, at least those of one video (`eval.batch_size`), precision on a GPU (`train.precision`).
    views, crops: as of EvalLoader, V = views * crops; None: `eval.views`. reduce: applied to each batch's f32[B, V, D]
    on the network's device, keeping three dimensions.

    The host waits for a batch's numbers after it has given the next one to the device.
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
        """progress: called with (samples done, samples in all), as if all ranks were as far as this one. samples: some
        of the set; None: all."""
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
        return self._loader.bad

    def __iter__(self) -> Iterator[FeatureBatch]:
        network, was_training = self._network, self._network.training
        network.eval()
        done = 0
        waiting: _OnItsWay | None = None
        try:
            with self._loader as loader, torch.inference_mode():
                for batch in loader:
                    following = _OnItsWay([self._forward(batch.pixels), batch.sample, batch.label])
                    if waiting is not None:
                        done += waiting.count
                        yield waiting.arrived()
                        self._tell(done)
                    waiting = following
                if waiting is not None:
                    done += waiting.count
                    yield waiting.arrived()
            self._tell(self._total)
        finally:
            network.train(was_training)

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._lower, enabled=self._lower is not None):
            out = self._network(pixels.flatten(0, 1)).float()
        values: Tensor = out.view(len(pixels), self._views, -1)
        return values if self._reduce is None else self._reduce(values)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(min(done * self._ranks, self._total), self._total)


class _OnItsWay:
    """Values, samples and labels of a batch, being copied to the host."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.count = len(tensors[0])
        self._there: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            places = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            for place, one in zip(places, tensors, strict=True):
                place.copy_(one, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()
            self._tensors = places

    def arrived(self) -> FeatureBatch:
        if self._there is not None:
            self._there.synchronize()
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
    """What a network gives for all samples, on every rank; arguments as of FeatureStream. Everything is kept as
    it comes in the folder `config.eval.keep`, where there is one, and what an earlier call has left there is taken from
    it. Raises ShardFormatError if not one sample can be read, NotFiniteError."""
    state = PartialState()
    store, kept = None, None
    if config.eval.keep is not None:
        pixels = {name: getattr(config.augment, name) for name in ("size", "mean", "std")}
        seen = [config.clips.model_dump(), pixels, views or config.eval.views, crops]
        how = [*seen, config.train.precision, None if reduce is None else reduce.__qualname__]
        what = {"weights": weights_digest(backbone), "shards": shards.info.digest, "how": how}
        store = FeatureCache(config.eval.keep, what)
        asked = np.arange(len(shards)) if samples is None else samples
        kept = store.read(asked)
        state.wait_for_everyone()  # before anybody writes
        samples = np.setdiff1d(asked, kept[1])
        progress = part_of(progress, len(asked) - len(samples), len(asked))
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
    values, numbers, labels = [], [], []
    with contextlib.nullcontext() if store is None else store.writing(state.process_index) as part:
        for batch in stream:
            if part is not None:
                part.write(batch.values, batch.sample, batch.label)
            values.append(batch.values)
            numbers.append(batch.sample)
            labels.append(batch.label)
    parts = gather_object([(values, numbers, labels, stream.bad)])
    bad = [error for part in parts for error in part[3]]
    whole = [[array for part in parts for array in part[column]] for column in range(3)]
    if kept is not None and len(kept[1]):
        whole = [[*arrays, of_before] for arrays, of_before in zip(whole, kept, strict=True)]
    if not whole[1]:
        raise ShardFormatError(f"{shards.root}: not one sample could be read; the first: {bad[0]}")
    columns = [np.concatenate(arrays) for arrays in whole]
    if kept is not None:
        order = np.argsort(columns[1], kind="stable")
        columns = [column[order] for column in columns]
    check_finite(count_spoiled(columns[0]), len(columns[1]))
    return Features(values=columns[0], sample=columns[1], label=columns[2], bad=bad)


def count_spoiled(values: npt.NDArray[np.float32]) -> int:
    """Samples of f32[N, V, D] with a value that is not a number."""
    return int((~np.isfinite(values).all(axis=(1, 2))).sum())


def check_finite(wrong: int, samples: int) -> None:
    """wrong: samples for which the network gave something that is not a number. Raises NotFiniteError."""
    if wrong:
        raise NotFiniteError(
            f"what the network gives for {wrong:,} of {samples:,} samples is not finite",
            hint="its weights are spoiled, or its numbers too large: --set train.precision=fp32",
        )
