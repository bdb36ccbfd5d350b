"""Run the graph (graph.py) on the clips of a batch, and finish its output.

    samples, plans --start--> fed to DALI, running --collect--> [B, P, C, T, H, W] --finish--> clamped, blurred, ...

DALI runs a batch in threads and streams of its own, so `start` returns as soon as the batch is fed. On a GPU the host
starts batch k + 1 before it collects batch k: feeding, and the part of decoding that the host does, go on while the
device is at work on the batch before, and the device finds the next batch when it is done. On a CPU there is nothing
to gain (the cores are busy with batch k), and a second batch would only take memory.

Each output has memory of its own, which DALI keeps for as long as a tensor refers to it. Batches come out in the order
in which they were started. If one fails, the graph is given up with all batches in it: its workers may still be at work
on what failed. The others are started again, in a new graph, when they are collected, so that an error names the
samples of its own batch only.

The last steps are done by torch (finish.py) in the output buffer of DALI. Colors are clamped once, to the normalized
values of 0 and 255.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.dali import error_of_batch, reason_of
from rhofast.data.decode.finish import channel_bound, finish
from rhofast.data.decode.graph import define_graph, graph_arguments
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.types import AugmentPlan, ClipPlan, Sample


@dataclass(eq=False, slots=True)
class StartedBatch:
    """A batch that was given to `DecodePipeline.start`.

    Attributes:
        samples: Its samples.
        clips: Frames of their clips.
        augment: Augmentation of their clips.
        result: Its pixels, or why DALI failed; None until DALI has answered.
    """

    samples: Sequence[Sample]
    clips: ClipPlan
    augment: AugmentPlan
    result: torch.Tensor | RuntimeError | None = None


class DecodePipeline:
    """One DALI pipeline for one device. It is not thread-safe: only `finish` may be used by several threads."""

    def __init__(
        self,
        config: AugmentConfig,
        *,
        max_pictures: int,
        color: bool,
        blur: bool,
        threads: int,
        difference: bool = False,
        sizes: bool = False,
        device_id: int | None = None,
        dtype: torch.dtype = torch.float32,
        decoded: bool = False,
        video: VideoDecoder | None = None,
        hw_decoder_load: float = 0.65,
        ahead: bool = False,
    ) -> None:
        """Build the graph.

        Args:
            config: The augmentation: the size of the clips, and the mean and standard deviation of the normalization.
            max_pictures: Largest number N of pictures in a batch.
            color: Whether plans may change colors.
            blur: Whether plans may blur.
            threads: Number of threads that DALI uses on the CPU.
            difference: Whether plans may show differences in time.
            sizes: Whether plans say to what size crops are resized; all of them must, or none.
            device_id: Number of the CUDA device, or None for the CPU.
            dtype: Dtype of the pixels on a GPU, float32 or float16.
            decoded: Whether the pictures of the samples are RGB u8[H, W, 3] instead of JPEG files. Ignored with
                `video`.
            video: Decoder for the streams of the samples, on the same device; None if the samples hold no streams.
            hw_decoder_load: Share of the JPEG files in [0, 1] that the hardware engines of a GPU decode, if it has
                some.
            ahead: Whether `start` feeds a batch at once, and not first when it is collected. Ignored with `video`,
                whose streams are decoded in the calling thread.

        Raises:
            DependencyError: DALI is not installed.
        """
        self._config = config
        self._color, self._blur, self._decoded, self._dtype = color, blur, decoded, dtype
        self._device_id = device_id
        self._mean, self._std = (np.array(value, dtype=np.float32) for value in (config.mean, config.std))
        device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        black, white = (0 - self._mean) / self._std, (1 - self._mean) / self._std
        self._bounds = channel_bound(black, device), channel_bound(white, device)
        self._video = video
        self._options: dict[str, Any] = {
            "color": color,
            "difference": difference,
            "sizes": sizes,
            "hw_decoder_load": hw_decoder_load,
            "num_threads": threads,
            "device_id": device_id,
        }
        self._max_pictures = max_pictures
        self._ahead = ahead and video is None
        self._pipeline = self._build(max_pictures)  # None after an error, until the next batch
        self._in_flight: deque[StartedBatch] = deque()  # what the graph is at work on, oldest first
        # The first sample of the last batch. If a whole batch fails, it shows whether the samples are to blame.
        self._known_good: tuple[Sequence[Sample], ClipPlan, AugmentPlan] | None = None

    def _build(self, max_pictures: int) -> Any:
        """Build a graph for batches of up to `max_pictures` pictures."""
        return _build_graph(
            self._config,
            source="video" if self._video else "frames" if self._decoded else "jpeg",
            batch_size=max_pictures,
            **self._options,
        )

    def run(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Decode and augment B samples: `decode`, then `finish`.

        Args:
            samples: The B samples.
            clips: Frames of their clips.
            augment: Augmentation of their clips.

        Returns:
            Normalized pixels [B, P, C, T, H, W] on the device, channels-last in memory.

        Raises:
            UndecodableError: The decoder rejects the pictures of some samples; see `decode`.
            RuntimeError: DALI fails for another reason.
        """
        return self.finish(self.decode(samples, clips, augment), augment)

    def decode(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Do the part of DALI: everything up to the resize and the colors. This is `start`, then `collect`.

        Args:
            samples: The B samples.
            clips: Frames of their clips.
            augment: Augmentation of their clips.

        Returns:
            Pixels f32[B, P, C, T, H, W] on the device, channels-last in memory that belongs to DALI.

        Raises:
            UndecodableError: The decoder rejects the pictures of some samples, which the error names.
            RuntimeError: DALI fails for another reason, such as an error of the device.
        """
        return self.collect(self.start(samples, clips, augment))

    def start(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> StartedBatch:
        """Give a batch to DALI without waiting for its pixels.

        Pictures are not copied: they must not be changed before the batch is collected.

        Args:
            samples: The B samples.
            clips: Frames of their clips.
            augment: Augmentation of their clips.

        Returns:
            What `collect` takes. Errors are raised there.
        """
        started = StartedBatch(samples, clips, augment)
        if self._ahead:
            self._launch(started)
        return started

    def collect(self, started: StartedBatch) -> torch.Tensor:
        """Return the pixels of a batch. The pipeline can be used again after an error.

        Args:
            started: The batch. Batches may be collected in any order, or not at all.

        Returns:
            Pixels f32[B, P, C, T, H, W] on the device, channels-last in memory that belongs to DALI.

        Raises:
            UndecodableError: The decoder rejects the pictures of some samples, which the error names.
            RuntimeError: DALI fails for another reason, such as an error of the device.
        """
        while started.result is None:
            if started in self._in_flight:
                self._receive()
            else:
                self._launch(started)
        samples, clips, augment = started.samples, started.clips, started.augment
        if isinstance(started.result, RuntimeError):
            good = self._known_good
            decode_good = None if good is None else (lambda: self._run(self._build(good[1].frames.size), *good))
            raise error_of_batch(
                started.result,
                lambda: self._find_rejected(samples, clips, augment),
                samples=len(samples),
                decode_known_good=decode_good,
                device_id=self._device_id,
            ) from None
        self._known_good = samples[:1], clips.take([0]), augment.take([0])
        return started.result

    def _launch(self, started: StartedBatch) -> None:
        """Feed a batch, and let the graph run it after those in flight."""
        try:
            self._feed(self._graph(), started.samples, started.clips, started.augment)
        except RuntimeError as error:
            self._give_up(started, error)
        else:
            self._in_flight.append(started)

    def _receive(self) -> None:
        """Wait for the oldest batch in flight."""
        oldest = self._in_flight.popleft()
        try:
            oldest.result = self._take(self._pipeline, oldest.clips, oldest.augment)
        except RuntimeError as error:
            self._give_up(oldest, error)

    def _give_up(self, failed: StartedBatch, error: RuntimeError) -> None:
        """Keep the error of a batch, and end the graph, with the batches that it still holds."""
        failed.result = error.with_traceback(None)  # it would keep the graph
        self._in_flight.clear()
        self._pipeline = None  # DALI waits for its workers here

    def _graph(self) -> Any:
        """Return the graph: a new one after an error."""
        if self._pipeline is None:
            self._pipeline = self._build(self._max_pictures)
        return self._pipeline

    def _run(self, graph: Any, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Return the pixels of a batch from a graph that holds no other."""
        self._feed(graph, samples, clips, augment)
        return self._take(graph, clips, augment)

    def _feed(self, graph: Any, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> None:
        """Feed a batch, and let the graph run it."""
        b, p, t = clips.frames.shape
        self._feed_pictures(graph, samples, clips)
        for name, values in self.arguments(augment).items():
            graph.feed_input(name, np.repeat(values.reshape(b * p, *values.shape[2:]), t, axis=0))
        graph.schedule_run()

    def _take(self, graph: Any, clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Wait for the oldest batch that a graph runs; on a GPU, only until its work is queued there."""
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        (output,) = graph.share_outputs(stream)
        b, p, t = clips.frames.shape
        width, height = (self._config.size,) * 2 if augment.size is None else augment.size[0, 0].tolist()
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor()).view(b, p, t, height, width, 3)
        graph.release_outputs()  # a formality: DALI's executor keeps what a tensor refers to
        return pixels.permute(0, 1, 5, 2, 3, 4)

    def finish(self, pixels: torch.Tensor, augment: AugmentPlan) -> torch.Tensor:
        """Finish the output of `decode` in place; any thread may do this (see `finish.finish`).

        Args:
            pixels: Output of `decode`, f32[B, P, C, T, H, W].
            augment: Augmentation of the same clips.

        Returns:
            The finished pixels, in the dtype of this pipeline on a GPU.
        """
        return finish(
            pixels,
            augment,
            bounds=self._bounds if self._color else None,
            blur=self._blur,
            mean=self._mean,
            std=self._std,
            dtype=self._dtype,
        )

    def arguments(self, plan: AugmentPlan) -> dict[str, npt.NDArray[Any]]:
        """Return the numeric inputs of the graph for each clip, [B, P, ...] by name."""
        normalization = self._mean, self._std
        difference = self._options["difference"]
        return graph_arguments(plan, normalization=normalization if self._color else None, difference=difference)

    def _feed_pictures(self, graph: Any, samples: Sequence[Sample], clips: ClipPlan) -> None:
        """Feed the pictures of the clips' frames, and those that are subtracted from them."""
        pictures: Sequence[Mapping[int, Any]] = [sample.pictures for sample in samples]
        options: dict[str, Any] = {}
        if self._video is not None:
            decoded = pictures = self._video.decode(samples)
            if self._device_id is None:  # DALI would ask a tensor for its CUDA stream
                pictures = [{frame: tensor.numpy() for frame, tensor in frames.items()} for frames in decoded]
            else:
                options = {"cuda_stream": torch.cuda.current_stream(self._device_id), "use_copy_kernel": True}
        inputs = {"pictures": clips.frames}
        if self._options["difference"]:
            inputs["neighbors"] = clips.frames if clips.neighbor is None else clips.neighbor
        for name, frames in inputs.items():
            pairs = zip(pictures, frames.reshape(len(samples), -1).tolist(), strict=True)
            graph.feed_input(name, [by_frame[frame] for by_frame, numbers in pairs for frame in numbers], **options)

    def _find_rejected(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> dict[int, str]:
        """Return place -> reason of the samples that the decoder rejects on their own. Slow; only after an error."""
        reasons = {}
        single = self._build(clips.frames[0].size)
        for place, sample in enumerate(samples):
            try:
                self._run(single, [sample], clips.take([place]), augment.take([place]))
            except RuntimeError as error:
                reasons[place] = reason_of(error)
                single = self._build(clips.frames[0].size)
        return reasons


def _build_graph(config: AugmentConfig, **options: Any) -> Any:
    """Define the graph and build it; see `define_graph` for the arguments."""
    pipeline = define_graph(config, **options)
    pipeline.build()
    return pipeline
