"""What happens to each clip, as numbers: crop, flip, color matrix, blur. Pure, vectorized, one random stream a knob.

The released recipe (arXiv 2104.14558, "aug+": crop by area, color jitter 0.75, gray, blur, flip) is drawn here for
whole batches. All color operations of a clip are affine in RGB, so they are composed, in the drawn order, to one 3x4
matrix:

    brightness b   rgb' = b rgb
    contrast c     rgb' = c rgb + (1 - c) gray(mean of the clip as it is by then)
    saturation s   rgb' = s rgb + (1 - s) gray(rgb)
    hue h          rgb' = R(2 pi h) rgb            a turn about the gray axis r = g = b, red towards green
    gray           rgb' = gray(rgb)                       gray = .299 R + .587 G + .114 B

It differs from the released operations in four known ways: values are rounded and clamped once, not after each
operation; hue turns linearly, not in HSV; the blur's sigma counts output pixels, not pixels of the uncropped frame; and
differences in time are those of luma (the release gives red and blue each other's weight) and, at a clip's last frame,
reach past it (the release reaches back in some videos).

The turn is the linear map nearest to HSV's over all colors, and the same at a third of the circle. On real pictures, at
the released strength, it is 4.4 levels off in the mean where HSV's turn moves them by 6.8 (in YIQ, as DALI turns hue,
7.7: benchmarks/data_loading/hue.py). HSV itself is not offered: it costs 1.2 ms per frame on one thread, almost half of
what the whole graph does, and color would no longer be one matrix.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.rng import Epoch, Stream, uniforms
from rhofast.data.types import AugmentPlan, Geometry

Float = npt.NDArray[np.floating[Any]]

CROP_TRIES = 10
LUMA = np.array([0.299, 0.587, 0.114])
_IDENTITY = np.eye(3, 4, dtype=np.float32)
_GRAY = np.pad(np.tile(LUMA, (3, 1)), ((0, 0), (0, 1))).astype(np.float32)
_ALMOST_ONE = 1.0 - 1e-6  # keeps floor(u * (n + 1)) at or below n


def random_augment(
    section: AugmentConfig,
    geometry: Geometry,
    samples: npt.NDArray[np.int64],
    mean_rgb: Float,
    *,
    seed: int,
    epoch: Epoch,
    difference: npt.NDArray[np.bool_] | None = None,
) -> AugmentPlan:
    """Draw the augmentation of B x P clips.

    mean_rgb: f[B, P, 3], mean color of each clip in 0..255 (of its differences, where it shows those), the center of
    the contrast jitter. difference: bool[B, P] as from `random_difference`.
    """
    num_clips = mean_rgb.shape[1]
    counts = {Stream.CROP: {"area": 4 * CROP_TRIES, "short_side": 3, "center": 0}[section.crop]}
    counts |= {Stream.FLIP: 1} if section.flip else {}
    counts |= {Stream.COLOR_APPLY: 1, Stream.COLOR: 4, Stream.COLOR_ORDER: 4} if section.color else {}
    counts |= {Stream.GRAY: 1} if section.gray else {}
    counts |= {Stream.BLUR_APPLY: 1, Stream.BLUR: 1} if section.blur else {}
    drawn = uniforms(seed, epoch, samples, {stream: num_clips * count for stream, count in counts.items()})

    def draw(stream: Stream) -> Float:
        """[B, P, count]; clip p's numbers do not depend on how many clips there are."""
        return drawn[stream].reshape(len(samples), num_clips, counts[stream])

    def chosen(stream: Stream, probability: float) -> npt.NDArray[np.bool_]:
        """bool[B, P]"""
        if not probability:
            return np.zeros((len(samples), num_clips), dtype=np.bool_)
        return draw(stream)[..., 0] < probability

    width, height = (
        np.repeat(side[:, None], num_clips, axis=1).astype(float) for side in (geometry.width, geometry.height)
    )
    if section.crop == "area":
        crop = area_crop(draw(Stream.CROP), width, height, area=section.area, aspect=section.aspect)
    elif section.crop == "short_side":
        crop = short_side_crop(draw(Stream.CROP), width, height, size=section.size, short_side=section.short_side)
    else:
        crop = center_crop(width, height)
    jittered, gray = chosen(Stream.COLOR_APPLY, section.color), chosen(Stream.GRAY, section.gray)
    if section.color:
        color = color_matrix(
            factors=jitter_factors(section, draw(Stream.COLOR)),
            order=np.argsort(draw(Stream.COLOR_ORDER), axis=-1),
            apply=jittered,
            gray=gray,
            mean_rgb=mean_rgb,
        )
    else:
        color = np.where(gray[..., None, None], _GRAY, _IDENTITY)
    low, high = section.blur_sigma
    sigma = low + (high - low) * draw(Stream.BLUR)[..., 0] if section.blur else 0.0
    return AugmentPlan(
        crop=crop,
        flip=chosen(Stream.FLIP, section.flip),
        color=color,
        blur=np.where(chosen(Stream.BLUR_APPLY, section.blur), sigma, 0.0).astype(np.float32),
        difference=difference,
    )


