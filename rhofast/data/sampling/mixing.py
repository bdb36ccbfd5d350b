"""Draw how clips of two videos are mixed: mixup (arXiv 1710.09412) and CutMix (1905.04899), as timm's Mixup does.

The partner of clip p of the batch's sample b is clip p of sample b XOR 1: neighbors are mixed with each other. That
holds for any number of ranks that leaves each an even number of videos. Each clip has a share of its own, by its
address, as in timm's mode "elem"; VideoMAE draws one for all videos of a GPU, which depends on the number of GPUs.

A share of 1 leaves a clip as it is. CutMix draws the share, then a rectangle with the side sqrt(1 - share) around a
uniform center, and the share becomes that of the pixels that stay, as part of the rectangle may lie outside.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.rng import ClipDraws, Stream

Float = npt.NDArray[np.floating[Any]]

_CELLS = 4096  # of the table of a Beta distribution; an error of 1e-6


def random_mixing(config: AugmentConfig, draws: ClipDraws) -> dict[str, Any]:
    """Draw the mixtures of B x P clips.

    Args:
        config: The augmentation.
        draws: The random numbers of the clips.

    Returns:
        `share` f32[B, P] and `cut` i32[B, P, 4] of AugmentPlan; {} without mixing.
    """
    if not config.mixes:
        return {}
    drawn = draws.uniforms({Stream.MIX_APPLY: 1, Stream.MIX_KIND: 1, Stream.MIX_SHARE: 1, Stream.MIX_CENTER: 2})
    applied = drawn[Stream.MIX_APPLY][..., 0] < config.mix
    if config.mixup and config.cutmix:
        cuts = drawn[Stream.MIX_KIND][..., 0] < config.cutmix_share
    else:
        cuts = np.full(applied.shape, config.cutmix > 0)
    blended, kept = (
        beta_quantile(drawn[Stream.MIX_SHARE][..., 0], alpha) if alpha else np.ones(applied.shape)
        for alpha in (config.mixup, config.cutmix)
    )
    found = cut_boxes(kept, drawn[Stream.MIX_CENTER], config.size)
    boxes = np.where((applied & cuts)[..., None], found, 0).astype(np.int32)
    stay = 1 - boxes[..., 2] * boxes[..., 3] / config.size**2
    share = np.where(applied, np.where(cuts, stay, blended), 1.0)
    return {"share": share.astype(np.float32), "cut": boxes}


def cut_boxes(kept: Float, centers: Float, size: int) -> npt.NDArray[np.int32]:
    """Return the rectangles of CutMix.

    Args:
        kept: Share of the area that stays, f[...] in [0, 1].
        centers: Uniform numbers for y and x of the center, f[..., 2] in [0, 1).
        size: Side of the frames in pixels.

    Returns:
        i32[..., 4]: left, top, width, height, cut at the edges of the frame.
    """
    side = np.floor(size * np.sqrt(1 - kept)).astype(np.int64)
    y, x = (np.floor(centers[..., axis] * size).astype(np.int64) for axis in (0, 1))
    top, left = (np.clip(center - side // 2, 0, size) for center in (y, x))
    bottom, right = (np.clip(center + (side + 1) // 2, 0, size) for center in (y, x))
    return np.stack([left, top, right - left, bottom - top], axis=-1).astype(np.int32)


def beta_quantile(u: Float, alpha: float) -> npt.NDArray[np.float64]:
    """Return numbers with the distribution Beta(alpha, alpha): the inverse of its distribution function.

    Args:
        u: f[...] in [0, 1).
        alpha: Both parameters, in (0, 100].
    """
    lower, values = _half_of_beta(alpha)
    half = np.interp(np.minimum(u, 1 - u), lower, values)
    half = half ** (1 / min(alpha, 1.0)) / 2
    return np.where(u < 0.5, half, 1 - half)


@lru_cache(maxsize=8)
def _half_of_beta(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tabulate the distribution function of Beta(alpha, alpha) up to its middle, where it is 1/2.

    With x = v^(1/a) / 2, a = min(alpha, 1), the density of v has no pole at 0. It is integrated by Simpson's rule.

    Returns:
        The function's values, and v, both rising from 0, f64[cells + 1] each.
    """
    power = min(alpha, 1.0)

    def density(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x = v ** (1 / power) / 2
        if alpha < 1:
            return (1 - x) ** (alpha - 1)
        return (4 * x * (1 - x)) ** (alpha - 1)  # at most 1, so that nothing underflows as a whole

    v = np.linspace(0, 1, _CELLS + 1)
    ends, middles = density(v), density((v[1:] + v[:-1]) / 2)
    integral = np.concatenate([[0.0], np.cumsum(ends[:-1] + 4 * middles + ends[1:])])
    return integral / (2 * integral[-1]), v
