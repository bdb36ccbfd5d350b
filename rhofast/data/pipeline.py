"""The DALI graph: pictures and plans in, normalized clips out. The only importer of nvidia.dali.

A batch is a flat list of N = B * P * T pictures, each with its own numbers, so any rho, any T and overlapping clips are
one graph:

    JPEG --decode--.
                   +--> crop --> resize --> color matrix --> blur --> flip, normalize --> [N, H, W, C]
    RGB -----------'

The CPU decodes only the crop's blocks (`image_slice`); the GPU decodes whole pictures (nvJPEG, and its hardware where
there is some) and then slices. Frames that were decoded on the host (reader.py) enter past the decoder: they are
cropped where they lie, without a copy, and only their crops go to a GPU. Everything after the crop is the same graph.
The crop comes first, so that color and blur touch output pixels alone. The graph draws no random number and holds no
position: a batch is a function of its inputs. Plans without color or blur (evaluation) build a graph without those
nodes.

Interpolation is linear with antialiasing, as torchvision's `antialias=True`; the blur's window is 2 ceil(3 sigma) + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rhofast.config import AugmentSection
from rhofast.data.types import AugmentPlan, ClipPlan, Sample
from rhofast.errors import DependencyError

_INSTALL = "pip install 'rhofast[cu13]' (or 'rhofast[cu12]' to match a torch built for CUDA 12); no GPU is needed"


class DecodePipeline:
    """One DALI pipeline for one device. Not thread-safe: build it and run it in one thread."""

    def __init__(
        self,
        section: AugmentSection,
        *,
        max_pictures: int,
        color: bool,
        blur: bool,
        threads: int,
        device_id: int | None = None,
        half: bool = False,
        decoded: bool = False,
    ) -> None:
        """max_pictures: the largest N of a batch. device_id: the CUDA device, or None for the CPU. half: float16
        instead of float32. decoded: the samples' pictures are RGB u8[H, W, 3], not JPEG files. Raises DependencyError
        where DALI is not installed."""
        self._size = section.size
        self._color, self._blur = color, blur
        self._device_id = device_id
        self._pipeline = _graph(
            section,
            color=color,
            blur=blur,
            gpu=device_id is not None,
            half=half,
            decoded=decoded,
            batch_size=max_pictures,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
        )
        self._pipeline.build()

    def run(self, samples: Sequence[Sample], clips: ClipPlan, augment: AugmentPlan) -> torch.Tensor:
        """Decode and augment B samples: [B, P, C, T, H, W], a channels-last view of DALI's own output buffer. Decoded
        pictures are not copied: they must not be changed before the next run.

        Raises RuntimeError where DALI does; the pipeline can be used again afterwards.
        """
        b, p, t = clips.frames.shape
        frames = clips.frames.reshape(b, p * t)
        pictures = [sample.pictures[int(frame)] for sample, row in zip(samples, frames, strict=True) for frame in row]
        self._pipeline.feed_input("pictures", pictures)
        for name, values in self._arguments(augment).items():
            self._pipeline.feed_input(name, np.repeat(values.reshape(b * p, *values.shape[2:]), t, axis=0))
        if self._device_id is None:
            (output,) = self._pipeline.run()
        else:
            (output,) = self._pipeline.run(torch.cuda.current_stream(self._device_id))
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor())
        return pixels.view(b, p, t, self._size, self._size, 3).permute(0, 1, 5, 2, 3, 4)

    def _arguments(self, plan: AugmentPlan) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs for each clip: [B, P, ...]."""
        arguments: dict[str, npt.NDArray[Any]] = {
            "start": plan.crop[..., :2].astype(np.int32),
            "shape": plan.crop[..., 2:].astype(np.int32),
            "flip": plan.flip.astype(np.int32),
        }
        if self._color:
            arguments["matrix"], arguments["offset"] = plan.color[..., :3], plan.color[..., 3]
        if self._blur:
            arguments["blurred"], arguments["sigma"] = plan.blur > 0, plan.blur
        return arguments


