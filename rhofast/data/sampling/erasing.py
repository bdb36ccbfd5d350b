"""Draw what is erased of each clip (random erasing, arXiv 1708.04896), as timm and VideoMAE do: one rectangle at most.

The rectangle is the first of ten tries that is smaller than the frame; if none is, nothing is erased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.rng import Epoch, Stream, bits, uniforms

Float = npt.NDArray[np.floating[Any]]

TRIES = 10


def random_erasing(
    config: AugmentConfig, samples: npt.NDArray[np.int64], num_clips: int, *, seed: int, epoch: Epoch
) -> dict[str, Any]:
    """Draw the erased rectangles of B x P clips.

    Args:
        config: The augmentation.
        samples: Numbers of the samples in the data set, i64[B].
        num_clips: Number of clips per video.
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].

    Returns:
        `erase` i32[B, P, 4] and perhaps `noise` i64[B, P] of AugmentPlan; {} without random erasing.
    """
    if not config.erase:
        return {}
    counts = {Stream.ERASE_APPLY: num_clips, Stream.ERASE_BOX: num_clips * 4 * TRIES}
    drawn = uniforms(seed, epoch, samples, counts)
    boxes = erased_boxes(
        drawn[Stream.ERASE_BOX].reshape(len(samples), num_clips, 4 * TRIES),
        config.size,
        area=config.erase_area,
        aspect=config.erase_aspect,
    )
    chosen = drawn[Stream.ERASE_APPLY] < config.erase
    plan: dict[str, Any] = {"erase": np.where(chosen[..., None], boxes, 0).astype(np.int32)}
    if config.erase_fill == "noise":
        words = bits(seed, epoch, samples, Stream.ERASE_NOISE, num_clips)
        plan["noise"] = (words >> np.uint64(1)).astype(np.int64)
    return plan


def erased_boxes(
    draws: Float, size: int, *, area: tuple[float, float], aspect: tuple[float, float]
) -> npt.NDArray[np.int32]:
    """Return rectangles of a given area and aspect ratio, anywhere in the frame.

    Args:
        draws: f[..., 40], uniform in [0, 1): area, log aspect ratio, top and left of each try.
        size: Side of the frames in pixels.
        area: Interval of the rectangle's share of the frame.
        aspect: Interval of height / width.

    Returns:
        i32[..., 4]: left, top, width, height; all 0 if no try fits.
    """
    tries = draws.reshape(*draws.shape[:-1], TRIES, 4)
    target = size**2 * (area[0] + (area[1] - area[0]) * tries[..., 0])
    low, high = np.log(aspect)
    ratio = np.exp(low + (high - low) * tries[..., 1])
    height, width = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
    fits = (height > 0) & (width > 0) & (height < size) & (width < size)
    top = np.floor(tries[..., 2] * (size - height + 1))
    left = np.floor(tries[..., 3] * (size - width + 1))
    candidates = np.stack([left, top, width, height], axis=-1)
    first = np.argmax(fits, axis=-1)[..., None, None]
    chosen = np.take_along_axis(candidates, first, axis=-2)[..., 0, :]
    return np.where(fits.any(axis=-1)[..., None], chosen, 0).astype(np.int32)
