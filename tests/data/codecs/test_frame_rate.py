"""The rate of a video is that of nearly all its intervals, by exact arithmetic on times."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rhofast.data.codecs.frame_rate import measure_rate

NTSC = Fraction(30_000, 1001)
MS = Fraction(1, 1000)


def rounded(rate: Fraction, count: int, tick: Fraction) -> list[int]:
    """Times of pictures at a constant rate, rounded to ticks."""
    return [round(number / rate / tick) for number in range(count)]


@pytest.mark.parametrize("tick", [MS, Fraction(1, 12_800), Fraction(1, 90_000)], ids=str)
@pytest.mark.parametrize("count", [2, 5, 30, 300])
@pytest.mark.parametrize(
    "rate", [Fraction(6), Fraction(25, 2), Fraction(24), Fraction(25), NTSC, Fraction(60)], ids=str
)
def test_times_at_a_constant_rate_give_this_rate_however_they_are_rounded(
    rate: Fraction, count: int, tick: Fraction
) -> None:
    found = measure_rate(rounded(rate, count, tick), tick, [rate])
    assert found.rate == rate and found.constant


def test_centiseconds_of_a_gif_are_rounded_times() -> None:
    found = measure_rate(rounded(NTSC, 60, Fraction(1, 100)), Fraction(1, 100), [Fraction(100, 3)])
    assert found.rate == pytest.approx(float(NTSC), rel=5e-3) and found.constant


@pytest.mark.parametrize("stated", [[Fraction(1000, 33)], [Fraction(31)], [Fraction(90_000)], []], ids=str)
def test_a_wrong_rate_in_the_header_is_not_believed(stated: list[Fraction]) -> None:
    found = measure_rate(rounded(NTSC, 60, Fraction(1, 30_000)), Fraction(1, 30_000), stated)
    assert found.rate == NTSC and found.constant


@pytest.mark.parametrize(("length", "removed"), [(80, [76, 77, 78]), (30, [28]), (60, [56, 58]), (8, [5, 6])])
def test_pictures_that_a_cut_has_removed_before_the_last_ones_leave_the_rate(length: int, removed: list[int]) -> None:
    times = np.delete(np.arange(length) * 40, removed)
    found = measure_rate(times, MS, [Fraction(24), Fraction(25)], reordered=True)
    assert found.rate == 25 and found.constant


def test_a_pause_before_the_last_picture_stays_where_no_picture_is_decoded_out_of_order() -> None:
    found = measure_rate([*(40 * n for n in range(30)), 1400], MS, [Fraction(25)])
    assert found.rate == 25 and not found.constant


def test_empty_slots_of_an_avi_are_pauses_and_leave_the_rate() -> None:
    times = [slot for slot in range(20) if slot not in (3, 8, 14)]  # 8.42 pictures per second on average
    found = measure_rate(times, Fraction(1, 10), [Fraction(10)])
    assert found.rate == 10 and not found.constant


def test_a_variable_rate_has_its_average() -> None:
    found = measure_rate([0, 10, 20, 500, 1000, 1500], MS, [Fraction(30)])
    assert found.rate == Fraction(10, 3) and not found.constant
    burst = np.cumsum([33, 100, 100, 33, 100, 100, 33, 100, 100, 100])
    assert measure_rate([0, *burst], MS, []).rate == Fraction(10_000, int(burst[-1]))


def test_two_clocks_in_one_video_are_not_a_constant_rate() -> None:
    times = np.cumsum([0, *[33] * 150, *[40] * 150])
    assert not measure_rate(times, MS, [Fraction(30)]).constant


def test_wrong_times_of_a_program_stream_do_not_lose_pictures() -> None:
    times = 1800 * np.arange(150)
    times[67], times[68] = times[66], times[69]
    found = measure_rate(times, Fraction(1, 90_000), [Fraction(50)], reordered=True)
    assert found.rate == 50 and found.constant


@pytest.mark.parametrize("times", [[], [7], [7, 7, 7]], ids=str)
def test_times_that_tell_nothing_give_no_rate(times: list[int]) -> None:
    found = measure_rate(times, MS, [Fraction(25)])
    assert found.rate == 0 and not found.constant
