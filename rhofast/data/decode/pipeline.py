"""Decode, crop, resize and color the clips of a batch with one DALI graph.

A batch is a flat list of N = B * P * T pictures, each with its own numbers, so that one graph serves any rho, any T and
overlapping clips:

    JPEG --decode--.
                   +--> crop --> resize, flip --> color matrix, normalize --> [N, H, W, C] --> clamp --> blur
    RGB -----------'

On the CPU only the blocks of the crop are decoded (`image_slice`). On a GPU nvJPEG decodes whole pictures, with its
hardware engines if the GPU has some, and the crop follows. Frames of a video stream that were decoded on the host
(format/reader.py) or by NVDEC (video_decoder.py) enter after the decoder. Frames on the host are cropped where they
lie, without a copy, and only the crops are copied to a GPU. After the crop the graph is the same for all sources.

A clip of differences in time takes the path up to the resize twice, once for its frames and once for their neighbors.
It shows r = g = b = (255 + luma - luma of the neighbor) / 2, as in the released code.

The graph draws no random number and has no state: a batch is a function of its inputs. So is each of its pictures,
with one exception: with an `hw_decoder_load` between 0 and 1, a GPU decodes part of each batch with its JPEG engines,
and the low bits of a picture may depend on its place in the batch. Plans without color (evaluation) use a graph without
that node.

The crop comes first, so that all other steps touch output pixels only. A flip is a resize from right to left. Color is
one pass: the normalization is folded into its matrix, the result is not rounded, and it is clamped once, to the
normalized values of 0 and 255. Clamp and blur are done by torch (finish.py) in the output buffer of DALI.

Resizing is linear with antialiasing, like `antialias=True` of torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.dali import error_of_batch, import_dali, reason_of
from rhofast.data.decode.finish import channel_bound, finish
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.types import LUMA, AugmentPlan, ClipPlan, Sample


class DecodePipeline:
    """One DALI pipeline for one device. It is not thread-safe: only one thread at a time may use `decode`."""

    def __init__(
        self,
        config: AugmentConfig,
        *,
        max_pictures: int,
        color: bool,
        blur: bool,
        threads: int,
        difference: bool = False,
        device_id: int | None = None,
        dtype: torch.dtype = torch.float32,
        decoded: bool = False,
        video: VideoDecoder | None = None,
        hw_decoder_load: float = 0.65,
    ) -> None:
        """Build the graph.

        Args:
            config: The augmentation: the size of the clips, and the mean and standard deviation of the normalization.
            max_pictures: Largest number N of pictures in a batch.
            color: Whether plans may change colors.
            blur: Whether plans may blur.
            threads: Number of threads that DALI uses on the CPU.
            difference: Whether plans may show differences in time.
            device_id: Number of the CUDA device, or None for the CPU.
            dtype: Dtype of the pixels on a GPU, float32 or float16.
            decoded: Whether the pictures of the samples are RGB u8[H, W, 3] instead of JPEG files. Ignored with
                `video`.
            video: Decoder for the streams of the samples, on the same device; None if the samples hold no streams.
            hw_decoder_load: Share of the JPEG files in [0, 1] that the hardware engines of a GPU decode, if it has
                some.

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
            "hw_decoder_load": hw_decoder_load,
            "num_threads": threads,
            "device_id": device_id,
        }
        self._max_pictures = max_pictures
        self._pipeline = self._build(max_pictures)
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
        """Do the part of DALI: everything but clamp and blur.

        Decoded pictures are not copied: they must not be changed before the next call. The pipeline can be used again
        after an error.

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
        try:
            pixels = self._run(self._pipeline, samples, clips, augment)
        except RuntimeError as error:
            good = self._known_good
            raise error_of_batch(
                error,
                lambda: self._find_rejected(samples, clips, augment),
                samples=len(samples),
                decode_known_good=None if good is None else (lambda: self._run(self._pipeline, *good)),
                device_id=self._device_id,
            ) from None
        self._known_good = samples[:1], clips.take([0]), augment.take([0])
        return pixels

    def _run(self, pipeline: Any, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        b, p, t = clips.frames.shape
        self._feed(pipeline, samples, clips)
        for name, values in self._arguments(augment).items():
            pipeline.feed_input(name, np.repeat(values.reshape(b * p, *values.shape[2:]), t, axis=0))
        if self._device_id is None:
            (output,) = pipeline.run()
        else:
            (output,) = pipeline.run(torch.cuda.current_stream(self._device_id))
        size = self._config.size
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor()).view(b, p, t, size, size, 3)
        return pixels.permute(0, 1, 5, 2, 3, 4)

    def finish(self, pixels: torch.Tensor, augment: AugmentPlan) -> torch.Tensor:
        """Clamp and blur the output of `decode` in place; any thread may do this (see `finish.finish`).

        Args:
            pixels: Output of `decode`, f32[B, P, C, T, H, W].
            augment: Augmentation of the same clips.

        Returns:
            The finished pixels, in the dtype of this pipeline on a GPU.
        """
        return finish(
            pixels,
            bounds=self._bounds if self._color else None,
            sigmas=augment.blur if self._blur else None,
            dtype=self._dtype,
        )

    def _feed(self, pipeline: Any, samples: Sequence[Sample], clips: ClipPlan) -> None:
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
            pipeline.feed_input(name, [by_frame[frame] for by_frame, numbers in pairs for frame in numbers], **options)

    def _arguments(self, plan: AugmentPlan) -> dict[str, npt.NDArray[Any]]:
        """Return the numeric inputs of the graph for each clip, [B, P, ...] by name."""
        right = plan.flip.astype(np.float32)
        arguments: dict[str, npt.NDArray[Any]] = {
            "start": plan.crop[..., :2].astype(np.int32),
            "shape": plan.crop[..., 2:].astype(np.int32),
            "from": np.stack([np.zeros_like(right), right], axis=-1),  # (y, x), as shares of the crop
            "to": np.stack([np.ones_like(right), 1 - right], axis=-1),
        }
        if self._options["difference"]:
            arguments["differs"] = np.zeros_like(plan.flip) if plan.difference is None else plan.difference
        if self._color:
            matrix, offset = plan.color[..., :3], plan.color[..., 3]
            arguments["matrix"] = matrix / (255 * self._std[:, None])
            arguments["offset"] = (offset / 255 - self._mean) / self._std
        return arguments

    def _find_rejected(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> dict[int, str]:
        """Return place -> reason of the samples that the decoder rejects on their own. Slow; only after an error."""
        self._pipeline = self._build(self._max_pictures)
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


def define_graph(
    config: AugmentConfig,
    *,
    color: bool,
    difference: bool,
    source: Literal["jpeg", "frames", "video"],
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    hw_decoder_load: float,
) -> Any:
    """Define the graph, which needs no device yet.

    Args:
        config: The augmentation.
        color: Whether it has the color matrix as an input.
        difference: Whether it has neighbors as an input.
        source: Form of the pictures: JPEG files, RGB frames in host memory, or RGB frames where a VideoDecoder left
            them (on the GPU, if there is one).
        batch_size: Largest number of pictures in a batch.
        num_threads: Number of CPU threads.
        device_id: Number of the CUDA device, or None for the CPU.
        hw_decoder_load: Share of the JPEG files in [0, 1] for the hardware engines of the GPU.

    Returns:
        The DALI pipeline.
    """
    fn, pipeline_def, types = import_dali()
    gpu = device_id is not None

    def external(name: str, dtype: Any, ndim: int, **options: Any) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, **options)

    def input_pictures(name: str) -> Any:
        if source == "jpeg":
            return external(name, types.UINT8, 1, no_copy=True)
        if source == "video" and gpu:
            return external(name, types.UINT8, 3, layout="HWC", device="gpu")
        return external(name, types.UINT8, 3, layout="HWC", no_copy=True)

    def crop(pictures: Any, **window: Any) -> Any:
        if source == "jpeg" and not gpu:
            return fn.decoders.image_slice(pictures, device="cpu", adjust_orientation=False, **window)
        if source == "jpeg":
            whole = {"device": "mixed", "adjust_orientation": False, "jpeg_fancy_upsampling": True}
            return fn.slice(fn.decoders.image(pictures, hw_decoder_load=hw_decoder_load, **whole), **window)
        image = fn.slice(pictures, **window)
        return image.gpu() if source == "frames" and gpu else image

    def luma(image: Any) -> Any:
        return fn.coord_transform(image, M=LUMA.tolist(), dtype=types.FLOAT)

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        enable_conditionals=True,
    )
    def graph() -> Any:
        window = {
            "start": external("start", types.INT32, 1),
            "shape": external("shape", types.INT32, 1),
            "axis_names": "WH",
        }
        resizing = {
            "size": [config.size, config.size],
            "roi_start": external("from", types.FLOAT, 1),
            "roi_end": external("to", types.FLOAT, 1),
            "roi_relative": True,
            "interp_type": types.INTERP_LINEAR,
            "antialias": True,
        }
        image = fn.resize(crop(input_pictures("pictures"), **window), **resizing)
        if difference:
            neighbors = input_pictures("neighbors")
            if external("differs", types.BOOL, 0):
                other = fn.resize(crop(neighbors, **window), **resizing)
                gray = fn.coord_transform(luma(image) - luma(other), M=[0.5] * 3, T=[127.5] * 3, dtype=types.FLOAT)
                image = fn.cast(gray, dtype=types.UINT8)
        if color:
            matrix, offset = external("matrix", types.FLOAT, 2), external("offset", types.FLOAT, 1)
            return fn.coord_transform(image, M=matrix, T=offset, dtype=types.FLOAT)
        return fn.crop_mirror_normalize(
            image,
            mean=[255 * value for value in config.mean],
            std=[255 * value for value in config.std],
            dtype=types.FLOAT,
            output_layout="HWC",
        )

    return graph()