def _graph(
    section: AugmentSection, *, color: bool, blur: bool, gpu: bool, half: bool, decoded: bool, **options: Any
) -> Any:
    """The graph itself, unbuilt. DALI is imported here: it takes most of a second, and not every command needs it."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        raise DependencyError("nvidia-dali is not installed", hint=_INSTALL) from None

    def given(name: str, kind: Any, ndim: int, **more: Any) -> Any:
        return fn.external_source(name=name, dtype=kind, ndim=ndim, **more)

    @pipeline_def(enable_conditionals=True, **options)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        window = {"start": given("start", types.INT32, 1), "shape": given("shape", types.INT32, 1), "axis_names": "WH"}
        if decoded:
            image = fn.slice(given("pictures", types.UINT8, 3, layout="HWC", no_copy=True), **window)
            if gpu:
                image = image.gpu()
        elif gpu:
            encoded = given("pictures", types.UINT8, 1)
            whole = fn.decoders.image(encoded, device="mixed", adjust_orientation=False, jpeg_fancy_upsampling=True)
            image = fn.slice(whole, **window)
        else:
            encoded = given("pictures", types.UINT8, 1)
            image = fn.decoders.image_slice(encoded, device="cpu", adjust_orientation=False, **window)
        size = [section.size, section.size]
        image = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        if color:
            matrix, offset = given("matrix", types.FLOAT, 2), given("offset", types.FLOAT, 1)
            image = fn.coord_transform(image, M=matrix, T=offset, dtype=types.UINT8)
        if blur:
            sigma = given("sigma", types.FLOAT, 0)
            if given("blurred", types.BOOL, 0):
                image = fn.gaussian_blur(image, sigma=sigma)
        return fn.crop_mirror_normalize(
            image,
            mirror=given("flip", types.INT32, 0),
            mean=[255 * value for value in section.mean],
            std=[255 * value for value in section.std],
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC",
        )

    return graph()


class PictureDecoder:
    """DALI's image decoder by itself, on the CPU: whole pictures, to see whether they can be decoded. Not thread-safe.

    Bytes that do not parse can crash the process from within DALI, so each picture's header is parsed before; after an
    error the pictures of a batch are tried one by one, each in a new pipeline.
    """

    batch = 8  # DALI parses so few in the calling thread

    def __init__(self) -> None:
        """Raises DependencyError where DALI is not installed."""
        self._pipeline = self._build()

    def decode(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8] | None]:
        """RGB u8[H, W, 3] of each encoded picture u8[bytes], at most `batch` of them; None for one that the decoder
        refuses."""
        from nvidia import nvimgcodec

        decoded: list[npt.NDArray[np.uint8] | None] = [None] * len(pictures)
        parsed = []
        for number, picture in enumerate(pictures):
            with suppress(RuntimeError):
                nvimgcodec.CodeStream(picture.tobytes())
                parsed.append(number)
        try:
            for number, pixels in zip(parsed, self._run([pictures[number] for number in parsed]), strict=True):
                decoded[number] = pixels
        except RuntimeError:
            for number in parsed:
                self._pipeline = self._build()
                with suppress(RuntimeError):
                    (decoded[number],) = self._run([pictures[number]])
            self._pipeline = self._build()
        return decoded

    def _run(self, pictures: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        if not pictures:
            return []
        self._pipeline.feed_input("encoded", pictures)
        (output,) = self._pipeline.run()
        return [np.array(output.at(number)) for number in range(len(pictures))]

    def _build(self) -> Any:
        try:
            from nvidia.dali import fn, pipeline_def, types
        except ImportError:
            raise DependencyError("nvidia-dali is not installed", hint=_INSTALL) from None

        @pipeline_def(batch_size=self.batch, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
        def graph() -> Any:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            return fn.decoders.image(encoded, device="cpu", adjust_orientation=False)

        pipeline = graph()
        pipeline.build()
        return pipeline
