"""The rule of segments: frames by time, shared out without loss or repetition."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from rhofast.data.codecs.segment import frame_from, frames_of_segment

RATES = [Fraction(30), Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(25, 2), Fraction(7), Fraction(1, 3)]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_segments_that_follow_one_another_share_out_the_frames(rate: Fraction) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        num_frames = int(draw.integers(1, 500))
        edges = [0.0, *sorted(draw.uniform(0, float(num_frames / rate), 8).round(3).tolist()), None]
        held = [number for pair in pairwise(edges) for number in frames_of_segment(*pair, rate, num_frames)]
        assert held == list(range(num_frames))


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_frame_is_in_the_segment_in_which_it_is_shown(rate: Fraction) -> None:
    draw = np.random.default_rng(1)
    for _ in range(100):
        start, end = sorted(draw.uniform(0, 40, 2).round(4).tolist())
        frames = frames_of_segment(start, end, rate, 300)
        expected = [k for k in range(300) if start - 1e-6 <= k / rate < end - 1e-6]
        assert list(frames) == expected


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_times_written_with_six_decimals_are_those_of_the_frames(rate: Fraction) -> None:
    for number in range(2000):
        assert frame_from(round(float(number / rate), 6), rate) == number


def test_what_lies_behind_the_video_is_not_in_a_segment() -> None:
    rate = Fraction(10)
    assert frames_of_segment(None, None, rate, 7) == range(7)
    assert frames_of_segment(0.5, 99.0, rate, 7) == range(5, 7)
    assert not frames_of_segment(0.7, None, rate, 7) and not frames_of_segment(0.51, 0.59, rate, 7)
