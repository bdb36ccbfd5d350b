"""Which frames of a video a segment of it has: the one rule by which every codec cuts.

    frames of the whole video   0    1    2    3    4    5          when each is shown, by the clock of the video
    segment [start, end)             [start         end)            has frames 1, 2 and 3

Times are seconds since the first shown picture of the file. A segment has the frames of the whole video that are shown
at a time t with start <= t < end. So segments that follow one another share out the frames of a video without loss or
repetition, and what a segment shows does not depend on where others begin. A segment that ends after the video ends
with it.

Where frames are the pictures of the file, its own clock says when each is shown. It may be rounded, to milliseconds in
Matroska: then a segment that begins (or ends) at the time as it is in the file, or at k / rate, or between the two,
begins (or ends) with frame k. Where frames are made anew, at another rate, or the file has no clock that can be
trusted, frame k is shown at k / rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

_TOLERANCE = Fraction(1, 1_000_000)  # seconds; times such as 0.1 or 1/3, written in decimals, are meant exactly
_HALF = 0.6  # frames; a picture that is farther from its place has a wrong time, not a rounded one


@dataclass(frozen=True, slots=True)
class Clock:
    """When the frames of a whole video are shown.

    Attributes:
        rate: Frames per second.
        times: Time of each frame in seconds since the first one, ascending, f64[F]; None: frame k is shown at k / rate.
    """

    rate: Fraction
    times: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, ticks: npt.NDArray[np.int64], tick: Fraction, rate: Fraction) -> Clock:
        """Return the clock of a video of constant rate.

        Args:
            ticks: When its pictures are shown, in ticks, ascending, i64[F].
            tick: Seconds per tick.
            rate: Pictures per second.
        """
        told = (ticks - ticks[:1]).astype(np.float64) * float(tick)
        even = np.arange(len(ticks), dtype=np.float64) / float(rate)
        return cls(rate, _agreed(told, even, float(tick), float(rate)))

    def frame_from(self, time: float) -> int:
        """Return the first frame that is not shown before a time in seconds; one behind the last if all are."""
        if self.times is None:
            return frame_from(time, self.rate)
        return int(np.searchsorted(self.times, time - float(_TOLERANCE)))

    def frames(self, start: float | None, end: float | None, num_frames: int) -> range:
        """Return the frames of a segment [start, end).

        Args:
            start: Beginning in seconds since the first picture; None for the beginning of the video.
            end: End in seconds; None for the end of the video.
            num_frames: Number of frames of the whole video.

        Returns:
            The numbers of the frames; empty if the segment begins after the last frame, or lies between two frames.
        """
        first = 0 if start is None else self.frame_from(start)
        stop = num_frames if end is None else min(num_frames, self.frame_from(end))
        return range(first, max(first, stop))


def last_time(told: float, even: float, tick: float, rate: float) -> float:
    """Return when the last frame of a video is shown, as `Clock.of` has it.

    Args:
        told: What the clock of the file tells, in seconds since the first frame.
        even: The time by a constant rate.
        tick: Seconds per tick of the clock.
        rate: Frames per second.
    """
    agreed = _agreed(np.array([told]), np.array([even]), tick, rate)
    return even if agreed is None else float(agreed[0])


def _agreed(
    told: npt.NDArray[np.float64], even: npt.NDArray[np.float64], tick: float, rate: float
) -> npt.NDArray[np.float64] | None:
    """Return what a clock tells, or the even time where it may be rounded down; None if it is not to be trusted."""
    if (np.abs(told - even) * rate > _HALF).any():
        return None
    return np.where((even > told) & (even - told < tick), even, told)


def frame_from(time: float, rate: Fraction) -> int:
    """Return the first frame that is not shown before a time, if frame k is shown at k / rate.

    Args:
        time: Seconds since the first picture, >= 0.
        rate: Frames per second.
    """
    return max(0, ceil((Fraction(time) - _TOLERANCE) * rate))
