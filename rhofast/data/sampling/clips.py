"""Which frames: rho random clips of each video for training, K uniform ones for testing. Pure functions of numbers.

A clip is a window in time. At its own frame rate a video shows L frames in it, from which T are picked evenly:

    N frames  |---------------------------------------------------------------|
    clips          |<------- L ------->|         |<------- L ------->|
    start          s_1 = u_1 * (N - L)           s_2 = u_2 * (N - L)
    frames         *    *    *    *    *         *    *    *    *    *          T of them, (L - 1)/(T - 1) apart

    rule "window"   L = tau * T * fps / 30                     8x8 of 30 frames/s: L = 64, frames 0 9 18 27 36 45 54 63
    rule "stride"   L = ceil(tau * (T - 1) * fps / 30)                             L = 56, frames 0 7 15 23 31 39 47 55

"window" is what the released implementation (PySlowFast) does now and did before it could pretrain, "stride" what the
version did that brought pretraining (April 2022). Neither steps by tau exactly. `ClipConfig.fps` stands for the 30;
with `fps_jitter` it is drawn anew for each video, so that L changes. L is at least 1.

A third rule knows no L: "segments" cuts the whole video into T equal parts and shows a frame of each, drawn anew for
each clip; in testing the middle one (of V views, V spread evenly). The release fine-tunes on Something-Something so.

Starts are independent and clips may overlap (arXiv 2104.14558, section 3), unless `max_span`, `min_gap` or `max_gap`
ask for something else. Then starts are whole frames and uniform over all placements that keep to every limit (the
release draws again until one does, and gives up after 100 times). Where none can, this is given up, in this order:

    max_gap    where no whole frame lies between it and min_gap
    min_gap    where the video or max_span is too short: clips are then spread evenly over what there is

max_span is never given up: it counts from the first clip's start to the last one's, so 0 means the same frames, as in
the paper's Table 4 ("same time"), and a video's length means anywhere.

A video shorter than L starts at 0, and its frames past the end are the last one again (`short`: or those of a loop, or
L is the video's length). The release reads each clip by presentation time where the video is longer than all rho clips
together, and cuts all clips from the whole video otherwise; the two differ by a rounding of the first frame, and both
are kept here.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.sampling.rng import Epoch, Stream, uniforms
from rhofast.data.types import ClipPlan, Geometry

TICKS = 90_000  # per second: the time base in which the release looks for frames
_NOISE = 1e-9  # of a frame: 0.1 s at 30 frames/s are 3 frames, not 3.0000000000000004
_HALVINGS = 40
_LONGEST = 1e9  # seconds or frames: what is more is no limit, and fits an integer

Float = npt.NDArray[np.floating[Any]]
Int = npt.NDArray[np.int64]


def random_clips(
    section: ClipConfig,
    geometry: Geometry,
    samples: Int,
    *,
    seed: int,
    epoch: Epoch,
    duplicate_single_clip: bool = True,
) -> ClipPlan:
    """Random clips for B samples: frames i32[B, P, T] with P = num_clips, or 2 (equal) clips where num_clips is 1 and
    `duplicate_single_clip` is on."""
    rho = section.num_clips
    low, high = section.fps_jitter
    shuffle, jitter = section.shuffle and rho > 1, low != 1 or high != 1
    segments = section.rule == "segments"
    counts = {
        Stream.CLIP: rho * (section.num_frames if segments else 1),
        Stream.CLIP_PERMUTATION: rho * shuffle,
        Stream.CLIP_RATE: int(jitter),
    }
    draws = uniforms(seed, epoch, samples, {stream: count for stream, count in counts.items() if count})
    rate = section.fps * (low + (high - low) * draws[Stream.CLIP_RATE][:, 0]) if jitter else section.fps
    length = _covered(section, geometry, rate)
    if segments:
        first, last = segments_of(geometry, section.num_frames)
        places = draws[Stream.CLIP].reshape(-1, rho, section.num_frames) * (last - first + 1)
        frames = np.minimum(first + np.floor(places).astype(np.int64), last).astype(np.int32)
    elif rho == 1 or (section.max_span is section.min_gap is section.max_gap is None):
        room = np.maximum(geometry.num_frames - length, 0)
        start = np.sort(draws[Stream.CLIP], axis=1) * room[:, None]
        frames = window_frames(section, geometry, start, length, whole=reads_whole_video(section, geometry))
    else:
        frames = _limited_frames(section, geometry, draws[Stream.CLIP], length)
    if rho == 1:
        return ClipPlan(frames=np.repeat(frames, 2 if duplicate_single_clip else 1, axis=1))
    if shuffle:
        order = np.argsort(draws[Stream.CLIP_PERMUTATION], axis=1)
        frames = np.take_along_axis(frames, order[:, :, None], axis=1)
    return ClipPlan(frames=frames)


def uniform_clips(section: ClipConfig, geometry: Geometry, num_views: int) -> ClipPlan:
    """`num_views` uniform clips, i32[B, num_views, T]: view i starts at (N - L) * i / num_views, as released (so the
    last one ends before the video does)."""
    if section.rule == "segments":
        first, last = segments_of(geometry, section.num_frames)
        places = (np.arange(num_views) + 0.5)[:, None] / num_views
        return ClipPlan(frames=(first + np.floor(places * (last - first)).astype(np.int64)).astype(np.int32))
    length = _covered(section, geometry, section.fps)
    room = np.maximum(geometry.num_frames - length, 0)
    start = room[:, None] * np.arange(num_views)[None, :] / num_views
    whole = np.zeros(len(room), dtype=bool)
    return ClipPlan(frames=window_frames(section, geometry, start, length, whole=whole))


def segments_of(geometry: Geometry, count: int) -> tuple[Int, Int]:
    """The first and the last frame of each of `count` equal parts of a video, i64[B, 1, count] both. Neighbors share
    the frame between them, as released."""
    edges = np.rint((geometry.num_frames[:, None, None] - 1) / count * np.arange(count + 1)).astype(np.int64)
    return edges[..., :-1], edges[..., 1:]


def with_neighbors(plan: ClipPlan, difference: npt.NDArray[np.bool_], num_frames: npt.NDArray[np.int32]) -> ClipPlan:
    """The plan with `neighbor`: in clips of `difference` bool[B, P] the next frame of the video. The last frame, which
    has none, gives way to the one before, as released; a video of one frame is its own neighbor. num_frames i32[B]"""
    last = num_frames[:, None, None].astype(np.int32) - 1
    shown = np.minimum(plan.frames, np.maximum(last - 1, 0))
    which = difference[..., None]
    return ClipPlan(
        frames=np.where(which, shown, plan.frames),
        neighbor=np.where(which, np.minimum(shown + 1, last), plan.frames),
    )


def clip_length(section: ClipConfig, fps: Float, rate: Float | float | None = None) -> Float:
    """L, the frames a clip covers at each video's own rate: f64[B], at least 1. rate: in place of `section.fps`."""
    strides = section.num_frames if section.rule == "window" else section.num_frames - 1
    length = section.frame_stride * strides * fps / (section.fps if rate is None else rate)
    if section.rule == "stride":
        length = np.ceil(length - _NOISE)
    at_least_one: Float = np.maximum(length, 1.0)
    return at_least_one


