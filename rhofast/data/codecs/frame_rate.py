"""Find the frame rate of a video from the times of its pictures.

The average rate of a file is no measure of it: a clip that was cut without encoding it again lacks some of the pictures
before its last ones, an AVI has empty slots, and containers round times. What counts is the interval at which nearly
all pictures follow one another.

    times       0    40    80   120   160   200        280   320          milliseconds, sorted
    intervals     40    40    40    40    40      80      40              nearly all are 40: the rate is 25, not 21.9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

# Rates that cameras and editors use. A rate that was measured from rounded times is one of them if one is near enough.
_USUAL = sorted(
    [Fraction(rate) for rate in (5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 48, 50, 60, 72, 90, 100, 120, 144, 240)]
    + [Fraction(25, 2), *(Fraction(1000 * rate, 1001) for rate in (15, 24, 30, 48, 60, 120, 240))]
)
_NEARLY_ALL, _MOST = 0.75, 0.5  # shares of the intervals; the second is enough for a rate that the file states
_MAX_SHORT = 0.05  # share of shorter intervals, whose pictures would be lost
_STATED = 0.02  # relative difference up to which a stated rate is the measured one, of a variable rate
_ROUNDED = 4e-4  # relative difference up to which two rates are one, rounded; 29.97 and 30 differ by 1e-3
_MAX_DELAY = 16  # pictures that a decoder may hold back: the references of H.264 and HEVC
_HALF = 0.6  # intervals; a picture that is farther from its place has another one
_EVEN = 0.02  # intervals; times that are nearer to a grid lie on it


@dataclass(frozen=True, slots=True)
class FrameRate:
    """How often the pictures of a video are shown.

    Attributes:
        rate: Pictures per second; 0 if the times do not tell.
        constant: Whether the pictures follow one another at this rate without a pause.
    """

    rate: Fraction
    constant: bool


@dataclass(frozen=True, slots=True)
class _Intervals:
    """The intervals of a video, in ticks.

    Attributes:
        all: The intervals, i64[N].
        period: The usual one, a mean of all that are near the median.
        usual: Which intervals are near the median, bool[N].
        rounded: Whether times are rounded to ticks; otherwise a tick is a period, or a simple part of it.
    """

    all: npt.NDArray[np.int64]
    period: float
    usual: npt.NDArray[np.bool_]
    rounded: bool


def measure_rate(
    times: npt.ArrayLike, tick: Fraction, stated: Sequence[Fraction], *, reordered: bool = False
) -> FrameRate:
    """Return the rate at which nearly all pictures follow one another, else the average rate.

    Args:
        times: When each picture is shown, in ticks and in any order, i64[N].
        tick: Seconds per tick.
        stated: Rates that the file states, the most trusted first; they may be wrong.
        reordered: Whether pictures are decoded in another order than they are shown. Then a cut can have removed
            pictures that would be shown before the last ones, but decoded after them. Nothing is missing in time there:
            the last pictures only come late.

    Returns:
        The rate, and whether it is constant.
    """
    sorted_times = np.sort(np.asarray(times, dtype=np.int64))
    intervals = np.diff(sorted_times)
    if not len(intervals) or intervals.sum() <= 0 or tick <= 0:
        return FrameRate(Fraction(0), constant=False)
    head = _head(intervals, tick, stated) if reordered else len(intervals)
    measured = _measure(intervals[:head])
    if measured is None or not _is_nearly_all(measured, tick, stated):
        average = len(intervals) / (int(intervals.sum()) * tick)
        return FrameRate(_agreed(stated, average) or average, constant=False)
    rate = _named_rate(measured, tick, stated)
    return FrameRate(rate, constant=_is_constant(measured, float(1 / (rate * tick))))


def _measure(intervals: npt.NDArray[np.int64]) -> _Intervals | None:
    """Find the usual interval; None if there is none."""
    positive = np.sort(intervals[intervals > 0])
    if not len(positive):
        return None
    median = int(positive[(len(positive) - 1) // 2])
    is_even = int(intervals.max() - intervals.min()) == 1  # 3 and 4 ticks, as in a GIF
    rounded = median >= 4 or (median >= 2 and is_even)
    usual = np.abs(intervals - median) <= max(median // 4, int(rounded))  # of 33 and 34 ms, or a camera's 30 to 36
    return _Intervals(intervals, float(intervals[usual].mean()), usual, rounded)


def _head(intervals: npt.NDArray[np.int64], tick: Fraction, stated: Sequence[Fraction]) -> int:
    """Return how many intervals there are before the last pictures begin to come late."""
    start = max(0, len(intervals) - _MAX_DELAY)
    whole = _measure(intervals[:start] if start >= 2 * _MAX_DELAY else intervals)
    period = None if whole is None else whole.period
    if start < 2 * _MAX_DELAY:  # too short for its own measure, if the file states one
        found = [float(1 / (rate * tick)) for rate in stated]
        period = next((each for each in found if (np.abs(intervals - each) <= each / 4).any()), period)
    if period is None:
        return len(intervals)
    late = np.flatnonzero(intervals > 1.25 * period)
    if not len(late) or late[0] < start or late[0] == 0 or (intervals > (_MAX_DELAY + 1.5) * period).any():
        return len(intervals)
    return int(late[0])


def _is_nearly_all(measured: _Intervals, tick: Fraction, stated: Sequence[Fraction]) -> bool:
    share = measured.usual.mean()
    short = ((measured.all < measured.period) & ~measured.usual & (measured.all > 0)).mean()
    is_stated = _agreed(stated, 1 / (Fraction(measured.period) * tick)) is not None
    return bool(short <= _MAX_SHORT and (share >= _NEARLY_ALL or (is_stated and share > _MOST)))


def _agreed(stated: Sequence[Fraction], rate: Fraction) -> Fraction | None:
    return next((each for each in stated if abs(each - rate) <= _STATED * rate), None)


def _named_rate(measured: _Intervals, tick: Fraction, stated: Sequence[Fraction]) -> Fraction:
    """Return the stated or usual rate that a measured one is, within what rounding to ticks explains."""
    total, count = int(measured.all[measured.usual].sum()), int(measured.usual.sum())
    rate = count / (total * tick)
    if not measured.rounded or rate in _USUAL:
        return rate
    pieces = 1 + int((~measured.usual).sum())  # each begins and ends with half a tick that may be wrong
    off = rate * max(Fraction(pieces, total), Fraction(_ROUNDED))
    told = [_usual(each) for each in stated]
    near = [each for each in [*told, *_USUAL] if abs(each - rate) <= off]
    # Between 30 and 29.97, a few rounded times do not decide.
    near.sort(
        key=lambda each: (each not in _USUAL, each not in told, abs(each - rate) // (rate / 100), each.denominator)
    )
    return near[0] if near else rate


def _usual(rate: Fraction) -> Fraction:
    return next((each for each in _USUAL if abs(each - rate) <= _ROUNDED * rate), rate)


def _is_constant(measured: _Intervals, period: float) -> bool:
    """Return whether every picture is at its place, or the times of some are wrong, as in a program stream.

    In such a stream two pictures with the same time make up for a pause.
    """
    places = np.cumsum(measured.all) / period
    if (np.abs(places - np.arange(1, len(places) + 1)) <= _HALF).all():
        return True
    steps = measured.all / period
    whole = np.round(steps)
    slack = max(_EVEN, 1.5 / period if measured.rounded else 0.0)
    even = bool((np.abs(steps - whole) <= slack).all())
    return even and bool((whole == 0).any()) and abs(int(whole.sum()) - len(whole)) <= max(1, _STATED * len(whole))
