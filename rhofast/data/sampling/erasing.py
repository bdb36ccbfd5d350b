"""Draw what is erased of each clip (random erasing, arXiv 1708.04896), as timm and VideoMAE do: one rectangle at most.

The rectangle is the first of ten tries that is smaller than the frame; if none is, nothing is erased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.rng import ClipDraws, Stream

Float = npt.NDArray[np.floating[Any]]

TRIES = 10


def random_erasing(config: AugmentConfig, draws: ClipDraws) -> dict[str, Any]:
    """Draw the erased rectangles of B x P clips.

    Args:
        config: The augmentation.
        draws: The random numbers of the clips.

    Returns:
        `erase` i32[B, P, 4] and perhaps `noise` i64[B, P] of AugmentPlan; {} without random erasing.
    """
    if not config.erase:
        return {}
    drawn = draws.uniforms({Stream.ERASE_APPLY: 1, Stream.ERASE_BOX: 4 * TRIES})
    boxes = erased_boxes(drawn[Stream.ERASE_BOX], config.size, area=config.erase_area, aspect=config.erase_aspect)
    plan: dict[str, Any] = {"erase": np.where(drawn[Stream.ERASE_APPLY] < config.erase, boxes, 0).astype(np.int32)}
    if config.erase_fill == "noise":
        plan["noise"] = (draws.bits(Stream.ERASE_NOISE) >> np.uint64(1)).astype(np.int64)
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
