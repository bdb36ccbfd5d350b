"""From index rows to plans: the numbers of a whole batch at once. Pure; it opens nothing and draws by address alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rhofast.config import AugmentSection, ClipSection
from rhofast.data.augment import center_augment, random_augment
from rhofast.data.clips import random_clips, uniform_clips
from rhofast.data.index import IndexRow
from rhofast.data.types import AugmentPlan, ClipPlan, Geometry


def training_plan(
    rows: Sequence[IndexRow],
    samples: npt.NDArray[np.int64],
    clips: ClipSection,
    augment: AugmentSection,
    *,
    seed: int,
    epoch: int,
) -> tuple[ClipPlan, AugmentPlan]:
    """Random clips and augmentation of the given samples, whose rows are `rows`. Each sample's part depends on its own
    number and row alone, not on the batch it stands in."""
    geometry = _geometry(rows)
    clip_plan = random_clips(clips, geometry, samples, seed=seed, epoch=epoch)
    rgb = _mean_rgb(rows, clip_plan)
    return clip_plan, random_augment(augment, geometry, samples, rgb, seed=seed, epoch=epoch)


def clips_alone(
    rows: Sequence[IndexRow], samples: npt.NDArray[np.int64], clips: ClipSection, *, seed: int, epoch: int
) -> ClipPlan:
    """The clips of `training_plan` without the augmentation."""
    return random_clips(clips, _geometry(rows), samples, seed=seed, epoch=epoch)


def evaluation_plan(rows: Sequence[IndexRow], clips: ClipSection, views: int) -> tuple[ClipPlan, AugmentPlan]:
    """`views` uniform clips of each row, central square, nothing random."""
    geometry = _geometry(rows)
    return uniform_clips(clips, geometry, views), center_augment(geometry, views)


def take(plan: tuple[ClipPlan, AugmentPlan], rows: npt.NDArray[np.int64]) -> tuple[ClipPlan, AugmentPlan]:
    """The plans of some samples of a batch."""
    clips, augment = plan
    return ClipPlan(frames=clips.frames[rows]), AugmentPlan(
        crop=augment.crop[rows], flip=augment.flip[rows], color=augment.color[rows], blur=augment.blur[rows]
    )


def join(plans: Sequence[tuple[ClipPlan, AugmentPlan]]) -> tuple[ClipPlan, AugmentPlan]:
    """One plan of several, one after another."""
    return ClipPlan(frames=np.concatenate([clips.frames for clips, _ in plans])), AugmentPlan(
        crop=np.concatenate([augment.crop for _, augment in plans]),
        flip=np.concatenate([augment.flip for _, augment in plans]),
        color=np.concatenate([augment.color for _, augment in plans]),
        blur=np.concatenate([augment.blur for _, augment in plans]),
    )


def _geometry(rows: Sequence[IndexRow]) -> Geometry:
    return Geometry(
        num_frames=np.array([row.num_frames for row in rows], dtype=np.int32),
        fps=np.array([row.fps for row in rows], dtype=np.float64),
        width=np.array([row.width for row in rows], dtype=np.int32),
        height=np.array([row.height for row in rows], dtype=np.int32),
    )


def _mean_rgb(rows: Sequence[IndexRow], clips: ClipPlan) -> npt.NDArray[np.float32]:
    """Mean color of each clip, f32[B, P, 3], from the stored means of its units."""
    means = []
    for row, frames in zip(rows, clips.frames, strict=True):
        unit = np.searchsorted(row.units.frame, frames, side="right") - 1
        means.append(row.units.rgb[unit].mean(axis=1))
    return np.stack(means)
