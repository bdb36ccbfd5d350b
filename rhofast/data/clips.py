"""Which frames: rho random clips of each video for training, K uniform ones for testing. Pure functions of numbers.

A clip is a window in time. At its own frame rate a video shows L = tau * T * fps / 30 frames in it, from which T are
picked evenly (the released PySlowFast sampling; `ClipSection.fps` stands for the 30):

    N frames  |---------------------------------------------------------------|
    clips          |<------- L ------->|         |<------- L ------->|
    start          s_1 = u_1 * (N - L)           s_2 = u_2 * (N - L)
    frames         *    *    *    *    *         *    *    *    *    *          T of them, (L - 1)/(T - 1) apart

So the stride is (tau * T - 1)/(T - 1), a little above tau. A video shorter than L starts at 0 and its last frame is
repeated. Clips are independent and may overlap (arXiv 2104.14558, section 3).

The release reads each clip by presentation time where the video is longer than all rho clips together, and cuts all
clips from the whole video otherwise; the two differ by a rounding of the first frame, and both are kept here.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config import ClipSection
from rhofast.data.types import ClipPlan, Geometry
from rhofast.rng import Stream, uniform

TICKS = 90_000  # per second: the time base in which the release looks for frames

Float = npt.NDArray[np.floating[Any]]


def random_clips(
    section: ClipSection, geometry: Geometry, samples: npt.NDArray[np.int64], *, seed: int, epoch: int
) -> ClipPlan:
    """Random clips for B samples: frames i32[B, P, T] with P = num_clips, or 2 (equal) clips where num_clips is 1."""
    rho = section.num_clips
    length = clip_length(section, geometry.fps)
    room = np.maximum(geometry.num_frames - length, 0)
    start = np.sort(uniform(seed, epoch, samples, Stream.CLIP, rho), axis=1) * room[:, None]
    frames = window_frames(section, geometry, start, length, whole=reads_whole_video(section, geometry))
    if rho == 1:
        return ClipPlan(frames=np.repeat(frames, 2, axis=1))
    if section.shuffle:
        order = np.argsort(uniform(seed, epoch, samples, Stream.CLIP_PERMUTATION, rho), axis=1)
        frames = np.take_along_axis(frames, order[:, :, None], axis=1)
    return ClipPlan(frames=frames)


def uniform_clips(section: ClipSection, geometry: Geometry, num_views: int) -> ClipPlan:
    """`num_views` uniform clips, i32[B, num_views, T]: view i starts at (N - L) * i / num_views, as released (so the
    last one ends before the video does)."""
    length = clip_length(section, geometry.fps)
    room = np.maximum(geometry.num_frames - length, 0)
    start = room[:, None] * np.arange(num_views)[None, :] / num_views
    whole = np.zeros(len(room), dtype=bool)
    return ClipPlan(frames=window_frames(section, geometry, start, length, whole=whole))


def clip_length(section: ClipSection, fps: Float) -> Float:
    """L, the frames a clip covers at each video's own rate: f64[B], at least 1."""
    length: Float = np.maximum(section.frame_stride * section.num_frames * fps / section.fps, 1.0)
    return length


def reads_whole_video(section: ClipSection, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Where the release decodes a video once and cuts all clips from it: N <= rho * T * tau. bool[B]"""
    whole: npt.NDArray[np.bool_] = geometry.num_frames <= section.num_clips * section.num_frames * section.frame_stride
    return whole


def window_frames(
    section: ClipSection, geometry: Geometry, start: Float, length: Float, *, whole: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """Frame numbers of clips that start at `start` f64[B, P] and cover `length` f64[B] frames: i32[B, P, T]."""
    last = geometry.num_frames[:, None].astype(np.int64) - 1
    end = start + length[:, None] - 1
    first, final = _frames_shown(start, end, geometry.fps[:, None], last)
    within = _linspace(np.zeros_like(start), np.broadcast_to(length[:, None] - 1, start.shape), section.num_frames)
    selective = first[..., None] + np.clip(within, 0, (final - first)[..., None]).astype(np.int64)
    cut = np.clip(_linspace(start, end, section.num_frames), 0, last[..., None]).astype(np.int64)
    return np.where(whole[:, None, None], cut, selective).astype(np.int32)


def _frames_shown(
    start: Float, end: Float, fps: Float, last: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last frame whose presentation time lies in the window, with times cut to ticks as the release does."""
    ticks = TICKS / fps
    low, high = np.floor(start * ticks), np.floor(end * ticks)
    nudge = np.array([-1, 0, 1, 2])
    near_low, near_high = (np.floor(edge / ticks)[..., None] + nudge for edge in (low, high))
    shown_low = np.rint(near_low * ticks[..., None]) >= low[..., None]
    shown_high = np.rint(near_high * ticks[..., None]) <= high[..., None]
    first = np.where(shown_low, near_low, np.inf).min(axis=-1)
    final = np.where(shown_high, near_high, -np.inf).max(axis=-1)
    return np.clip(first, 0, last).astype(np.int64), np.clip(final, 0, last).astype(np.int64)


def _linspace(start: Float, end: Float, count: int) -> npt.NDArray[np.float32]:
    """`count` even steps on a new last axis, in float32 and from both ends as torch.linspace computes them (the
    indices are truncated afterwards, so the last bit matters)."""
    low, high = start.astype(np.float32)[..., None], end.astype(np.float32)[..., None]
    if count == 1:
        return low
    step = (high - low) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    return np.where(index < count // 2, low + step * index, high - step * (np.float32(count - 1) - index))