def reads_whole_video(section: ClipConfig, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Where the release decodes a video once and cuts all clips from it: N <= rho * T * tau. bool[B]"""
    whole: npt.NDArray[np.bool_] = geometry.num_frames <= section.num_clips * section.num_frames * section.frame_stride
    return whole


def spaced_starts(draws: Float, room: Int, *, least: Int, most: Int | None, widest: Int | None) -> Int:
    """n starts in [0, room], ascending, i64[B, n]: neighbors at least `least` and at most `most` apart, the first and
    the last at most `widest` apart. Uniform over all such starts (drawn as real numbers and cut to whole ones, which
    keeps to whole limits). Where there are none, `most` yields to `least`, and `least` to `widest` and `room`.

    draws f[B, n] in [0, 1), n > 1; the others i64[B], None for no limit.
    """
    gaps = draws.shape[1] - 1
    reach = room if widest is None else np.clip(widest, 0, room)
    spacing = np.clip(least, 0, reach / gaps)
    free = room + 1 - gaps * spacing  # for the first start and all that spacings have above the least
    if most is None and widest is None:
        place = np.sort(draws, axis=1) * free[:, None]
    else:
        slack = np.maximum(reach - gaps * spacing, 0.0)
        above = slack if most is None else np.clip(most - spacing, 0, slack)
        extra = _parts(draws[:, 1:], each=above, total=slack, free=free)
        first = draws[:, :1] * (free - extra.sum(axis=1))[:, None]
        place = first + np.pad(np.cumsum(extra, axis=1), ((0, 0), (1, 0)))
    start = np.floor(place + spacing[:, None] * np.arange(gaps + 1))
    placed: Int = np.minimum(start, room[:, None]).astype(np.int64)
    return placed


def _covered(section: ClipConfig, geometry: Geometry, rate: Float | float) -> Float:
    """L, at most the whole video where a short one is spread. f64[B]"""
    length = clip_length(section, geometry.fps, rate)
    return np.minimum(length, geometry.num_frames) if section.short == "spread" else length


def _limited_frames(section: ClipConfig, geometry: Geometry, draws: Float, length: Float) -> npt.NDArray[np.int32]:
    """Frames of clips within the section's limits, in the order of time: i32[B, P, T]."""
    within = _frames_within(section, geometry, length)
    last = within.max(axis=1)  # of a clip, from its start

    def in_frames(value: float, unit: str) -> Float:
        scale = geometry.fps if unit == "seconds" else np.ones_like(geometry.fps)
        return max(-_LONGEST, min(value, _LONGEST)) * scale

    def at_least(value: float | None, unit: str, missing: Int) -> Int:
        return missing if value is None else np.ceil(in_frames(value, unit) - _NOISE).astype(np.int64)

    def at_most(value: float | None, unit: str) -> Int | None:
        return None if value is None else np.floor(in_frames(value, unit) + _NOISE).astype(np.int64)

    longest = at_most(section.max_gap, section.gap_unit)
    start = spaced_starts(
        draws,
        geometry.num_frames - 1 - last,
        least=last + at_least(section.min_gap, section.gap_unit, missing=-last),
        most=None if longest is None else last + longest,
        widest=at_most(section.max_span, "seconds"),
    )
    return (start[:, :, None] + within[:, None, :]).astype(np.int32)


def _frames_within(section: ClipConfig, geometry: Geometry, length: Float) -> Int:
    """The frames of a clip that starts at frame 0, i64[B, T], none of them past the video's last."""
    within = _linspace(np.zeros_like(length), length - 1, section.num_frames).astype(np.int64)
    count = geometry.num_frames[:, None].astype(np.int64)
    return within % count if section.short == "loop" else np.minimum(within, count - 1)


def window_frames(
    section: ClipConfig, geometry: Geometry, start: Float, length: Float, *, whole: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """Frame numbers of clips that start at `start` f64[B, P] and cover `length` f64[B] frames: i32[B, P, T]."""
    last = geometry.num_frames[:, None].astype(np.int64) - 1
    end = start + length[:, None] - 1
    first, final = _frames_shown(start, end, geometry.fps[:, None], last)
    within = _linspace(np.zeros_like(start), np.broadcast_to(length[:, None] - 1, start.shape), section.num_frames)
    selective = first[..., None] + np.clip(within, 0, (final - first)[..., None]).astype(np.int64)
    cut = np.clip(_linspace(start, end, section.num_frames), 0, last[..., None]).astype(np.int64)
    frames = np.where(whole[:, None, None], cut, selective)
    if section.short == "loop":
        short = length > geometry.num_frames
        frames = np.where(short[:, None, None], _frames_within(section, geometry, length)[:, None, :], frames)
    return frames.astype(np.int32)


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


def _parts(draws: Float, *, each: Float, total: Float, free: Float) -> Float:
    """m numbers in [0, each] whose sum is at most `total`, f64[B, m], with a density in proportion to free - sum, which
    is the room that they leave for the first start. draws f[B, m]; each, total, free f64[B], total < free.

    In units of `each`, the sum of k independent uniform numbers has the Irwin-Hall distribution F_k. First the sum of
    all is drawn; then, given the sum x of k of them, that of k - 1: it is distributed as F_{k-1} from x - 1 to x.
    """
    count = draws.shape[1]
    grid, sums, integrals = _irwin_hall(count)
    unit = np.maximum(each, _NOISE)
    top, scaled = np.minimum(total / unit, count), free / unit

    def mass(x: Float) -> Float:
        """Integral of (scaled - y) dF(y) up to x, by parts."""
        return (scaled - x) * np.interp(x, grid, sums[count]) + np.interp(x, grid, integrals[count])

    wanted = draws[:, 0] * mass(top)
    low, high = np.zeros_like(top), top
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = mass(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    parts, rest = np.empty_like(draws), high
    for number in range(count - 1, 0, -1):
        fewest, largest = np.maximum(rest - 1, 0), np.minimum(rest, number)
        bounds = np.interp(fewest, grid, sums[number]), np.interp(largest, grid, sums[number])
        value = bounds[0] + draws[:, number] * (bounds[1] - bounds[0])
        fewer = np.clip(np.interp(value, sums[number], grid), fewest, largest)
        parts[:, number] = rest - fewer
        rest = fewer
    parts[:, 0] = rest
    return parts * each[:, None]


@lru_cache(maxsize=16)
def _irwin_hall(count: int) -> tuple[Float, Float, Float]:
    """Points x in [0, count], and for k = 0 .. count the distribution F_k(x) of the sum of k uniform numbers and its
    integral from 0: f64[G], f64[count + 1, G] twice. F_k(x) is the integral of F_{k-1} from x - 1 to x."""
    cells = max(4096 // count, 8)  # in a unit
    grid = np.arange(count * cells + 1) / cells
    sums, integrals = np.ones((count + 1, len(grid))), np.empty((count + 1, len(grid)))
    for number in range(count + 1):
        if number == 1:
            sums[1] = np.minimum(grid, 1)
        elif number > 1:
            sums[number] = integrals[number - 1]
            sums[number, cells:] -= integrals[number - 1, :-cells]
        steps = (sums[number, 1:] + sums[number, :-1]) / (2 * cells)
        integrals[number] = np.concatenate([[0.0], np.cumsum(steps)])
    return grid, sums, integrals
