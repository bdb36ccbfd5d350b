"""Choose the frames of clips: rho random clips of each video for training, K uniform ones for testing.

A clip is a window in time. At the frame rate of its video the window covers L frames, of which T are picked evenly:

    N frames  |---------------------------------------------------------------|
    clips          |<------- L ------->|         |<------- L ------->|
    start          s_1 = u_1 * (N - L)           s_2 = u_2 * (N - L)
    frames         *    *    *    *    *         *    *    *    *    *          T of them, (L - 1)/(T - 1) apart

    rule "window"   L = tau * T * fps / 30                     8x8 at 30 frames/s: L = 64, frames 0 9 18 27 36 45 54 63
    rule "stride"   L = ceil(tau * (T - 1) * fps / 30)                             L = 56, frames 0 7 15 23 31 39 47 55

"window" is the rule of the released implementation (PySlowFast) today and before it could pretrain. "stride" is that of
the version that introduced pretraining (April 2022). Neither steps by exactly tau. `ClipConfig.fps` stands for the 30;
with `fps_jitter` it is drawn anew for each video, so that L changes. L is at least 1.

A third rule has no L: "segments" divides the whole video into T equal parts and picks a frame of each, drawn anew for
each clip. In testing it picks the middle frame (with V views, V evenly spread ones). The released implementation
fine-tunes on Something-Something this way.

Starts are independent and clips may overlap (arXiv 2104.14558, section 3), unless `max_span`, `min_gap` or `max_gap`
is set. Then starts are whole frames and uniform over all placements that keep to every limit (spacing.py). The released
implementation instead draws again until the limits hold, and gives up after 100 draws. If no placement keeps to the
limits, they are given up in this order:

    max_gap    if no whole frame lies between it and min_gap
    min_gap    if the video or max_span is too short: clips are then spread evenly over the available frames

With `parts` > 1 the range of starts, [0, N - L], is divided into as many equal parts, and of every `parts` clips one
starts in each: s_p = (p mod parts + u_p) / parts * (N - L). Clips of testing that are K / parts apart start at
(p + i / (K / parts)) / parts * (N - L), so they are laid out alike.

max_span is never given up. It counts from the start of the first clip to that of the last one: 0 means the same frames,
as in Table 4 of the paper ("same time"), and the length of a video means no limit.

In a video shorter than L a clip starts at 0, and frames past the end repeat the last one (`short`: or they loop, or L
becomes the length of the video). The released implementation reads each clip by presentation time if the video is
longer than all rho clips together, and otherwise cuts all clips from the whole video. The two differ by a rounding of
the first frame, and both are reproduced here.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.sampling.rng import Epoch, Stream, uniforms
from rhofast.data.sampling.spacing import spaced_starts
from rhofast.data.types import ClipPlan, Geometry

TICKS = 90_000  # per second: the time base in which the released implementation looks for frames
_NOISE = 1e-9  # frames: 0.1 s at 30 frames/s are 3 frames, not 3.0000000000000004
_LONGEST = 1e9  # seconds or frames: a greater value is no limit; this one fits an integer

Float = npt.NDArray[np.floating[Any]]
Int = npt.NDArray[np.int64]


def random_clips(
    config: ClipConfig,
    geometry: Geometry,
    samples: Int,
    *,
    seed: int,
    epoch: Epoch,
    duplicate_single_clip: bool = True,
) -> ClipPlan:
    """Choose random clips for B samples.

    Args:
        config: Number, length and rule of the clips.
        geometry: Length and frame rate of each video.
        samples: Numbers of the samples in the data set, i64[B].
        seed: Seed of the run.
        epoch: Epoch of all samples, or i64[B].
        duplicate_single_clip: Whether num_clips=1 gives two equal clips instead of one.

    Returns:
        Frames i32[B, P, T] with P = num_clips, or P = 2 for a duplicated single clip.
    """
    rho = config.num_clips
    low, high = config.fps_jitter
    shuffle, jitter = config.shuffle and rho > 1, low != 1 or high != 1
    segments = config.rule == "segments"
    counts = {
        Stream.CLIP: rho * (config.num_frames if segments else 1),
        Stream.CLIP_PERMUTATION: rho * shuffle,
        Stream.CLIP_RATE: int(jitter),
    }
    draws = uniforms(seed, epoch, samples, {stream: count for stream, count in counts.items() if count})
    rate = config.fps * (low + (high - low) * draws[Stream.CLIP_RATE][:, 0]) if jitter else config.fps
    length = _covered(config, geometry, rate)
    if segments:
        first, last = segments_of(geometry, config.num_frames)
        places = draws[Stream.CLIP].reshape(-1, rho, config.num_frames) * (last - first + 1)
        frames = np.minimum(first + np.floor(places).astype(np.int64), last).astype(np.int32)
    elif rho == 1 or config.unlimited:
        room = np.maximum(geometry.num_frames - length, 0)
        start = _places(draws[Stream.CLIP], config.parts) * room[:, None]
        frames = window_frames(config, geometry, start, length, whole=reads_whole_video(config, geometry))
    else:
        frames = _limited_frames(config, geometry, draws[Stream.CLIP], length)
    if rho == 1:
        return ClipPlan(frames=np.repeat(frames, 2 if duplicate_single_clip else 1, axis=1))
    if shuffle:
        group = config.parts if config.parts > 1 else rho
        order = np.argsort(draws[Stream.CLIP_PERMUTATION].reshape(-1, rho // group, group), axis=2)
        order = (order + group * np.arange(rho // group)[:, None]).reshape(-1, rho)
        frames = np.take_along_axis(frames, order[:, :, None], axis=1)
    return ClipPlan(frames=frames)


def _places(draws: Float, parts: int) -> Float:
    """Return where clips start in the range of their starts, in [0, 1).

    Args:
        draws: Uniform numbers in [0, 1), f64[B, P].
        parts: 1 for clips anywhere, in the order of time; otherwise each run of `parts` clips has one in each part.

    Returns:
        f64[B, P].
    """
    if parts == 1:
        return np.sort(draws, axis=1)
    placed: Float = (np.arange(draws.shape[1]) % parts + draws) / parts
    return placed


def uniform_clips(config: ClipConfig, geometry: Geometry, num_views: int) -> ClipPlan:
    """Choose uniform clips for testing.

    View i starts at (N - L) * i / num_views, as in the released implementation, so the last view ends before the video.

    Args:
        config: Length and rule of the clips.
        geometry: Length and frame rate of B videos.
        num_views: Number of clips per video.

    Returns:
        Frames i32[B, num_views, T].
    """
    if config.rule == "segments":
        first, last = segments_of(geometry, config.num_frames)
        places = (np.arange(num_views) + 0.5)[:, None] / num_views
        return ClipPlan(frames=(first + np.floor(places * (last - first)).astype(np.int64)).astype(np.int32))
    length = _covered(config, geometry, config.fps)
    room = np.maximum(geometry.num_frames - length, 0)
    start = room[:, None] * np.arange(num_views)[None, :] / num_views
    whole = np.zeros(len(room), dtype=bool)
    return ClipPlan(frames=window_frames(config, geometry, start, length, whole=whole))


def segments_of(geometry: Geometry, count: int) -> tuple[Int, Int]:
    """Divide videos into equal parts. Neighboring parts share a frame, as in the released implementation.

    Args:
        geometry: Length of B videos.
        count: Number of parts.

    Returns:
        The first and the last frame of each part, i64[B, 1, count] each.
    """
    edges = np.rint((geometry.num_frames[:, None, None] - 1) / count * np.arange(count + 1)).astype(np.int64)
    return edges[..., :-1], edges[..., 1:]


def with_neighbors(plan: ClipPlan, difference: npt.NDArray[np.bool_], num_frames: npt.NDArray[np.int32]) -> ClipPlan:
    """Add the frame that is subtracted from each frame of the clips that show differences: the next one of the video.

    The last frame has no next one and is replaced by the one before it, as in the released implementation. The frame of
    a video of one frame is its own neighbor.

    Args:
        plan: Frames of the clips.
        difference: Which clips show differences, bool[B, P].
        num_frames: Length of each video, i32[B].

    Returns:
        A plan with `neighbor`, which equals `frames` in all other clips.
    """
    last = num_frames[:, None, None].astype(np.int32) - 1
    shown = np.minimum(plan.frames, np.maximum(last - 1, 0))
    which = difference[..., None]
    return ClipPlan(
        frames=np.where(which, shown, plan.frames),
        neighbor=np.where(which, np.minimum(shown + 1, last), plan.frames),
    )


def clip_length(config: ClipConfig, fps: Float, rate: Float | float | None = None) -> Float:
    """Return L, the number of frames that a clip covers at the rate of each video.

    Args:
        config: Length and rule of the clips.
        fps: Frame rate of each video, f64[B].
        rate: Frame rate in place of `config.fps`, f64[B] or one for all.

    Returns:
        f64[B], at least 1.
    """
    strides = config.num_frames if config.rule == "window" else config.num_frames - 1
    length = config.frame_stride * strides * fps / (config.fps if rate is None else rate)
    if config.rule == "stride":
        length = np.ceil(length - _NOISE)
    at_least_one: Float = np.maximum(length, 1.0)
    return at_least_one


def reads_whole_video(config: ClipConfig, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Return where the released implementation cuts all clips from the whole video: N <= rho * T * tau, bool[B]."""
    whole: npt.NDArray[np.bool_] = geometry.num_frames <= config.num_clips * config.num_frames * config.frame_stride
    return whole


