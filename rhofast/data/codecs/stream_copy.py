"""The codec `copy`: the source file, byte for byte.

    member   the source file
    units    blocks of 16 MiB, each with a checksum; all are read for any frame

The source must be upright, with a constant frame rate.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
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
from rhofast.data.codecs.timeline import Source, decode_wanted, trim
from rhofast.data.types import Stream, Units
from rhofast.data.units import MEASURED

_BLOCK = 1 << 24  # bytes per checksum


class UnfitError(ValueError):
    """A source that cannot be stored as it is; the message says why."""


class CopyCodec(Codec):
    """The codec `copy`.

    A member is read as a whole for any of its frames. Decoding begins at the nearest possible place before each wanted
    frame.
    """

    name: ClassVar[str] = "copy"
    suffix: ClassVar[str | None] = None

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
        means, sizes = [], set()
        with open_container(file, mp4=False) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            timed = container.format.name != "avi"  # AVI stores no times: all frames last equally long
            aspect = pixel_aspect(stream)
            for frame in decode_all(container, stream):
                if frame.rotation:
                    raise UnfitError(f"it is to be shown rotated by {frame.rotation} degrees")
                if len(times) % MEASURED == 0:
                    means.append(mean_color(frame))
                sizes.add((frame.width, frame.height))
                times.append(frame.pts if timed else None)
            fps = _constant_rate(times, stream)
        if len(sizes) > 1:
            raise UnfitError("its size changes in the middle")
        ((width, height),) = sizes or {(0, 0)}
        try:
            self.check_size(width, height)
        except ValueError as error:
            raise UnfitError(str(error)) from None
        end = file.seek(0, io.SEEK_END)
        offsets = np.array([*range(0, end, _BLOCK), end], dtype=np.int64)
        blocks = len(offsets) - 1
        units = Units(
            frame=np.zeros(blocks, dtype=np.int32),
            offset=offsets[:-1],
            size=np.diff(offsets).astype(np.int32),
            crc=checksums(file, offsets),
            rgb=np.tile(np.mean(means or [np.zeros(3)], axis=0).astype(np.float32), (blocks, 1)),
        )
        return Member(num_frames=len(times), fps=fps, width=width, height=height, units=units, pixel_aspect=aspect)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return all units."""
        return np.arange(len(units.frame) if len(frames) else 0, dtype=np.int64)

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


def _source(part: Part) -> Source:
    return Source(part.joined(), (part.width, part.height), mp4=False)


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
        raise UnfitError("its frame rate is not constant")
    return found.rate.limit_denominator(10_000)
