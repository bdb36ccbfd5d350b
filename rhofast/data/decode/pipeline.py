"""The DALI graph: pictures and plans in, normalized clips out.

A batch is a flat list of N = B * P * T pictures, each with its own numbers, so any rho, any T and overlapping clips are
one graph:

    JPEG --decode--.
                   +--> crop --> resize, flip --> color matrix, normalize --> [N, H, W, C] --> clamp --> blur
    RGB -----------'

The CPU decodes only the crop's blocks (`image_slice`); the GPU decodes whole pictures (nvJPEG, and its hardware where
there is some) and then slices. Frames of a video that were decoded on the host (reader.py) or by NVDEC (video.py) enter
past the decoder. Those of the host are cropped where they lie, without a copy, and only their crops go to a GPU.
Everything after the crop is the same graph. A clip of differences in time goes up to the resize twice, as frames and as
their neighbors; what it shows is then r = g = b = (255 + luma - the neighbor's luma) / 2, as released.
The graph draws no random number and holds no position: a batch is a function of its inputs. Plans without color
(evaluation) build a graph without that node.

The crop comes first, so that all else touches output pixels alone. A flip is a resize from right to left. Color is one
pass: the normalization is folded into its matrix, its result is not rounded, and it is clamped once, to what 0 and 255
become. Clamp and blur are torch's, on DALI's own output buffer: its convolution over the innermost channels takes a
third of the time of DALI's blur on a CPU.

Resizing is linear with antialiasing, as torchvision's `antialias=True`. The blur is a Gaussian cut at 2.5 sigma; the
released one is three passes of a box, which end at 2.3 sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.dali import import_dali, parses, reason_of
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.types import LUMA, AugmentPlan, ClipPlan, Sample
from rhofast.errors import UndecodableError

_BLUR_REACH = 2.5  # sigmas


class DecodePipeline:
    """One DALI pipeline for one device. Not thread-safe: run it in one thread at a time."""

    def __init__(
        self,
        section: AugmentConfig,
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
        """max_pictures: the largest N of a batch. color, blur, difference: what the plans may ask for. device_id: the
        CUDA device, or None for the CPU. dtype: of the pixels, float32 or float16. decoded: the samples' pictures are
        RGB u8[H, W, 3], not JPEG files. video: decodes the samples' streams first, on the same device (then
        `decoded` says nothing). hw_decoder_load: share of the JPEG files that a GPU's engines for them decode, where it
        has some. Raises DependencyError where DALI is not installed."""
        self._section = section
        self._color, self._blur, self._decoded, self._dtype = color, blur, decoded, dtype
        self._device_id = device_id
        self._mean, self._std = (np.array(value, dtype=np.float32) for value in (section.mean, section.std))
        low, high = (0 - self._mean) / self._std, (1 - self._mean) / self._std
        self._bounds = [_bound(value, device_id) for value in (low, high)]
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

    def _build(self, pictures: int) -> Any:
        """A graph for batches of up to so many."""
        return _graph(
            self._section,
            source="video" if self._video else "frames" if self._decoded else "jpeg",
            batch_size=pictures,
            **self._options,
        )

    def run(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Decode and augment B samples: [B, P, C, T, H, W], channels last in memory. It is `finish` after `decode`."""
        return self.finish(self.decode(samples, clips, augment), augment)

    def decode(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """What DALI does: all but clamp and blur. Decoded pictures are not copied: they must not be changed before the
        next run.

        Raises UndecodableError where the pictures of some of the samples are refused, RuntimeError where DALI fails for
        another reason; the pipeline can be used again afterwards.
        """
        # What does not parse could crash the process from within DALI.
        refused = {} if self._decoded or self._video else _unparsable(samples)
        if refused:
            raise UndecodableError(refused)
        try:
            return self._run(self._pipeline, samples, clips, augment)
        except RuntimeError as error:
            self._pipeline = self._build(self._max_pictures)
            refused = self._refused(samples, clips, augment)
            raise UndecodableError(refused) if refused else error from None

    def _run(self, pipeline: Any, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        b, p, t = clips.frames.shape
        self._feed(pipeline, samples, clips)
        for name, values in self._arguments(augment).items():
            pipeline.feed_input(name, np.repeat(values.reshape(b * p, *values.shape[2:]), t, axis=0))
        if self._device_id is None:
            (output,) = pipeline.run()
        else:
            (output,) = pipeline.run(torch.cuda.current_stream(self._device_id))
        size = self._section.size
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor()).view(b, p, t, size, size, 3)
        return pixels.permute(0, 1, 5, 2, 3, 4)

    def finish(self, pixels: torch.Tensor, augment: AugmentPlan) -> torch.Tensor:
        """Clamp and blur, in place, what `decode` gave; it may be called in another thread than that. On a GPU the
        result lies in torch's own memory, which knows on which streams it is in use."""
        if self._color:
            pixels.permute(0, 1, 3, 4, 5, 2).clamp_(*self._bounds)
        if self._blur:
            _blur(pixels.transpose(2, 3), augment.blur)
        if self._device_id is None:
            return pixels
        return pixels.to(self._dtype, copy=True)

    def _feed(self, pipeline: Any, samples: Sequence[Sample], clips: ClipPlan) -> None:
        """The pictures of the clips' frames, and those that are subtracted from them."""
        shown: Sequence[Mapping[int, Any]] = [sample.pictures for sample in samples]
        options: dict[str, Any] = {}
        if self._video is not None:
            shown = self._video.decode(samples)
            if self._device_id is None:  # of a tensor DALI would ask for its CUDA stream
                shown = [{frame: picture.numpy() for frame, picture in frames.items()} for frames in shown]
            else:
                options = {"cuda_stream": torch.cuda.current_stream(self._device_id), "use_copy_kernel": True}
        inputs = {"pictures": clips.frames}
        if self._options["difference"]:
            inputs["neighbors"] = clips.frames if clips.neighbor is None else clips.neighbor
        for name, frames in inputs.items():
            every = zip(shown, frames.reshape(len(samples), -1).tolist(), strict=True)
            pipeline.feed_input(name, [pictures[frame] for pictures, row in every for frame in row], **options)

    def _arguments(self, plan: AugmentPlan) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs for each clip: [B, P, ...]."""
        right = plan.flip.astype(np.float32)
        arguments: dict[str, npt.NDArray[Any]] = {
            "start": plan.crop[..., :2].astype(np.int32),
            "shape": plan.crop[..., 2:].astype(np.int32),
            "from": np.stack([np.zeros_like(right), right], axis=-1),  # (y, x), as shares of the crop
            "to": np.stack([np.ones_like(right), 1 - right], axis=-1),
        }
        if self._options["difference"]:
            none = np.zeros_like(plan.flip)
            arguments["differs"] = none if plan.difference is None else plan.difference
        if self._color:
            matrix, offset = plan.color[..., :3], plan.color[..., 3]
            arguments["matrix"] = matrix / (255 * self._std[:, None])
            arguments["offset"] = (offset / 255 - self._mean) / self._std
        return arguments

    def _refused(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> dict[int, str]:
        """The samples that the decoder refuses on their own, and why; slow, and only after an error."""
        reasons = {}
        single = self._build(clips.frames[0].size)
        for place, sample in enumerate(samples):
            try:
                self._run(single, [sample], clips.take([place]), augment.take([place]))
            except RuntimeError as error:
                reasons[place] = reason_of(error)
                single = self._build(clips.frames[0].size)
        return reasons


def _graph(
    section: AugmentConfig,
    *,
    color: bool,
    difference: bool,
    source: Literal["jpeg", "frames", "video"],
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    hw_decoder_load: float,
) -> Any:
    """The graph, built. source: JPEG files, RGB in host memory, or RGB where a video decoder left it."""
    fn, pipeline_def, types = import_dali()
    gpu = device_id is not None

    def given(name: str, kind: Any, ndim: int, **more: Any) -> Any:
        return fn.external_source(name=name, dtype=kind, ndim=ndim, **more)

    def input_pictures(name: str) -> Any:
        if source == "jpeg":
            return given(name, types.UINT8, 1)
        if source == "video" and gpu:
            return given(name, types.UINT8, 3, layout="HWC", device="gpu")
        return given(name, types.UINT8, 3, layout="HWC", no_copy=True)

    def cropped(pictures: Any, **window: Any) -> Any:
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
        window = {"start": given("start", types.INT32, 1), "shape": given("shape", types.INT32, 1), "axis_names": "WH"}
        resizing = {
            "size": [section.size, section.size],
            "roi_start": given("from", types.FLOAT, 1),
            "roi_end": given("to", types.FLOAT, 1),
            "roi_relative": True,
            "interp_type": types.INTERP_LINEAR,
            "antialias": True,
        }
        image = fn.resize(cropped(input_pictures("pictures"), **window), **resizing)
        if difference:
            neighbors = input_pictures("neighbors")
            if given("differs", types.BOOL, 0):
                other = fn.resize(cropped(neighbors, **window), **resizing)
                gray = fn.coord_transform(luma(image) - luma(other), M=[0.5] * 3, T=[127.5] * 3, dtype=types.FLOAT)
                image = fn.cast(gray, dtype=types.UINT8)
        if color:
            matrix, offset = given("matrix", types.FLOAT, 2), given("offset", types.FLOAT, 1)
            return fn.coord_transform(image, M=matrix, T=offset, dtype=types.FLOAT)
        return fn.crop_mirror_normalize(
            image,
            mean=[255 * value for value in section.mean],
            std=[255 * value for value in section.std],
            dtype=types.FLOAT,
            output_layout="HWC",
        )

    pipeline = graph()
    pipeline.build()
    return pipeline


def _blur(pixels: torch.Tensor, sigmas: npt.NDArray[np.float32]) -> None:
    """Blur, in place, the clips [T, C, H, W] of pixels [B, P, T, C, H, W], each by its own sigma, f32[B, P]; where that
    is 0 a clip stays as it is. Beyond its edges a picture is mirrored."""
    size = pixels.shape[-1]
    for b, p in np.argwhere(sigmas > 0).tolist():
        sigma = float(sigmas[b, p])
        reach = min(math.ceil(_BLUR_REACH * sigma), size - 1)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=pixels.device) / sigma) ** 2)
        across = (weights / weights.sum()).expand(pixels.shape[3], 1, 1, -1)
        padded = functional.pad(pixels[b, p], (reach,) * 4, mode="reflect")
        blurred = functional.conv2d(padded, across, groups=len(across))
        pixels[b, p] = functional.conv2d(blurred, across.transpose(2, 3), groups=len(across))


def _unparsable(samples: Sequence[Sample]) -> dict[int, str]:
    """By place, the samples with a picture that does not parse as one."""
    reasons = {}
    for place, sample in enumerate(samples):
        broken = next((frame for frame, picture in sample.pictures.items() if not parses(picture)), None)
        if broken is not None:
            reasons[place] = f"frame {broken} is not a picture"
    return reasons


def _bound(values: npt.NDArray[np.float32], device_id: int | None) -> Any:
    """One bound a channel, as `clamp_` takes it: a number where all are the same, which is faster."""
    if np.ptp(values) == 0:
        return float(values[0])
    return torch.from_numpy(values).to("cpu" if device_id is None else f"cuda:{device_id}")