def _covered(config: ClipConfig, geometry: Geometry, rate: Float | float) -> Float:
    """Return L, f64[B]; with short="spread" it is at most the length of the video."""
    length = clip_length(config, geometry.fps, rate)
    return np.minimum(length, geometry.num_frames) if config.short == "spread" else length


def _limited_frames(config: ClipConfig, geometry: Geometry, draws: Float, length: Float) -> npt.NDArray[np.int32]:
    """Return frames of clips that keep to the limits of the config, in the order of time, i32[B, P, T]."""
    within = _frames_within(config, geometry, length)
    last = within.max(axis=1)  # last frame of a clip, counted from its start

    def in_frames(value: float, unit: str) -> Float:
        scale = geometry.fps if unit == "seconds" else np.ones_like(geometry.fps)
        return max(-_LONGEST, min(value, _LONGEST)) * scale

    def at_least(value: float | None, unit: str, missing: Int) -> Int:
        return missing if value is None else np.ceil(in_frames(value, unit) - _NOISE).astype(np.int64)

    def at_most(value: float | None, unit: str) -> Int | None:
        return None if value is None else np.floor(in_frames(value, unit) + _NOISE).astype(np.int64)

    longest = at_most(config.max_gap, config.gap_unit)
    start = spaced_starts(
        draws,
        geometry.num_frames - 1 - last,
        least=last + at_least(config.min_gap, config.gap_unit, missing=-last),
        most=None if longest is None else last + longest,
        widest=at_most(config.max_span, "seconds"),
    )
    return (start[:, :, None] + within[:, None, :]).astype(np.int32)


