"""Compose the color operations of a clip to one matrix.

All of them are affine in RGB:

    brightness b   rgb' = b rgb
    contrast c     rgb' = c rgb + (1 - c) gray(mean of the clip after the operations before)
    saturation s   rgb' = s rgb + (1 - s) gray(rgb)
    hue h          rgb' = R(2 pi h) rgb            a rotation about the gray axis r = g = b, red towards green
    gray           rgb' = gray(rgb)                       gray = .299 R + .587 G + .114 B

The rotation is the linear map nearest to that of HSV over all colors, and equals it at a third of the circle. On real
pictures, at the released strength, its mean error is 4.4 levels, where the rotation in HSV moves colors by 6.8 levels
(in YIQ, as DALI rotates hue, the error is 7.7: benchmarks/data_loading/hue.py). HSV itself is not offered: it costs
1.2 ms per frame on one thread, almost half the cost of the whole graph, and color would no longer be one matrix.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.types import LUMA

Float = npt.NDArray[np.floating[Any]]

IDENTITY = np.eye(3, 4, dtype=np.float32)
GRAY = np.pad(np.tile(LUMA, (3, 1)), ((0, 0), (0, 1))).astype(np.float32)


def jitter_factors(config: AugmentConfig, draws: Float) -> Float:
    """Scale random numbers to the factors of the color jitter.

    Args:
        config: The strength of the color jitter.
        draws: f[..., 4], uniform in [0, 1).

    Returns:
        f[..., 4]: factors of brightness, contrast and saturation, and the hue shift as a fraction of the circle.
    """
    strength = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    factors: Float = center + strength * (2 * draws - 1)
    return factors


def color_matrix(
    *,
    factors: Float,
    order: npt.NDArray[np.int64],
    apply: npt.NDArray[np.bool_],
    gray: npt.NDArray[np.bool_],
    mean_rgb: Float,
) -> npt.NDArray[np.float32]:
    """Compose color operations to one affine map.

    Args:
        factors: f[..., 4], from `jitter_factors`.
        order: i64[..., 4], order[k] = number of the k-th operation (0 brightness, 1 contrast, 2 saturation, 3 hue).
        apply: Whether the jitter is applied, bool[...].
        gray: Whether grayscale follows, bool[...].
        mean_rgb: Mean color before any operation, f[..., 3].

    Returns:
        f32[..., 3, 4] on 0..255.
    """
    operations = np.stack(
        [
            _scale(factors[..., 0]),
            _scale(factors[..., 1]),
            _toward_gray(factors[..., 2]),
            _hue(factors[..., 3]),
        ],
        axis=-3,
    )  # linear parts, [..., 4, 3, 3]
    matrix = np.broadcast_to(np.eye(3), (*apply.shape, 3, 3))
    offset = np.zeros((*apply.shape, 3))
    for place in range(4):
        which = order[..., place]
        step = np.take_along_axis(operations, which[..., None, None, None], axis=-3)[..., 0, :, :]
        mean = np.einsum("...ij,...j->...i", matrix, mean_rgb) + offset
        center = (1 - factors[..., 1]) * (mean @ LUMA)
        matrix = step @ matrix
        offset = np.einsum("...ij,...j->...i", step, offset) + np.where(which == 1, center, 0.0)[..., None]
    matrix = np.where(apply[..., None, None], matrix, np.eye(3))
    offset = np.where(apply[..., None], offset, 0.0)
    to_gray = np.where(gray[..., None, None], _toward_gray(np.zeros(gray.shape)), np.eye(3))
    matrix, offset = to_gray @ matrix, np.einsum("...ij,...j->...i", to_gray, offset)
    return np.concatenate([matrix, offset[..., None]], axis=-1).astype(np.float32)


def _scale(factor: Float) -> Float:
    scaled: Float = factor[..., None, None] * np.eye(3)
    return scaled


def _toward_gray(keep: Float) -> Float:
    share = keep[..., None, None]
    blended: Float = share * np.eye(3) + (1 - share) * np.broadcast_to(LUMA, (3, 3))
    return blended


def _hue(shift: Float) -> Float:
    """Return Rodrigues' rotation about (1, 1, 1), a circulant matrix."""
    third = 2 * np.pi / 3
    same, next_one, last_one = ((1 + 2 * np.cos(2 * np.pi * shift + phase)) / 3 for phase in (0, -third, third))
    rows = ([same, last_one, next_one], [next_one, same, last_one], [last_one, next_one, same])
    rotation: Float = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    return rotation
