"""The rule of segments: frames by time, shared out without loss or repetition."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rhofast.data.codecs.segment import Clock, frame_from, last_time

RATES = [Fraction(30), Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(25, 2), Fraction(7), Fraction(1, 3)]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_segments_that_follow_one_another_share_out_the_frames(rate: Fraction) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        num_frames = int(draw.integers(1, 500))
        edges = [0.0, *sorted(draw.uniform(0, float(num_frames / rate), 8).round(3).tolist()), None]
        held = [number for pair in pairwise(edges) for number in Clock(rate).frames(*pair, num_frames)]
        assert held == list(range(num_frames))


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_frame_is_in_the_segment_in_which_it_is_shown(rate: Fraction) -> None:
    draw = np.random.default_rng(1)
    for _ in range(100):
        start, end = sorted(draw.uniform(0, 40, 2).round(4).tolist())
        frames = Clock(rate).frames(start, end, 300)
        expected = [k for k in range(300) if start - 1e-6 <= k / rate < end - 1e-6]
        assert list(frames) == expected


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_times_written_with_six_decimals_are_those_of_the_frames(rate: Fraction) -> None:
    for number in range(2000):
        assert frame_from(round(float(number / rate), 6), rate) == number


def test_what_lies_behind_the_video_is_not_in_a_segment() -> None:
    clock = Clock(Fraction(10))
    assert clock.frames(None, None, 7) == range(7)
    assert clock.frames(0.5, 99.0, 7) == range(5, 7)
    assert not clock.frames(0.7, None, 7) and not clock.frames(0.51, 0.59, 7)


@pytest.mark.parametrize("rounding", [np.round, lambda ms: np.floor(ms + 1e-6), lambda ms: np.ceil(ms - 1e-6)])
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_an_edge_is_the_time_of_a_frame_as_its_file_rounds_it_or_exactly(rate: Fraction, rounding: Any) -> None:
    """Milliseconds, as in Matroska: the file's own time decides, and a time between it and k / rate is frame k, too."""
    even = np.arange(500) / float(rate)
    told = rounding(1000 * even).astype(np.int64)
    clock = Clock.of(told + 77, Fraction(1, 1000), rate)
    for number, (one, other) in enumerate(zip(told / 1000, even, strict=True)):
        assert {clock.frame_from(one), clock.frame_from(other), clock.frame_from((one + other) / 2)} == {number}
        assert clock.frame_from(max(one, other) + 2e-6) == number + 1
    assert clock.times is not None
    assert last_time(told[-1] / 1000, even[-1], 0.001, float(rate)) == pytest.approx(clock.times[-1])
    edges = [0.0, *np.sort(np.random.default_rng(2).uniform(0, even[-1], 40)).round(3).tolist(), None]
    held = [number for pair in pairwise(edges) for number in clock.frames(*pair, len(even))]
    assert held == list(range(len(even)))


def test_a_clock_that_is_wrong_by_more_than_half_a_frame_does_not_count() -> None:
    jumped = np.array([0, 40, 80, 5000, 5040])
    assert Clock.of(jumped, Fraction(1, 1000), Fraction(25)) == Clock(Fraction(25))
    assert last_time(5.04, 0.16, 0.001, 25.0) == 0.16
    assert last_time(0.172, 0.16, 0.001, 25.0) == 0.172  # a camera's