def _frames_within(config: ClipConfig, geometry: Geometry, length: Float) -> Int:
    """Return the frames of a clip that starts at frame 0, within the video, i64[B, T]."""
    within = _linspace(np.zeros_like(length), length - 1, config.num_frames).astype(np.int64)
    count = geometry.num_frames[:, None].astype(np.int64)
    return within % count if config.short == "loop" else np.minimum(within, count - 1)


def window_frames(
    config: ClipConfig, geometry: Geometry, start: Float, length: Float, *, whole: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """Pick T frames of each window as the released implementation does.

    Args:
        config: Number of frames, and the rule for short videos.
        geometry: Length and frame rate of B videos.
        start: Start of each clip in frames, f64[B, P].
        length: Frames that a clip covers, f64[B].
        whole: Whether all clips are cut from the whole video instead of read by presentation time, bool[B].

    Returns:
        Frame numbers, i32[B, P, T].
    """
    last = geometry.num_frames[:, None].astype(np.int64) - 1
    end = start + length[:, None] - 1
    first, final = _frames_shown(start, end, geometry.fps[:, None], last)
    within = _linspace(np.zeros_like(start), np.broadcast_to(length[:, None] - 1, start.shape), config.num_frames)
    selective = first[..., None] + np.clip(within, 0, (final - first)[..., None]).astype(np.int64)
    cut = np.clip(_linspace(start, end, config.num_frames), 0, last[..., None]).astype(np.int64)
    frames = np.where(whole[:, None, None], cut, selective)
    if config.short == "loop":
        short = length > geometry.num_frames
        frames = np.where(short[:, None, None], _frames_within(config, geometry, length)[:, None, :], frames)
    return frames.astype(np.int32)


def _frames_shown(
    start: Float, end: Float, fps: Float, last: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first and the last frame whose presentation time, rounded down to ticks, lies in the window."""
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
    """Return `count` even steps on a new last axis, bit for bit as torch.linspace computes them.

    They are computed in float32 and from both ends. Results are truncated to frame numbers, so the last bit matters.
    """
    low, high = start.astype(np.float32)[..., None], end.astype(np.float32)[..., None]
    if count == 1:
        return low
    step = (high - low) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    return np.where(index < count // 2, low + step * index, high - step * (np.float32(count - 1) - index))
