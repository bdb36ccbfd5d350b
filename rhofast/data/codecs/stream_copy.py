"""The codec `copy`: the source file, byte for byte.

    member   the source file
    units    0 up to the first picture | 1 group | 2 group | ... | what follows the last group

Where the container says where its packets are (an MP4 or MOV that is not fragmented), a unit is the stretch of the file
from one place at which decoding can begin up to the next, with the sound in between. The units before and after hold no
frame and are read with any other: one of them is the table. Of other containers, units are blocks of 16 MiB, and all of
them are read for any frame.

The source must be upright, with a constant frame rate.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import Codec, Member, Part, by_frame
from rhofast.data.codecs.containers import (
    Picture,
    checksums,
    decode_all,
    mean_color,
    open_container,
    pixel_aspect,
    video_stream,
)
from rhofast.data.codecs.frame_rate import measure_rate
from rhofast.data.codecs.part_decoding import Source, decode_wanted, trim
from rhofast.data.codecs.sparse_file import SparseFile
from rhofast.data.codecs.timeline import Group, find_groups
from rhofast.data.codecs.unfit import UnfitError
from rhofast.data.types import Stream, Units
from rhofast.data.units import MEASURED, frames_in

_BLOCK = 1 << 24  # bytes per checksum
_REASON = "not_copyable"


class CopyCodec(Codec):
    """The codec `copy`.

    Decoding begins at the nearest possible place before each wanted frame.
    """

    name: ClassVar[str] = "copy"
    suffix: ClassVar[str | None] = None
    cuts: ClassVar[bool] = False

    def encoder_arguments(self) -> None:
        """Return None: nothing is encoded."""
        return

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Decode every frame, and check that the frames follow one another at a constant rate.

        Args:
            file: The member, open for reading.
            deep: Ignored: every frame is decoded in any case.

        Returns:
            The size, rate and units of the member.

        Raises:
            UnfitError: The frames are rotated, or the size or the rate changes.
            ValueError: The file cannot be decoded.
        """
        times: list[int | None] = []
        means, sizes = dict[int, npt.NDArray[np.float64]](), set()
        with open_container(file, mp4=False) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            timed = container.format.name != "avi"  # AVI stores no times: all frames last equally long
            aspect = pixel_aspect(stream)
            for frame in decode_all(container, stream):
                if frame.rotation:
                    raise UnfitError(_REASON, f"it is to be shown rotated by {frame.rotation} degrees")
                if len(times) % MEASURED == 0 or frame.key_frame:
                    means[len(times)] = mean_color(frame)
                sizes.add((frame.width, frame.height))
                times.append(frame.pts if timed else None)
            fps = _constant_rate(times, stream)
        if len(sizes) > 1:
            raise UnfitError(_REASON, "its size changes in the middle")
        ((width, height),) = sizes or {(0, 0)}
        try:
            self.check_size(width, height)
        except ValueError as error:
            raise UnfitError(_REASON, str(error)) from None
        groups = find_groups(file, len(times)) if times else None
        if groups is None or not all(group.first in means for group in groups):
            units = _blocks(file, means)
        else:
            units = _groups(file, groups, means)
        return Member(num_frames=len(times), fps=fps, width=width, height=height, units=units, pixel_aspect=aspect)

    def units_for(self, units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the units that hold the wanted frames, and all that hold none."""
        if not len(frames):
            return np.zeros(0, dtype=np.int64)
        holders = np.searchsorted(units.frame, frames, side="right") - 1
        return np.union1d(holders, np.flatnonzero(frames_in(units, num_frames) == 0))

    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode the groups of pictures that hold the wanted frames; if these are not certain, the whole file."""
        decoded = decode_wanted(_source(part), part.num_frames, part.frames)
        return by_frame(part, [decoded.get(number) for number in part.frames.tolist()])

    def trim(self, part: Part, accepted: Collection[str]) -> Stream | None:
        """Copy the packets of the wanted frames to a new file; None if these are not certain."""
        trimmed = trim(_source(part), part.num_frames, part.frames, accepted)
        if trimmed is None:
            return None
        content, wanted = trimmed
        return Stream(content=np.frombuffer(content, dtype=np.uint8), wanted=wanted, frames=part.frames)


def _blocks(file: BinaryIO, means: Mapping[int, npt.NDArray[np.float64]]) -> Units:
    """Return blocks, of which the last counts as the holder of all frames; their color is the mean of the file."""
    end = file.seek(0, io.SEEK_END)
    offsets = np.array([*range(0, end, _BLOCK), end], dtype=np.int64)
    blocks = len(offsets) - 1
    measured = [mean for frame, mean in means.items() if frame % MEASURED == 0]
    return Units(
        frame=np.zeros(blocks, dtype=np.int32),
        offset=offsets[:-1],
        size=np.diff(offsets).astype(np.int32),
        crc=checksums(file, offsets),
        rgb=np.tile(np.mean(measured or [np.zeros(3)], axis=0).astype(np.float32), (blocks, 1)),
    )


def _groups(file: BinaryIO, groups: Sequence[Group], means: Mapping[int, npt.NDArray[np.float64]]) -> Units:
    """Return the groups with what is before and after them; the color of a group is that of its first frame."""
    end = file.seek(0, io.SEEK_END)
    edges = [0, *(group.begin for group in groups), groups[-1].end]
    frames = [0, *(group.first for group in groups)]
    colors = [np.zeros(3), *(means[group.first] for group in groups)]
    if edges[-1] < end:
        frames.append(groups[-1].first + groups[-1].count)
        colors.append(np.zeros(3))
        edges.append(end)
    offsets = np.array(edges, dtype=np.int64)
    return Units(
        frame=np.array(frames, dtype=np.int32),
        offset=offsets[:-1],
        size=np.diff(offsets).astype(np.int32),
        crc=checksums(file, offsets),
        rgb=np.array(colors, dtype=np.float32),
    )


def _source(part: Part) -> Source:
    """Return the file of a part, of which it may have the needed groups only."""
    size, units = (part.width, part.height), part.units
    if len(part.rows) == len(units.frame):
        return Source(part.joined(), size, mp4=False)
    counts = frames_in(units, part.num_frames)
    groups = [
        Group(int(units.offset[row]), int(units.offset[row] + units.size[row]), int(units.frame[row]), int(counts[row]))
        for row in part.rows.tolist()
        if counts[row]
    ]
    pieces = list(zip(units.offset[part.rows].tolist(), part.pieces, strict=True))
    file = io.BufferedReader(SparseFile(pieces, int(units.offset[-1] + units.size[-1])))
    return Source(file, size, probe=False, groups=groups)


def _constant_rate(times: Sequence[int | None], stream: Any) -> Fraction:
    """Return the constant rate at which frames are shown.

    Args:
        times: When each frame is shown, in ticks; None if unknown.
        stream: The stream of the frames.

    Returns:
        Frames per second.

    Raises:
        UnfitError: The rate is not constant.
    """
    stated = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    known = [time for time in times if time is not None]
    if len(known) < max(2, len(times)):
        return stated[0] if stated else Fraction(0)
    reordered = bool(stream.codec_context.has_b_frames)
    found = measure_rate(known, Fraction(stream.time_base), stated, reordered=reordered)
    if not found.constant:
        raise UnfitError(_REASON, "its frame rate is not constant")
    return found.rate.limit_denominator(10_000)
