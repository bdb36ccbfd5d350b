"""Which frames of a video a segment of it has: the one rule by which every codec cuts.

    frames of the whole video   0    1    2    3    4    5          frame k is shown at k / rate
    segment [start, end)             [start         end)            has frames 1, 2 and 3

Times are seconds since the first shown picture of the file. A segment has the frames k of the whole video, as it is
stored at a constant rate, with start <= k / rate < end. So segments that follow one another share out the frames of a
video without loss or repetition, and what a segment shows does not depend on where others begin. A segment that ends
after the video ends with it.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

_TOLERANCE = Fraction(1, 1_000_000)  # seconds; times such as 0.1 or 1/3, written in decimals, are meant exactly


def frame_from(time: float, rate: Fraction) -> int:
    """Return the first frame that is not shown before a time.

    Args:
        time: Seconds since the first picture, >= 0.
        rate: Frames per second.
    """
    return max(0, ceil((Fraction(time) - _TOLERANCE) * rate))


def frames_of_segment(start: float | None, end: float | None, rate: Fraction, num_frames: int) -> range:
    """Return the frames of a whole video that a segment [start, end) of it has.

    Args:
        start: Beginning in seconds since the first picture; None for the beginning of the video.
        end: End in seconds; None for the end of the video.
        rate: Frames per second of the whole video as it is stored.
        num_frames: Number of frames of the whole video.

    Returns:
        The numbers of the frames; empty if the segment begins after the last frame, or lies between two frames.
    """
    first = 0 if start is None else frame_from(start, rate)
    stop = num_frames if end is None else min(num_frames, frame_from(end, rate))
    return range(first, max(first, stop))
