"""Plan the clips and augmentation of a whole batch from its rows of the index. All functions are pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.augment import center_augment, random_augment, random_difference
from rhofast.data.sampling.clips import random_clips, uniform_clips, with_neighbors
from rhofast.data.sampling.key_frames import key_frame_clips, whole_frames
from rhofast.data.sampling.rng import Epoch
from rhofast.data.types import LUMA, AugmentPlan, ClipPlan, Geometry
from rhofast.data.units import colors_of


def training_plan(
    rows: Sequence[IndexRow],
    samples: npt.NDArray[np.int64],
    clips: ClipConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    epoch: Epoch,
    duplicate_single_clip: bool = True,
) -> tuple[ClipPlan, AugmentPlan]:
    """Plan random clips and augmentation for B samples.

    The plan of a sample depends only on its own number, epoch and row, not on the rest of the batch.

    Args:
        rows: Rows of the index of the samples.
        samples: Numbers of the samples in the data set, i64[B].
        clips: Options of the clips.
        augment: Options of the augmentation.
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].
        duplicate_single_clip: Whether num_clips=1 gives two equal clips instead of one.

    Returns:
        The frames and the augmentation of each clip.
    """
    geometry = geometry_of(rows)
    clip_plan = random_clips(
        clips, geometry, samples, seed=seed, epoch=epoch, duplicate_single_clip=duplicate_single_clip
    )
    difference = random_difference(augment, samples, clips.num_clips, seed=seed, epoch=epoch)
    if difference is not None:
        views = clip_plan.frames.shape[1] // clips.num_clips  # both copies of a duplicated clip share its draw
        difference = np.repeat(difference, views, axis=1)
        clip_plan = with_neighbors(clip_plan, difference, geometry.num_frames)
    rgb = _mean_rgb(rows, clip_plan, difference)
    return clip_plan, random_augment(augment, geometry, samples, rgb, seed=seed, epoch=epoch, difference=difference)


def training_clips(
    rows: Sequence[IndexRow], samples: npt.NDArray[np.int64], clips: ClipConfig, *, seed: int, epoch: Epoch
) -> ClipPlan:
    """Plan the clips of `training_plan` without the augmentation.

    Args:
        rows: Rows of the index of the samples.
        samples: Numbers of the samples in the data set, i64[B].
        clips: Options of the clips.
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].

    Returns:
        The frames of each clip.
    """
    return random_clips(clips, geometry_of(rows), samples, seed=seed, epoch=epoch)


def evaluation_plan(
    rows: Sequence[IndexRow], clips: ClipConfig, views: int, crops: int = 1
) -> tuple[ClipPlan, AugmentPlan]:
    """Plan uniform clips for testing; nothing is random.

    Args:
        rows: Rows of the index of B samples.
        clips: Options of the clips.
        views: Number of uniform clips per video.
        crops: 1 for the central square of each clip, or 3 for three squares along the long side.

    Returns:
        The frames and the crops of P = views * crops clips per video, crops innermost.
    """
    geometry = geometry_of(rows)
    uniform = uniform_clips(clips, geometry, views)
    return ClipPlan(frames=np.repeat(uniform.frames, crops, axis=1)), center_augment(geometry, views, crops)


def key_frame_training_plan(
    rows: Sequence[IndexRow],
    numbers: npt.NDArray[np.int64],
    centers: npt.NDArray[np.int64],
    clips: ClipConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    epoch: Epoch,
) -> tuple[ClipPlan, AugmentPlan]:
    """Plan the clips around key frames and a random augmentation of each.

    Args:
        rows: Rows of the index of the key frames' samples.
        numbers: Numbers of the key frames, i64[B], by which random numbers are addressed.
        centers: Number of each key frame in its sample, i64[B].
        clips: Options of the clips.
        augment: Options of the augmentation.
        seed: Seed of the run.
        epoch: Epoch of all key frames, or i64[B].

    Returns:
        The frames and the augmentation of a clip per key frame.
    """
    geometry = geometry_of(rows)
    plan = key_frame_clips(clips, geometry, centers)
    rgb = _mean_rgb(rows, plan, None)
    return plan, random_augment(augment, geometry, numbers, rgb, seed=seed, epoch=epoch)


def key_frame_evaluation_plan(
    rows: Sequence[IndexRow], centers: npt.NDArray[np.int64], clips: ClipConfig, *, short_side: int
) -> tuple[ClipPlan, AugmentPlan]:
    """Plan the clips around key frames for testing: whole frames, of which nothing is cut off.

    Args:
        rows: Rows of the index of the key frames' samples, which have the same shape.
        centers: Number of each key frame in its sample, i64[B].
        clips: Options of the clips.
        short_side: Short side of the clips in pixels.

    Returns:
        The frames and the augmentation of a clip per key frame.
    """
    geometry = geometry_of(rows)
    return key_frame_clips(clips, geometry, centers), whole_frames(geometry, short_side)


def geometry_of(rows: Sequence[IndexRow]) -> Geometry:
    """Return the properties of samples that plans depend on."""
    return Geometry(
        num_frames=np.array([row.num_frames for row in rows], dtype=np.int32),
        fps=np.array([row.fps for row in rows], dtype=np.float64),
        width=np.array([row.width for row in rows], dtype=np.int32),
        height=np.array([row.height for row in rows], dtype=np.int32),
        pixel_aspect=np.array([row.pixel_aspect for row in rows], dtype=np.float64),
    )


def _mean_rgb(
    rows: Sequence[IndexRow], clips: ClipPlan, difference: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float32]:
    """Return the mean color of each clip, or of its differences, from the stored means of its units, f32[B, P, 3]."""
    mean = _mean_of_frames(rows, clips.frames)
    if difference is None or clips.neighbor is None:
        return mean
    change = (255 + (mean - _mean_of_frames(rows, clips.neighbor)) @ LUMA.astype(np.float32)) / 2
    return np.where(difference[..., None], change[..., None], mean)


def _mean_of_frames(rows: Sequence[IndexRow], frames: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the mean color of each clip, f32[B, P, 3], for frames i32[B, P, T]."""
    rgb = np.empty((*frames.shape, 3), dtype=np.float32)
    for row, wanted, colors in zip(rows, frames, rgb, strict=True):
        colors[:] = colors_of(row.units, row.num_frames, wanted)
    mean: npt.NDArray[np.float32] = rgb.mean(axis=2)
    return mean
