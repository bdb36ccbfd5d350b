"""Key frames as what batches consist of: their order, the clips around them, and where their boxes are in a clip.

A key frame is a pair (sample, frame), and has a number in the set's `KeyFrames`. The order of an epoch, its blocks of
shards, its lanes and the addresses of random numbers are those of samples (shuffle.py, rng.py), said of key frames:
`KeyFrameMixture` only says how many key frames each shard has, and which sample one belongs to.

    key frame       ..... 28 ... 36 ... 44 ... 52 ... [60] ... 68 ... 76 ... 84     T = 8, tau = 8, center 60
    box             shares of the frame --crop, flip, resize of the plan--> pixels of the clip
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import KeyFrames
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import AugmentPlan, ClipPlan, Geometry

Int64Array = npt.NDArray[np.int64]


class KeyFrameMixture(Mixture):
    """The key frames of one shard set, in the place of its samples.

    Args:
        shards: The set.
        key_frames: Its key frames; every method that names a sample means one of them by its number.
    """

    def __init__(self, shards: ShardSet, key_frames: KeyFrames) -> None:
        super().__init__([shards])
        self.key_frames = key_frames
        self.starts = np.array([0, len(key_frames)], dtype=np.int64)

    @property
    def digest(self) -> str:
        """Digest of set and boxes."""
        return self.key_frames.digest

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the set and the sample of a key frame; raises IndexError if it is not in [0, len)."""
        if not 0 <= sample < len(self):
            raise IndexError(f"key frame {sample} is not in [0, {len(self)})")
        return 0, int(self.key_frames.sample[sample])

    def shard_starts(self, number: int) -> Int64Array:
        """Return the number of each shard's first key frame, and the number of key frames at the end."""
        starts: Int64Array = np.searchsorted(self.key_frames.sample, self.sets[number].starts).astype(np.int64)
        return starts

    def rates(self, number: int) -> None:
        """Return None: every key frame is visited once per epoch."""


def key_frame_clips(config: ClipConfig, geometry: Geometry, centers: Int64Array) -> ClipPlan:
    """Choose the frames around key frames as PySlowFast does: T frames tau apart, of which frame T // 2 is the center.

    Frames before the video and after it are its first and its last one.

    Args:
        config: T, tau and the frame rate that tau refers to; the rule of clips does not matter.
        geometry: Length and frame rate of B videos.
        centers: The key frame of each, i64[B].

    Returns:
        Frames i32[B, 1, T].
    """
    steps = np.arange(config.num_frames) * config.frame_stride - config.num_frames * config.frame_stride // 2
    offsets = np.rint(steps * (geometry.fps / config.fps)[:, None]).astype(np.int64)
    last = geometry.num_frames[:, None].astype(np.int64) - 1
    frames = np.clip(centers[:, None] + offsets, 0, last)
    return ClipPlan(frames=frames[:, None].astype(np.int32))


def whole_frames(geometry: Geometry, short_side: int) -> AugmentPlan:
    """Return the augmentation for testing without a crop: the whole frame, resized to a short side.

    The long side keeps the aspect ratio and is rounded down, as in PySlowFast.

    Args:
        geometry: Size of B videos, all of which have the same shape.
        short_side: Short side of the output in pixels.

    Returns:
        The plan of a clip per video.
    """
    count = len(geometry.width)
    crop = np.zeros((count, 1, 4), dtype=np.float32)
    crop[:, 0, 2], crop[:, 0, 3] = geometry.width, geometry.height
    return AugmentPlan(
        crop=crop,
        flip=np.zeros((count, 1), dtype=np.bool_),
        color=np.broadcast_to(np.eye(3, 4, dtype=np.float32), (count, 1, 3, 4)).copy(),
        blur=np.zeros((count, 1), dtype=np.float32),
        size=whole_size(geometry, short_side)[:, None],
    )


def whole_size(geometry: Geometry, short_side: int) -> npt.NDArray[np.int32]:
    """Return width and height of whole frames that are resized to a short side, i32[B, 2]."""
    shown = np.stack([geometry.shown_width, geometry.height], axis=1).astype(np.int64)
    size: npt.NDArray[np.int32] = (shown * short_side // shown.min(axis=1, keepdims=True)).astype(np.int32)
    return size


def boxes_in_clips(
    boxes: npt.NDArray[np.float64],
    place: Int64Array,
    plan: AugmentPlan,
    frame_size: npt.NDArray[np.int32],
    clip_size: int,
) -> npt.NDArray[np.float32]:
    """Move boxes to where their persons are in a clip: by the numbers of the plan that cut, mirrored and scaled it.

    Boxes are clipped to the clip; one that lies outside of it becomes a line on its edge and stays, as in PySlowFast.
    Positions are continuous: a clip of 224 pixels reaches from 0 to 224, and x is mirrored to 224 - x. PySlowFast
    clips and mirrors at 223.

    Args:
        boxes: Left, top, right and bottom of N boxes as shares of the frame, f64[N, 4].
        place: The clip of each box, i64[N], in [0, B).
        plan: Augmentation of B videos, of one clip each.
        frame_size: Width and height of the stored frames in pixels, i32[B, 2].
        clip_size: Side of the clips in pixels, where the plan has no size.

    Returns:
        Left, top, right and bottom in pixels of the clip, f32[N, 4].
    """
    crop, flip = plan.crop[place, 0].astype(np.float64), plan.flip[place, 0]
    size = np.full((len(place), 2), float(clip_size)) if plan.size is None else plan.size[place, 0].astype(np.float64)
    stored = frame_size[place].astype(np.float64)
    corners = boxes.reshape(-1, 2, 2) * stored[:, None]
    moved = (corners - crop[:, None, :2]) / crop[:, None, 2:] * size[:, None]
    moved = np.clip(moved, 0, size[:, None])
    left, right = moved[:, 0, 0].copy(), moved[:, 1, 0].copy()
    moved[:, 0, 0] = np.where(flip, size[:, 0] - right, left)
    moved[:, 1, 0] = np.where(flip, size[:, 0] - left, right)
    rows: npt.NDArray[np.float32] = moved.reshape(-1, 4).astype(np.float32)
    return rows
