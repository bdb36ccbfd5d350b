"""From index rows to plans: the numbers of a whole batch at once. Pure; it opens nothing and draws by address alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.augment import LUMA, center_augment, random_augment, random_difference
from rhofast.data.sampling.clips import random_clips, uniform_clips, with_neighbors
from rhofast.data.sampling.rng import Epoch
from rhofast.data.types import AugmentPlan, ClipPlan, Geometry


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
    """Random clips and augmentation of the given samples, whose rows are `rows`; epoch: one for all, or i64[B];
    duplicate_single_clip: see `random_clips`. Each sample's part depends on its own number, epoch and row alone, not on
    the batch it stands in."""
    geometry = _geometry(rows)
    clip_plan = random_clips(
        clips, geometry, samples, seed=seed, epoch=epoch, duplicate_single_clip=duplicate_single_clip
    )
    difference = random_difference(augment, samples, clips.num_clips, seed=seed, epoch=epoch)
    if difference is not None:
        views = clip_plan.frames.shape[1] // clips.num_clips  # two views of one clip share its draw
        difference = np.repeat(difference, views, axis=1)
        clip_plan = with_neighbors(clip_plan, difference, geometry.num_frames)
    rgb = _mean_rgb(rows, clip_plan, difference)
    return clip_plan, random_augment(augment, geometry, samples, rgb, seed=seed, epoch=epoch, difference=difference)


def clips_alone(
    rows: Sequence[IndexRow], samples: npt.NDArray[np.int64], clips: ClipConfig, *, seed: int, epoch: Epoch
) -> ClipPlan:
    """The clips of `training_plan` without the augmentation."""
    return random_clips(clips, _geometry(rows), samples, seed=seed, epoch=epoch)


def evaluation_plan(
    rows: Sequence[IndexRow], clips: ClipConfig, views: int, crops: int = 1
) -> tuple[ClipPlan, AugmentPlan]:
    """`views` uniform clips of each row, each with the central square or with three along the long side (`crops`), so
    P = views * crops, crops innermost; nothing random."""
    geometry = _geometry(rows)
    uniform = uniform_clips(clips, geometry, views)
    return ClipPlan(frames=np.repeat(uniform.frames, crops, axis=1)), center_augment(geometry, views, crops)


def _geometry(rows: Sequence[IndexRow]) -> Geometry:
    return Geometry(
        num_frames=np.array([row.num_frames for row in rows], dtype=np.int32),
        fps=np.array([row.fps for row in rows], dtype=np.float64),
        width=np.array([row.width for row in rows], dtype=np.int32),
        height=np.array([row.height for row in rows], dtype=np.int32),
    )


def _mean_rgb(
    rows: Sequence[IndexRow], clips: ClipPlan, difference: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float32]:
    """Mean color of each clip, or of its differences, f32[B, P, 3], from the stored means of its units."""
    mean = _mean_of_frames(rows, clips.frames)
    if difference is None or clips.neighbor is None:
        return mean
    change = (255 + (mean - _mean_of_frames(rows, clips.neighbor)) @ LUMA.astype(np.float32)) / 2
    return np.where(difference[..., None], change[..., None], mean)


def _mean_of_frames(rows: Sequence[IndexRow], frames: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """f32[B, P, 3] of i32[B, P, T]"""
    rgb = np.empty((*frames.shape, 3), dtype=np.float32)
    for row, wanted, into in zip(rows, frames, rgb, strict=True):
        into[:] = row.units.rgb[row.units.frame.searchsorted(wanted, side="right") - 1]
    mean: npt.NDArray[np.float32] = rgb.mean(axis=2)
    return mean
