"""Temporal sampling against the released one, and its invariants."""

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.config.schema import ClipConfig
from rhofast.config.section import parse_section
from rhofast.data.sampling.clips import (
    clip_length,
    random_clips,
    reads_whole_video,
    uniform_clips,
    window_frames,
    with_neighbors,
)
from rhofast.data.types import ClipPlan, Geometry
from rhofast.errors import ConfigError
from rhofast.evaluation.feature_stream import joined_order
from tests.helpers.shards import SHARED

VECTORS = SHARED / "vectors" / "temporal_sampling.json"


def geometry(num_frames: int, fps: float, count: int = 1) -> Geometry:
    def ones(dtype: type) -> npt.NDArray[np.generic]:
        return np.ones(count, dtype=dtype)

    return Geometry(
        num_frames=np.full(count, num_frames, dtype=np.int32),
        fps=np.full(count, fps, dtype=np.float64),
        width=np.full(count, 340, dtype=np.int32),
        height=np.full(count, 256, dtype=np.int32),
        pixel_aspect=np.ones(count),
    )


@pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")
def test_frames_are_those_of_the_released_decoder() -> None:
    cases = [case for case in json.loads(VECTORS.read_text()) if case["min_delta"] is case["max_delta"] is None]
    assert len(cases) > 30
    for case in cases:
        config = ClipConfig(num_clips=case["rho"], num_frames=case["T"], frame_stride=case["tau"])
        video = geometry(case["num_frames_video"], float(case["fps"]))
        if case["clip_idx"] >= 0:
            frames = uniform_clips(config, video, case["num_views"]).frames[0, case["clip_idx"]][None]
        else:
            length = clip_length(config, video.fps)
            room = np.maximum(video.num_frames - length, 0)
            start = np.sort([case["uniform_draws"][: case["rho"]]], axis=1) * room[:, None]
            ordered = window_frames(config, video, start, length, whole=reads_whole_video(config, video))[0]
            frames = np.empty_like(ordered)
            frames[case["output_permutation"] or range(case["rho"])] = ordered
        assert frames.tolist() == case["frame_indices"], case


def test_released_limits_on_gaps_are_kept() -> None:
    """The two cases with limits are rejections, which cannot be replayed: the same limits, kept."""
    for unit, low, high in (("frames", None, 0.0), ("frames", 60.0, None), ("seconds", 2.0, 2.5)):
        config = ClipConfig(min_gap=low, max_gap=high, gap_unit=unit, shuffle=False)
        frames = random_clips(config, geometry(300, 30.0, 500), np.arange(500), seed=0, epoch=0).frames
        gap = frames[:, 1, 0] - frames[:, 0, -1]
        scale = 30 if unit == "seconds" else 1
        assert low is None or gap.min() >= low * scale
        assert high is None or gap.max() <= high * scale


