"""Run a network over the part of a shard set that belongs to this rank, batch by batch."""

from __future__ import annotations

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
from rhofast.errors import SampleError


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


def joined_order(views: int, crops: int, joined: int) -> npt.NDArray[np.int64]:
    """Return the clips of a video in an order in which those that are read together follow each other.

    Args:
        views: K clips over the length of a video.
        crops: Crops per clip, side by side.
        joined: J, a divisor of K.

    Returns:
        i64[K * crops], numbers of clips. J that follow each other have the same crop and are K / J clips apart.
    """
    places = np.arange(views * crops).reshape(joined, views // joined, crops)
    return places.transpose(1, 2, 0).reshape(-1)


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
        joined: int = 1,
        progress: Callable[[int, int], None] | None = None,
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
            joined: J, the number of clips of a video that the network reads together: [N, C, T, H, W] -> [N / J, D], of
                which J that follow each other are spread over the video and have the same crop. It divides `views`,
                and the features have V / J views.
            progress: Called with (samples done, total samples), as if every rank had done as much as this one.
        """
        views = config.eval.views if views is None else views
        self._network, self._views, self._reduce, self._progress = network, views * crops, reduce, progress
        self._order = None if joined == 1 else joined_order(views, crops, joined)
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
            out = self._network(self._clips(pixels)).float()
        values: Tensor = out.view(len(pixels), -1, out.shape[-1])
        return values if self._reduce is None else self._reduce(values)

    def _clips(self, pixels: Tensor) -> Tensor:
        """Return the clips of a batch one after another, those that are read together side by side."""
        if self._order is None:
            return pixels.flatten(0, 1)
        clips = pixels[:, torch.from_numpy(self._order)].flatten(0, 1)
        return clips.contiguous(memory_format=torch.channels_last_3d)

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