def random_difference(
    section: AugmentConfig, samples: npt.NDArray[np.int64], num_clips: int, *, seed: int, epoch: Epoch
) -> npt.NDArray[np.bool_] | None:
    """Which clips show differences in time, bool[B, num_clips]; None where the section has none."""
    if not section.difference:
        return None
    return uniforms(seed, epoch, samples, {Stream.DIFFERENCE: num_clips})[Stream.DIFFERENCE] < section.difference


def center_augment(geometry: Geometry, num_views: int, crops: int = 1) -> AugmentPlan:
    """The test plan: squares of the whole short side, nothing else. crops: for each view the central one (1), or the
    first, the central and the last along the long side (3). View v is clip v // crops with crop v % crops."""
    if crops == 1:
        squares = center_crop(geometry.width, geometry.height)[:, None]
    else:
        squares = three_crops(geometry.width, geometry.height)
    leading = (len(squares), num_views * crops)
    return AugmentPlan(
        crop=np.tile(squares, (1, num_views, 1)),
        flip=np.zeros(leading, dtype=np.bool_),
        color=np.broadcast_to(_IDENTITY, (*leading, 3, 4)).copy(),
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


def center_crop(width: npt.NDArray[Any], height: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The central square of the whole short side, f32[..., 4]."""
    side = np.minimum(width, height)
    return np.stack([(width - side) // 2, (height - side) // 2, side, side], axis=-1).astype(np.float32)


def three_crops(width: npt.NDArray[Any], height: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The squares of the whole short side at the two ends of the long side and in its middle: left, center, right, or
    top, center, bottom; f32[..., 3, 4]."""
    center = center_crop(width, height)
    first, last = center.copy(), center.copy()
    first[..., :2] = 0
    last[..., 0], last[..., 1] = width - center[..., 2], height - center[..., 3]
    return np.stack([first, center, last], axis=-2)


def jitter_factors(section: AugmentConfig, draws: Float) -> Float:
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
    """Rodrigues' rotation about (1, 1, 1): a circulant matrix."""
    third = 2 * np.pi / 3
    same, next_one, last_one = ((1 + 2 * np.cos(2 * np.pi * shift + turn)) / 3 for turn in (0, -third, third))
    rows = ([same, last_one, next_one], [next_one, same, last_one], [last_one, next_one, same])
    turned: Float = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    return turned


def _central_crop(width: Float, height: Float, aspect: tuple[float, float]) -> Float:
    ratio = width / height
    w = np.where(ratio > aspect[1], np.rint(height * aspect[1]), width)
    h = np.where(ratio < aspect[0], np.rint(width / aspect[0]), height)
    central: Float = np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=-1)
    return central