VIDEOS = {
    "num_frames": st.integers(1, 2000),
    "fps": st.sampled_from([6.0, 12.0, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
    "rho": st.integers(1, 5),
    "frames": st.integers(1, 32),
    "stride": st.integers(1, 16),
    "epoch": st.integers(0, 50),
    "rule": st.sampled_from(["window", "stride"]),
    "jitter": st.sampled_from([(1.0, 1.0), (0.5, 1.5)]),
}


@given(**VIDEOS, short=st.sampled_from(["repeat", "loop", "spread"]))
def test_frames_lie_in_the_video_and_in_order(
    num_frames: int,
    fps: float,
    rho: int,
    frames: int,
    stride: int,
    epoch: int,
    rule: str,
    jitter: tuple[float, float],
    short: str,
) -> None:
    config = ClipConfig(
        num_clips=rho, num_frames=frames, frame_stride=stride, rule=rule, fps_jitter=jitter, short=short
    )
    video = geometry(num_frames, fps, count=3)
    plan = random_clips(config, video, np.array([4, 8, 15]), seed=5, epoch=epoch)
    for made in (plan, uniform_clips(config, video, 4)):
        assert made.frames.min() >= 0 and made.frames.max() < num_frames
        assert short == "loop" or (np.diff(made.frames, axis=-1) >= 0).all()
        longest = clip_length(config, video.fps, config.fps * jitter[0])
        assert short == "loop" or (np.ptp(made.frames, axis=-1) <= np.ceil(longest)[:, None]).all()
    assert plan.frames.shape == (3, max(rho, 2), frames)


@given(
    **VIDEOS,
    span=st.none() | st.floats(0, 40),
    least=st.none() | st.floats(-20, 20),
    more=st.none() | st.floats(0, 20),
    unit=st.sampled_from(["seconds", "frames"]),
    short=st.sampled_from(["repeat", "loop", "spread"]),
)
def test_limits_are_kept_where_they_can_be(
    num_frames: int,
    fps: float,
    rho: int,
    frames: int,
    stride: int,
    epoch: int,
    rule: str,
    jitter: tuple[float, float],
    span: float | None,
    least: float | None,
    more: float | None,
    unit: str,
    short: str,
) -> None:
    most = None if more is None else (least or 0.0) + more
    config = ClipConfig(
        num_clips=rho + 1,
        num_frames=frames,
        frame_stride=stride,
        rule=rule,
        fps_jitter=jitter,
        short=short,
        max_span=span,
        min_gap=least,
        max_gap=most,
        gap_unit=unit,
        shuffle=False,
    )
    video, scale = geometry(num_frames, fps, count=4), fps if unit == "seconds" else 1.0
    clips = random_clips(config, video, np.arange(4), seed=5, epoch=epoch).frames.astype(np.int64)
    assert clips.shape == (4, rho + 1, frames) and clips.min() >= 0 and clips.max() < num_frames
    if span is None and least is None and most is None:
        return
    starts, covered = clips[..., 0], np.ptp(clips, axis=-1)  # a loop begins at its lowest frame too
    assert (np.diff(starts, axis=1) >= 0).all() and (covered == covered[:, :1]).all()
    assert span is None or (starts[:, -1] - starts[:, 0] <= span * fps + 1e-6).all()
    gaps = starts[:, 1:] - starts[:, :-1] - covered[:, 1:]
    for b in range(4):
        room = num_frames - 1 - covered[b, 0]
        reach = room if span is None else min(room, int(np.floor(span * fps + 1e-6)))
        needed = 0 if least is None else max(int(np.ceil(least * scale - 1e-6)) + covered[b, 0], 0)
        fits = rho * needed <= reach
        if least is not None:
            assert (gaps[b] >= (least * scale - 1e-6 if fits else -covered[b, 0] + reach // rho)).all()
        if most is not None and (least is None or np.floor(most * scale) >= np.ceil(least * scale)) and fits:
            assert (gaps[b] <= max(most * scale, -covered[b, 0]) + 1e-6).all()


def test_many_clips_within_limits() -> None:
    config = ClipConfig(num_clips=40, num_frames=4, frame_stride=2, min_gap=0.1, max_gap=0.5, shuffle=False)
    frames = random_clips(config, geometry(3000, 30.0, 50), np.arange(50), seed=0, epoch=0).frames
    gaps = frames[:, 1:, 0] - frames[:, :-1, -1]
    assert gaps.min() == 3 and gaps.max() == 15 and abs(gaps.mean() - 9) < 0.5


def test_clips_that_do_not_fit_are_spread_evenly() -> None:
    config = ClipConfig(num_clips=4, min_gap=1.0, shuffle=False)
    frames = random_clips(config, geometry(154, 30.0, 20), np.arange(20), seed=0, epoch=0).frames
    assert (frames[..., 0] == [0, 30, 60, 90]).all()


def test_no_span_means_the_same_frames() -> None:
    frames = random_clips(ClipConfig(num_clips=3, max_span=0.0), geometry(300, 30.0, 9), np.arange(9), seed=0, epoch=0)
    assert (frames.frames == frames.frames[:, :1]).all() and len(np.unique(frames.frames[:, 0, 0])) > 5


@pytest.mark.parametrize("span", [10.0, 1e9])
def test_a_span_of_the_whole_video_is_no_limit(span: float) -> None:
    video, samples = geometry(300, 30.0, 4000), np.arange(4000)
    starts = random_clips(ClipConfig(max_span=span), video, samples, seed=0, epoch=0).frames[..., 0]
    counts, _ = np.histogram(starts, bins=8, range=(0, 237))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize(
    "values",
    [
        {"min_gap": 2.0, "max_gap": 1.0},
        {"max_span": -1.0},
        {"min_gap": float("nan")},
        {"max_gap": float("inf")},
        {"num_clips": 4, "parts": 2, "max_gap": 1.0},
        {"num_clips": 4, "parts": 2, "max_span": 0.0},
        {"fps_jitter": [1.5, 0.5]},
        {"fps_jitter": [0.0, 1.0]},
    ],
)
def test_limits_at_odds_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"gap|span|fps_jitter|parts"):
        parse_section(ClipConfig, values, "clips")


def test_the_rules_pick_the_frames_that_their_names_promise() -> None:
    video, whole = geometry(300, 30.0), np.array([False])
    for rule, expected in (
        ("window", [0, 9, 18, 27, 36, 45, 54, 63]),
        ("stride", [0, 7, 15, 23, 31, 39, 47, 55]),
    ):
        config = ClipConfig(rule=rule)
        length = clip_length(config, video.fps)
        assert window_frames(config, video, np.zeros((1, 1)), length, whole=whole)[0, 0].tolist() == expected
    assert clip_length(ClipConfig(rule="stride"), np.array([29.97, 25.0, 30.0, 60.0])).tolist() == [56, 47, 56, 112]
    assert clip_length(ClipConfig(rule="stride", num_frames=1), np.array([30.0])).tolist() == [1]


def test_jitter_of_the_rate_stretches_all_clips_of_a_video_alike() -> None:
    video, samples = geometry(3000, 30.0, 2000), np.arange(2000)
    config = ClipConfig(num_clips=3, fps_jitter=(0.5, 1.5))
    covered = np.ptp(random_clips(config, video, samples, seed=0, epoch=0).frames, axis=-1)
    assert (np.ptp(covered, axis=1) <= 1).all()  # of a start between frames
    assert 40 <= covered.min() < 44 and 122 < covered.max() <= 128
    rate = 30 * 64 / (covered[:, 0] + 1.0)
    counts, _ = np.histogram(rate, bins=5, range=(15, 45))
    assert np.abs(counts - 400).max() < 100


def test_jitter_leaves_the_draws_of_starts_where_they_were() -> None:
    video, samples = geometry(3000, 30.0, 10), np.arange(10)
    plain = random_clips(ClipConfig(), video, samples, seed=0, epoch=0).frames
    faster = random_clips(ClipConfig(fps_jitter=(1.0, 1.0 + 1e-9)), video, samples, seed=0, epoch=0).frames
    assert np.abs(plain - faster).max() <= 1


def test_short_videos_are_repeated_looped_or_spread() -> None:
    for short, expected in (
        ("repeat", [0, 9, 9, 9, 9, 9, 9, 9]),
        ("loop", [0, 9, 8, 7, 6, 5, 4, 3]),
        ("spread", [0, 1, 2, 3, 5, 6, 7, 9]),
    ):
        config = ClipConfig(short=short)
        assert uniform_clips(config, geometry(10, 30.0), 2).frames[0].tolist() == [expected, expected]
        for limits in ({}, {"min_gap": 0.5}):
            config = ClipConfig(short=short, **limits)
            frames = random_clips(config, geometry(10, 30.0), np.array([0]), seed=0, epoch=0).frames
            assert frames[0].tolist() == [expected, expected], (short, limits)


def test_neighbors_are_the_next_frames_and_the_last_gives_way() -> None:
    frames = np.array([[[0, 5, 9]], [[0, 5, 9]], [[0, 0, 0]]], dtype=np.int32)
    plan = with_neighbors(ClipPlan(frames=frames), np.array([[True], [False], [True]]), np.array([10, 10, 1]))
    assert plan.neighbor is not None
    assert plan.frames[:, 0].tolist() == [[0, 5, 8], [0, 5, 9], [0, 0, 0]]
    assert plan.neighbor[:, 0].tolist() == [[1, 6, 9], [0, 5, 9], [0, 0, 0]]
    assert plan.frames.dtype == plan.neighbor.dtype == np.int32


def test_rho_1_is_the_same_frames_twice() -> None:
    frames = random_clips(ClipConfig(num_clips=1), geometry(300, 30.0), np.array([3]), seed=0, epoch=0).frames
    assert np.array_equal(frames[:, 0], frames[:, 1])


def test_a_plan_does_not_depend_on_the_batch() -> None:
    config, samples = ClipConfig(num_clips=3), np.arange(6)
    together = random_clips(config, geometry(300, 30.0, 6), samples, seed=0, epoch=1).frames
    alone = random_clips(config, geometry(300, 30.0), samples[4:5], seed=0, epoch=1).frames
    assert np.array_equal(together[4:5], alone)


def test_samples_may_have_epochs_of_their_own() -> None:
    config, samples, video = ClipConfig(num_clips=3, max_span=4.0), np.arange(4), geometry(300, 30.0, 4)
    mixed = random_clips(config, video, samples, seed=0, epoch=np.array([0, 5, 0, 5])).frames
    later = random_clips(config, video, samples, seed=0, epoch=5).frames
    assert np.array_equal(mixed[1::2], later[1::2]) and not np.array_equal(mixed[::2], later[::2])


def test_clips_come_in_random_order_unless_told_otherwise() -> None:
    samples, video = np.arange(2000), geometry(3000, 30.0, 2000)
    shuffled = random_clips(ClipConfig(num_clips=3), video, samples, seed=0, epoch=0).frames[..., 0]
    ordered = random_clips(ClipConfig(num_clips=3, shuffle=False), video, samples, seed=0, epoch=0).frames[..., 0]
    assert np.array_equal(np.sort(shuffled, axis=1), ordered)
    first = np.argmin(shuffled, axis=1)
    assert np.abs(np.bincount(first, minlength=3) - 2000 / 3).max() < 5 * np.sqrt(2000 / 3)


def test_starts_are_uniform_over_the_video() -> None:
    config = ClipConfig(num_clips=2, num_frames=8, frame_stride=8)
    starts = random_clips(config, geometry(300, 30.0, 4000), np.arange(4000), seed=0, epoch=0).frames[..., 0]
    counts, _ = np.histogram(starts, bins=8, range=(0, 237))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_clip_of_each_group_lies_in_each_part_as_the_joined_clips_of_a_test_do(shuffle: bool) -> None:
    config = ClipConfig(num_clips=6, parts=3, num_frames=4, frame_stride=2, shuffle=shuffle)
    video, samples = geometry(308, 30.0, 4000), np.arange(4000)  # 300 starts
    first = random_clips(config, video, samples, seed=0, epoch=0).frames[..., 0].reshape(4000, 2, 3)
    starts = np.maximum(first, 1) - 1  # the first frame at or after a start in (0, 300]
    part = starts // 100
    assert np.array_equal(np.sort(part, axis=2), np.broadcast_to(np.arange(3), part.shape))
    orders = {tuple(row) for row in part.reshape(-1, 3).tolist()}
    assert len(orders) == (6 if shuffle else 1)
    counts, _ = np.histogram(starts, bins=12, range=(0, 300))  # uniform within each part
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)
    tested = uniform_clips(config, geometry(308, 30.0), 12).frames[0, :, 0][joined_order(12, 1, 3)].reshape(4, 3)
    assert np.array_equal(tested // 100, np.broadcast_to(np.arange(3), (4, 3)))
    short = random_clips(config, geometry(5, 30.0, 4000), samples, seed=0, epoch=0).frames
    assert short.min() == 0 and short.max() == 4


def test_parts_divide_the_number_of_clips_and_have_no_segments() -> None:
    with pytest.raises(ValueError, match=r"clips\.parts=3 must divide clips\.num_clips=4"):
        ClipConfig(num_clips=4, parts=3)
    with pytest.raises(ValueError, match=r"clips\.parts=2 places the clips"):
        ClipConfig(num_clips=4, parts=2, rule="segments")


def test_uniform_views_start_evenly_and_end_before_the_video_does() -> None:
    frames = uniform_clips(ClipConfig(), geometry(364, 30.0), 10).frames[0]
    assert frames[:, 0].tolist() == [30 * view for view in range(10)]
    assert frames.max() < 364


@pytest.mark.parametrize("num_frames", [1, 5, 8, 37, 300])
def test_segments_show_a_frame_of_each_part_of_the_video(num_frames: int) -> None:
    config = ClipConfig(rule="segments", num_clips=2, shuffle=False)
    video = geometry(num_frames, 30.0, 400)
    frames = random_clips(config, video, np.arange(400), seed=0, epoch=0).frames
    edges = [round((num_frames - 1) / 8 * part) for part in range(9)]
    for part in range(8):
        assert set(np.unique(frames[..., part])) == set(range(edges[part], edges[part + 1] + 1))
    middle = uniform_clips(config, video, 1).frames[0, 0]
    assert middle.tolist() == [(edges[part] + edges[part + 1]) // 2 for part in range(8)]
    assert uniform_clips(config, video, 3).frames.shape == (400, 3, 8)


def test_segments_know_no_limits_of_time() -> None:
    with pytest.raises(ValueError, match="covers the whole video"):
        ClipConfig(rule="segments", max_span=2.0)
