"""Draw the operations of RandAugment (arXiv 1909.13719) for each clip, with timm's "increasing" set of operations.

Of `rand_ops` operations, each is one of 15, with equal probability, and is applied with `rand_probability`. Its
strength m is drawn from a normal distribution around `rand_magnitude`, cut to [0, 10]. Every operation does more with
a greater m ("inc1" in timm's policy "rand-m7-n4-mstd0.5-inc1"). Signs are drawn where there are two directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.image_ops import ImageOp
from rhofast.data.sampling.rng import ClipDraws, Stream

Float = npt.NDArray[np.floating[Any]]

OPS = tuple(op for op in ImageOp if op is not ImageOp.NONE)
STRONGEST = 10.0
_TURN, _SHEAR, _SHIFT, _FACTOR = 30.0, 0.3, 0.45, 0.9  # the most that a clip is rotated, sheared, moved and enhanced
_BITS, _LEVELS, _ADDED = 4, 256, 110


def random_ops(config: AugmentConfig, draws: ClipDraws) -> dict[str, Any]:
    """Draw the operations of B x P clips.

    Args:
        config: The augmentation.
        draws: The random numbers of the clips.

    Returns:
        `ops` i8[B, P, N] and `amounts` f32[B, P, N] of AugmentPlan; {} without RandAugment.
    """
    count = config.rand_ops
    if not count:
        return {}
    counts = {Stream.RAND_OP: count, Stream.RAND_APPLY: count, Stream.RAND_SIGN: count, Stream.RAND_STRENGTH: 2 * count}
    drawn = draws.uniforms(counts)
    which, applied, sign = drawn[Stream.RAND_OP], drawn[Stream.RAND_APPLY], drawn[Stream.RAND_SIGN]
    pairs = drawn[Stream.RAND_STRENGTH]
    normal = _normal(pairs.reshape(*pairs.shape[:-1], count, 2))
    strength = np.clip(config.rand_magnitude + config.rand_spread * normal, 0, STRONGEST)
    numbers = np.array(OPS, dtype=np.int8)[(which * len(OPS)).astype(np.int64)]
    ops = np.where(applied < config.rand_probability, numbers, np.int8(ImageOp.NONE))
    return {"ops": ops, "amounts": amounts_of(ops, strength, np.where(sign < 0.5, -1.0, 1.0))}


def amounts_of(ops: npt.NDArray[np.int8], strength: Float, sign: Float) -> npt.NDArray[np.float32]:
    """Return how much operations do.

    Args:
        ops: Numbers of ImageOp, [...].
        strength: m of each in [0, 10], [...].
        sign: -1 or 1, [...]; operations of one direction do not look at it.

    Returns:
        f32[...], in the units of ImageOp; 0 for those that have no amount.
    """
    share = strength / STRONGEST
    factor = np.maximum(1 + sign * _FACTOR * share, 1 - _FACTOR)
    amounts = {
        ImageOp.ROTATE: sign * _TURN * share,
        ImageOp.POSTERIZE: _BITS - np.floor(_BITS * share),
        ImageOp.SOLARIZE: _LEVELS - np.minimum(np.floor(_LEVELS * share), _LEVELS),
        ImageOp.SOLARIZE_ADD: np.floor(_ADDED * share),
        **dict.fromkeys((ImageOp.COLOR, ImageOp.CONTRAST, ImageOp.BRIGHTNESS, ImageOp.SHARPNESS), factor),
        **dict.fromkeys((ImageOp.SHEAR_X, ImageOp.SHEAR_Y), sign * _SHEAR * share),
        **dict.fromkeys((ImageOp.TRANSLATE_X, ImageOp.TRANSLATE_Y), sign * _SHIFT * share),
    }
    out = np.zeros(ops.shape, dtype=np.float32)
    for op, amount in amounts.items():
        np.copyto(out, amount.astype(np.float32), where=ops == op)
    return out


def _normal(draws: Float) -> Float:
    """Return normal numbers f64[...] from pairs of uniform ones f64[..., 2] in [0, 1) (Box and Muller)."""
    normal: Float = np.sqrt(-2 * np.log1p(-draws[..., 0])) * np.cos(2 * np.pi * draws[..., 1])
    return normal
