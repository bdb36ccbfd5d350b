"""Define the DALI graph that decodes, crops, resizes and colors pictures.

A batch is a flat list of N = B * P * T pictures, each with its own numbers, so that one graph serves any rho, any T and
overlapping clips:

    JPEG --decode--.
                   +--> crop --> resize, flip --> color matrix, normalize --> [N, H, W, C]
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
one pass: the normalization is folded into its matrix, and the result is not rounded. Resizing is linear with
antialiasing, like `antialias=True` of torchvision.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.dali import import_dali
from rhofast.data.types import LUMA, AugmentPlan


def define_graph(
    config: AugmentConfig,
    *,
    color: bool,
    difference: bool,
    sizes: bool,
    source: Literal["jpeg", "frames", "video"],
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    hw_decoder_load: float,
) -> Any:
    """Define the graph, which needs no device until it is built.

    Args:
        config: The augmentation.
        color: Whether it has the color matrix as an input.
        difference: Whether it has neighbors as an input.
        sizes: Whether it has the size of the output as an input; otherwise it makes squares of `config.size`.
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
            "size": external("size", types.FLOAT, 1) if sizes else [config.size, config.size],
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


def graph_arguments(
    plan: AugmentPlan,
    *,
    normalization: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
    difference: bool,
) -> dict[str, npt.NDArray[Any]]:
    """Return the numeric inputs of the graph for each clip.

    Args:
        plan: The augmentation of B x P clips.
        normalization: Mean and standard deviation of the normalization, f32[3] each, which become part of the color
            matrix; None if the graph has no color.
        difference: Whether the graph has neighbors as an input.

    Returns:
        [B, P, ...] by name.
    """
    right = plan.flip.astype(np.float32)
    arguments: dict[str, npt.NDArray[Any]] = {
        "start": plan.crop[..., :2].astype(np.int32),
        "shape": plan.crop[..., 2:].astype(np.int32),
        "from": np.stack([np.zeros_like(right), right], axis=-1),  # (y, x), as shares of the crop
        "to": np.stack([np.ones_like(right), 1 - right], axis=-1),
    }
    if plan.size is not None:
        arguments["size"] = plan.size[..., ::-1].astype(np.float32)  # (height, width)
    if difference:
        arguments["differs"] = np.zeros_like(plan.flip) if plan.difference is None else plan.difference
    if normalization is not None:
        mean, std = normalization
        arguments["matrix"] = plan.color[..., :3] / (255 * std[:, None])
        arguments["offset"] = (plan.color[..., 3] / 255 - mean) / std
    return arguments
