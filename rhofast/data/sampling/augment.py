"""Draw the augmentation of each clip as numbers: crop, flip, color matrix, blur, and what classifiers train with.

All functions are pure and vectorized, and each knob has a random stream of its own. The released augmentation
(arXiv 2104.14558, "aug+": crop by area, color jitter 0.75, gray, blur, flip) is drawn here for whole batches; color.py
composes colors to one matrix. RandAugment, random erasing and mixing are drawn in modules of their own.

It differs from the released operations in four known ways. Values are rounded and clamped once, not after each
operation. Hue is rotated linearly, not in HSV. Blur counts its sigma in output pixels, not in those of the whole frame.
Differences in time are those of luma (the released code swaps the weights of red and blue), and at the last frame of a
clip they use the frame after it (the released code uses the frame before it in some videos).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.color import GRAY, IDENTITY, color_matrix, jitter_factors
from rhofast.data.sampling.erasing import random_erasing
from rhofast.data.sampling.mixing import random_mixing
from rhofast.data.sampling.rand_augment import random_ops
from rhofast.data.sampling.rng import ClipDraws, Epoch, Stream, uniforms
from rhofast.data.types import AugmentPlan, Geometry

Float = npt.NDArray[np.floating[Any]]

CROP_TRIES = 10
_ALMOST_ONE = 1.0 - 1e-6  # keeps floor(u * (n + 1)) at or below n


def random_augment(
    config: AugmentConfig,
    geometry: Geometry,
    samples: npt.NDArray[np.int64],
    mean_rgb: Float,
    *,
    seed: int,
    epoch: Epoch,
    difference: npt.NDArray[np.bool_] | None = None,
) -> AugmentPlan:
    """Draw the augmentation of B x P clips.

    Args:
        config: The augmentation and its strength.
        geometry: Size of the B videos.
        samples: Numbers of the samples in the data set, i64[B].
        mean_rgb: Mean color of each clip in 0..255 (of its differences, if it shows those), f[B, P, 3]; the center of
            the contrast jitter.
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].
        difference: Which clips show differences in time, bool[B, P], from `random_difference`.

    Returns:
        The augmentation of each clip.
    """
    num_clips = mean_rgb.shape[1]
    counts = {Stream.CROP: {"area": 4 * CROP_TRIES, "short_side": 3, "center": 0}[config.crop]}
    counts |= {Stream.FLIP: 1} if config.flip else {}
    counts |= {Stream.COLOR_APPLY: 1, Stream.COLOR: 4, Stream.COLOR_ORDER: 4} if config.color else {}
    counts |= {Stream.GRAY: 1} if config.gray else {}
    counts |= {Stream.BLUR_APPLY: 1, Stream.BLUR: 1} if config.blur else {}
    draws = ClipDraws(seed=seed, epoch=epoch, samples=samples, num_clips=num_clips)
    drawn = draws.uniforms(counts)

    def chosen(stream: Stream, probability: float) -> npt.NDArray[np.bool_]:
        """Return which clips are chosen with this probability, bool[B, P]."""
        if not probability:
            return np.zeros((len(samples), num_clips), dtype=np.bool_)
        return drawn[stream][..., 0] < probability

    width, height = (
        np.repeat(side[:, None], num_clips, axis=1).astype(float) for side in (geometry.shown_width, geometry.height)
    )
    if config.crop == "area":
        crop = area_crop(drawn[Stream.CROP], width, height, area=config.area, aspect=config.aspect)
    elif config.crop == "short_side":
        crop = short_side_crop(config, drawn[Stream.CROP], width, height)
    else:
        crop = center_crop(width, height)
    jittered, gray = chosen(Stream.COLOR_APPLY, config.color), chosen(Stream.GRAY, config.gray)
    if config.color:
        color = color_matrix(
            factors=jitter_factors(config, drawn[Stream.COLOR]),
            order=np.argsort(drawn[Stream.COLOR_ORDER], axis=-1),
            apply=jittered,
            gray=gray,
            mean_rgb=mean_rgb,
        )
    else:
        color = np.where(gray[..., None, None], GRAY, IDENTITY)
    low, high = config.blur_sigma
    sigma = low + (high - low) * drawn[Stream.BLUR][..., 0] if config.blur else 0.0
    return AugmentPlan(
        crop=stored_crop(crop, geometry),
        flip=chosen(Stream.FLIP, config.flip),
        color=color,
        blur=np.where(chosen(Stream.BLUR_APPLY, config.blur), sigma, 0.0).astype(np.float32),
        difference=difference,
        **random_ops(config, draws),
        **random_erasing(config, draws),
        **random_mixing(config, draws),
    )


def random_difference(
    config: AugmentConfig, samples: npt.NDArray[np.int64], num_clips: int, *, seed: int, epoch: Epoch
) -> npt.NDArray[np.bool_] | None:
    """Draw which clips show differences in time.

    Args:
        config: The augmentation.
        samples: Numbers of the samples in the data set, i64[B].
        num_clips: Number of clips per video.
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].

    Returns:
        bool[B, num_clips]; None if difference=0.
    """
    if not config.difference:
        return None
    return uniforms(seed, epoch, samples, {Stream.DIFFERENCE: num_clips})[Stream.DIFFERENCE] < config.difference


def center_augment(geometry: Geometry, num_views: int, crops: int = 1) -> AugmentPlan:
    """Return the augmentation for testing: squares of the whole short side, and nothing else.

    Args:
        geometry: Size of the B videos.
        num_views: Number of clips per video.
        crops: 1 for the central square, or 3 for the first, the central and the last one along the long side.

    Returns:
        The plan of num_views * crops views per video. View v is clip v // crops with crop v % crops.
    """
    if crops == 1:
        squares = center_crop(geometry.shown_width, geometry.height)[:, None]
    else:
        squares = three_crops(geometry.shown_width, geometry.height)
    leading = (len(squares), num_views * crops)
    return AugmentPlan(
        crop=np.tile(stored_crop(squares, geometry), (1, num_views, 1)),
        flip=np.zeros(leading, dtype=np.bool_),
        color=np.broadcast_to(IDENTITY, (*leading, 3, 4)).copy(),
        blur=np.zeros(leading, dtype=np.float32),
    )


def stored_crop(crop: npt.NDArray[np.float32], geometry: Geometry) -> npt.NDArray[np.float32]:
    """Convert crops of frames as they are shown to crops of the stored frames, whose pixels may not be square.

    Resampling a crop to a square undoes the difference, so that what is seen has the right aspect ratio, up to the
    rounding to whole stored pixels.

    Args:
        crop: Left, top, width and height in shown pixels, f32[B, P, 4].
        geometry: Size of the B videos.

    Returns:
        The crops in stored pixels, f32[B, P, 4]: within the frames, and at least a pixel wide.
    """
    aspect, width = geometry.pixel_aspect[:, None], geometry.width[:, None]
    if (aspect == 1).all():
        return crop
    stored = crop.copy()
    stored[..., 2] = np.clip(np.rint(crop[..., 2] / aspect), 1, width)
    stored[..., 0] = np.clip(np.rint(crop[..., 0] / aspect), 0, width - stored[..., 2])
    return stored


def area_crop(
    draws: Float, width: Float, height: Float, *, area: tuple[float, float], aspect: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Draw a random resized crop as torchvision's RandomResizedCrop does, which the released implementation uses.

    It is the first of ten tries that fits into the frame, or else the central crop with the aspect ratio clamped.

    Args:
        draws: f[..., 40], uniform in [0, 1): area, log aspect ratio, top and left of each try.
        width: Width of the frames in pixels, [...].
        height: Height of the frames in pixels, [...].
        area: Interval of the crop's share of the frame.
        aspect: Interval of the crop's aspect ratio.

    Returns:
        f32[..., 4]: left, top, width, height.
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


def short_side_crop(config: AugmentConfig, draws: Float, width: Float, height: Float) -> npt.NDArray[np.float32]:
    """Draw a crop in the style of VGG: scale the short side to a random length, then cut a random square.

    Args:
        config: Options of the augmentation: `size`, `short_side`, `short_side_inverse`.
        draws: f[..., 3], uniform in [0, 1): length, top and left.
        width: Width of the frames in pixels, [...].
        height: Height of the frames in pixels, [...].

    Returns:
        The crop of the unscaled frame, f32[..., 4]: left, top, width, height.
    """
    short = np.minimum(width, height)
    low, high = config.short_side
    length = low + (high - low) * draws[..., 0]
    if config.short_side_inverse:
        length = 1 / (1 / high + (1 / low - 1 / high) * draws[..., 0])
    side = np.clip(np.rint(config.size * short / np.rint(length)), 1, short)
    top = np.floor(draws[..., 1] * _ALMOST_ONE * (height - side + 1))
    left = np.floor(draws[..., 2] * _ALMOST_ONE * (width - side + 1))
    return np.stack([left, top, side, side], axis=-1).astype(np.float32)


def center_crop(width: npt.NDArray[Any], height: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the central square of the whole short side, f32[..., 4], for frames of width and height [...]."""
    side = np.minimum(width, height)
    return np.stack([(width - side) // 2, (height - side) // 2, side, side], axis=-1).astype(np.float32)


def three_crops(width: npt.NDArray[Any], height: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the squares of the whole short side at the ends and in the middle of the long side.

    Args:
        width: Width of the frames in pixels, [...].
        height: Height of the frames in pixels, [...].

    Returns:
        f32[..., 3, 4]: left, center, right, or top, center, bottom.
    """
    center = center_crop(width, height)
    first, last = center.copy(), center.copy()
    first[..., :2] = 0
    last[..., 0], last[..., 1] = width - center[..., 2], height - center[..., 3]
    return np.stack([first, center, last], axis=-2)


def _central_crop(width: Float, height: Float, aspect: tuple[float, float]) -> Float:
    ratio = width / height
    w = np.where(ratio > aspect[1], np.rint(height * aspect[1]), width)
    h = np.where(ratio < aspect[0], np.rint(width / aspect[0]), height)
    central: Float = np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=-1)
    return central
