"""What follows from the units of a stored member: their frames and colors, and what of them clips use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhofast.data.types import Units

MEASURED = 16
"""The color of one frame in so many is measured when a shard is made."""


def measured_frames(num_frames: int) -> npt.NDArray[np.int64]:
    """Return the frames whose colors are measured where not every unit's is: one in `MEASURED`, and the last."""
    return np.append(np.arange(0, num_frames - 1, MEASURED), num_frames - 1)


def colors_of(units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the mean colors of frames.

    Where each unit has a color, it stands for the frames of the unit. Where there are fewer colors than units, they are
    those of `measured_frames`, and linear in between.

    Args:
        units: The units of a member.
        num_frames: Number of frames of the member.
        frames: Frame numbers, i32 of any shape.

    Returns:
        Mean R, G, B in 0..255 of each frame, f32[..., 3].
    """
    if len(units.rgb) == len(units.frame):
        known: npt.NDArray[np.float32] = units.rgb[units.frame.searchsorted(frames, side="right") - 1]
        return known
    before = np.minimum(frames // MEASURED, len(units.rgb) - 2)
    first = before * MEASURED
    share = (frames - first) / np.minimum(MEASURED, num_frames - 1 - first)
    left, right = units.rgb[before], units.rgb[before + 1]
    between: npt.NDArray[np.float32] = (left + (right - left) * share[..., None]).astype(np.float32)
    return between


def frames_in(units: Units, num_frames: int) -> npt.NDArray[np.int64]:
    """Return how many frames each unit holds.

    Args:
        units: The U units of a member.
        num_frames: Number of frames of the member.

    Returns:
        Number of frames of each unit, i64[U], also of those outside the sample; 0 for units that hold none (a header,
        all but the last block of a copied file).
    """
    ends = np.empty(len(units.frame), dtype=np.int64)  # not np.diff(append=...), which takes several times as long
    ends[:-1], ends[-1:] = units.frame[1:], num_frames + units.after
    return ends - units.frame


def usage(units: Units, num_frames: int, wanted: npt.NDArray[np.int32]) -> tuple[float, int]:
    """Return how much of a member is used to get some of its frames.

    The bytes of a frame are its share of its unit. The bytes of units without frames (the blocks of a copied file, a
    header) are shared equally by all frames of the member. Frames are decoded from the beginning of a unit up to the
    last wanted one in it; a copied file may be entered later than that, at any of its key frames.

    Args:
        units: The units of the member.
        num_frames: Number of frames of the member.
        wanted: Numbers of the wanted frames, i32[F], distinct and ascending; F >= 1.

    Returns:
        The number of bytes that hold the wanted frames, and the number of frames that are decoded to get them.
    """
    frames_per_unit = frames_in(units, num_frames)
    holders = np.searchsorted(units.frame, wanted, side="right") - 1
    shared = float(units.size[frames_per_unit == 0].sum(dtype=np.int64)) / num_frames
    lasts = np.append(np.flatnonzero(np.diff(holders)), len(wanted) - 1)  # of each holder, the last wanted frame
    decoded = int((wanted[lasts] - units.frame[holders[lasts]] + 1).sum())
    return float((units.size[holders] / frames_per_unit[holders] + shared).sum()), decoded
