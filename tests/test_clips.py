"""Temporal sampling against the released one, and its invariants."""

import json

import numpy as np
import numpy.typing as npt
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from rhofast.config import ClipSection
from rhofast.data.clips import clip_length, random_clips, reads_whole_video, uniform_clips, window_frames
from rhofast.data.types import Geometry

VECTORS = SHARED / "vectors" / "temporal_sampling.json"


def geometry(num_frames: int, fps: float, count: int = 1) -> Geometry:
    def ones(dtype: type) -> npt.NDArray[np.generic]:
        return np.ones(count, dtype=dtype)

    return Geometry(
        num_frames=np.full(count, num_frames, dtype=np.int32),
        fps=np.full(count, fps, dtype=np.float64),
        width=np.full(count, 340, dtype=np.int32),
        height=np.full(count, 256, dtype=np.int32),
    )


@pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")
def test_frames_are_those_of_the_released_decoder() -> None:
    cases = [case for case in json.loads(VECTORS.read_text()) if case["min_delta"] is case["max_delta"] is None]
    assert len(cases) > 30
    for case in cases:
        section = ClipSection(num_clips=case["rho"], num_frames=case["T"], frame_stride=case["tau"])
        video = geometry(case["num_frames_video"], float(case["fps"]))
        if case["clip_idx"] >= 0:
            frames = uniform_clips(section, video, case["num_views"]).frames[0, case["clip_idx"]][None]
        else:
            length = clip_length(section, video.fps)
            room = np.maximum(video.num_frames - length, 0)
            start = np.sort([case["uniform_draws"][: case["rho"]]], axis=1) * room[:, None]
            ordered = window_frames(section, video, start, length, whole=reads_whole_video(section, video))[0]
            frames = np.empty_like(ordered)
            frames[case["output_permutation"] or range(case["rho"])] = ordered
        assert frames.tolist() == case["frame_indices"], case


@given(
    num_frames=st.integers(1, 2000),
    fps=st.sampled_from([6.0, 12.0, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
    rho=st.integers(1, 5),
    frames=st.integers(1, 32),
    stride=st.integers(1, 16),
    epoch=st.integers(0, 50),
)
def test_frames_lie_in_the_video_and_in_order(
    num_frames: int, fps: float, rho: int, frames: int, stride: int, epoch: int
) -> None:
    section = ClipSection(num_clips=rho, num_frames=frames, frame_stride=stride)
    video = geometry(num_frames, fps, count=3)
    plan = random_clips(section, video, np.array([4, 8, 15]), seed=5, epoch=epoch)
    assert plan.frames.shape == (3, max(rho, 2), frames)
    assert plan.frames.min() >= 0 and plan.frames.max() < num_frames
    assert (np.diff(plan.frames, axis=-1) >= 0).all()
    span = plan.frames[..., -1] - plan.frames[..., 0]
    assert (span <= np.ceil(clip_length(section, video.fps))[:, None]).all()


def test_rho_1_is_the_same_frames_twice() -> None:
    frames = random_clips(ClipSection(num_clips=1), geometry(300, 30.0), np.array([3]), seed=0, epoch=0).frames
    assert np.array_equal(frames[:, 0], frames[:, 1])


def test_a_plan_does_not_depend_on_the_batch() -> None:
    section, samples = ClipSection(num_clips=3), np.arange(6)
    together = random_clips(section, geometry(300, 30.0, 6), samples, seed=0, epoch=1).frames
    alone = random_clips(section, geometry(300, 30.0), samples[4:5], seed=0, epoch=1).frames
    assert np.array_equal(together[4:5], alone)


def test_clips_come_in_random_order_unless_told_otherwise() -> None:
    samples, video = np.arange(2000), geometry(3000, 30.0, 2000)
    shuffled = random_clips(ClipSection(num_clips=3), video, samples, seed=0, epoch=0).frames[..., 0]
    ordered = random_clips(ClipSection(num_clips=3, shuffle=False), video, samples, seed=0, epoch=0).frames[..., 0]
    assert np.array_equal(np.sort(shuffled, axis=1), ordered)
    first = np.argmin(shuffled, axis=1)
    assert np.abs(np.bincount(first, minlength=3) - 2000 / 3).max() < 5 * np.sqrt(2000 / 3)


def test_starts_are_uniform_over_the_video() -> None:
    section = ClipSection(num_clips=2, num_frames=8, frame_stride=8)
    starts = random_clips(section, geometry(300, 30.0, 4000), np.arange(4000), seed=0, epoch=0).frames[..., 0]
    counts, _ = np.histogram(starts, bins=8, range=(0, 237))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_a_short_video_repeats_its_last_frame() -> None:
    frames = random_clips(ClipSection(), geometry(10, 30.0), np.array([0]), seed=0, epoch=0).frames
    assert frames[0, 0].tolist() == [0, 9, 9, 9, 9, 9, 9, 9]


def test_uniform_views_start_evenly_and_end_before_the_video_does() -> None:
    frames = uniform_clips(ClipSection(), geometry(364, 30.0), 10).frames[0]
    assert frames[:, 0].tolist() == [30 * view for view in range(10)]
    assert frames.max() < 364
