"""What happens to each clip, as numbers: crop, flip, color matrix, blur. Pure, vectorized, one random stream a knob.

The released recipe (arXiv 2104.14558, "aug+": crop by area, color jitter 0.75, gray, blur, flip) is drawn here for
whole batches. All color operations of a clip are affine in RGB, so they are composed, in the drawn order, to one 3x4
matrix:

    brightness b   rgb' = b rgb
    contrast c     rgb' = c rgb + (1 - c) gray(mean of the clip as it is by then)
    saturation s   rgb' = s rgb + (1 - s) gray(rgb)
    hue h          rgb' = YIQ^-1 R(-2 pi h) YIQ rgb      red, green, blue lie clockwise in (I, Q)
    gray           rgb' = gray(rgb)                       gray = .299 R + .587 G + .114 B

It differs from the released operations in three known ways: values are rounded and clamped once, not after each
operation; hue turns in YIQ, not in HSV; the blur's sigma counts output pixels, not pixels of the uncropped frame.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config import AugmentSection
from rhofast.data.types import AugmentPlan, Geometry
from rhofast.rng import Stream, uniform

Float = npt.NDArray[np.floating[Any]]

CROP_TRIES = 10
LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_ALMOST_ONE = 1.0 - 1e-6  # keeps floor(u * (n + 1)) at or below n


def random_augment(
    section: AugmentSection,
    geometry: Geometry,
    samples: npt.NDArray[np.int64],
    mean_rgb: Float,
    *,
    seed: int,
    epoch: int,
) -> AugmentPlan:
    """Draw the augmentation of B x P clips.

    mean_rgb: f[B, P, 3], mean color of each clip in 0..255, the center of the contrast jitter.
    """
    num_clips = mean_rgb.shape[1]

    def draw(stream: Stream, count: int = 1) -> Float:
        """[B, P, count]; clip p's numbers do not depend on how many clips there are."""
        return uniform(seed, epoch, samples, stream, num_clips * count).reshape(len(samples), num_clips, count)

    width, height = (
        np.repeat(side[:, None], num_clips, axis=1).astype(float) for side in (geometry.width, geometry.height)
    )
    if section.crop == "area":
        crop = area_crop(draw(Stream.CROP, 4 * CROP_TRIES), width, height, area=section.area, aspect=section.aspect)
    else:
        crop = short_side_crop(draw(Stream.CROP, 3), width, height, size=section.size, short_side=section.short_side)
    low, high = section.blur_sigma
    sigma = low + (high - low) * draw(Stream.BLUR)[..., 0]
    return AugmentPlan(
        crop=crop,
        flip=draw(Stream.FLIP)[..., 0] < section.flip,
        color=color_matrix(
            factors=jitter_factors(section, draw(Stream.COLOR, 4)),
            order=np.argsort(draw(Stream.COLOR_ORDER, 4), axis=-1),
            apply=draw(Stream.COLOR_APPLY)[..., 0] < section.color,
            gray=draw(Stream.GRAY)[..., 0] < section.gray,
            mean_rgb=mean_rgb,
        ),
        blur=np.where(draw(Stream.BLUR_APPLY)[..., 0] < section.blur, sigma, 0.0).astype(np.float32),
    )


def center_augment(geometry: Geometry, num_views: int) -> AugmentPlan:
    """The test plan: the central square of the whole short side, nothing else."""
    side = np.minimum(geometry.width, geometry.height)
    left, top = (geometry.width - side) // 2, (geometry.height - side) // 2
    crop = np.stack([left, top, side, side], axis=-1).astype(np.float32)
    leading = (len(side), num_views)
    identity = np.eye(3, 4, dtype=np.float32)
    return AugmentPlan(
        crop=np.repeat(crop[:, None], num_views, axis=1),
        flip=np.zeros(leading, dtype=np.bool_),
        color=np.broadcast_to(identity, (*leading, 3, 4)).copy(),
        blur=np.zeros(leading, dtype=np.float32),
    )


def area_crop(
    draws: Float, width: Float, height: Float, *, area: tuple[float, float], aspect: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Random resized crop, f32[..., 4] = left, top, width, height: the first of ten tries that fits into the frame,
    else the central crop with the aspect clamped (torchvision's RandomResizedCrop, which the release uses).

    draws: f[..., 40] in [0, 1): area, log aspect, top, left for each try.
    """
    tries = draws.reshape(*draws.shape[:-1], CROP_TRIES, 4)
    frame_w, frame_h = width[..., None].astype(np.float64), height[..., None].astype(np.float64)
    target = frame_w * frame_h * (area[0] + (area[1] - area[0]) * tries[..., 0])
    low, high = np.log(aspect)
    ratio = np.exp(low + (high - low) * tries[..., 1])
    w, h = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
    fits = (w > 0) & (h > 0) & (w <= frame_w) & (h <= frame_h)
    top = np.floor(tries[..., 2] * _ALMOST_ONE * (frame_h - h + 1))
    left = np.floor(tries[..., 3] * _ALMOST_ONE * (frame_w - w + 1))
    candidates = np.stack([left, top, w, h], axis=-1)
    first = np.argmax(fits, axis=-1)[..., None, None]
    chosen = np.take_along_axis(candidates, first, axis=-2)[..., 0, :]
    fallback = _central_crop(width, height, aspect)
    return np.where(fits.any(axis=-1)[..., None], chosen, fallback).astype(np.float32)


def short_side_crop(
    draws: Float, width: Float, height: Float, *, size: int, short_side: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """VGG style: scale the short side to a random length, cut a `size` square at a random place; as a crop of the
    unscaled frame, f32[..., 4]. draws: f[..., 3] in [0, 1): length, top, left."""
    short = np.minimum(width, height)
    length = np.rint(short_side[0] + (short_side[1] - short_side[0]) * draws[..., 0])
    side = np.clip(np.rint(size * short / length), 1, short)
    top = np.floor(draws[..., 1] * _ALMOST_ONE * (height - side + 1))
    left = np.floor(draws[..., 2] * _ALMOST_ONE * (width - side + 1))
    return np.stack([left, top, side, side], axis=-1).astype(np.float32)


def jitter_factors(section: AugmentSection, draws: Float) -> Float:
    """f[..., 4]: brightness, contrast and saturation factors, and the hue shift as a share of the circle."""
    strength = np.array([section.brightness, section.contrast, section.saturation, section.hue])
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
    """Compose color operations to one affine map, f32[..., 3, 4] on 0..255.

    factors  f[..., 4]  as from `jitter_factors`
    order    i[..., 4]  order[k] = number of the operation that comes k-th (0 brightness ... 3 hue)
    apply    [...]      whether the jitter is applied at all;  gray [...]: whether grayscale follows
    mean_rgb f[..., 3]  mean color before any operation
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
    cos, sin = np.cos(2 * np.pi * shift), np.sin(2 * np.pi * shift)
    zero, one = np.zeros_like(shift), np.ones_like(shift)
    turn = np.stack(
        [np.stack(row, axis=-1) for row in ([one, zero, zero], [zero, cos, sin], [zero, -sin, cos])], axis=-2
    )
    turned: Float = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ
    return turned


def _central_crop(width: Float, height: Float, aspect: tuple[float, float]) -> Float:
    ratio = width / height
    w = np.where(ratio > aspect[1], np.rint(height * aspect[1]), width)
    h = np.where(ratio < aspect[0], np.rint(width / aspect[0]), height)
    central: Float = np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=-1)
    return central
