"""The codec `copy`: the source file, untouched."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import MEASURED, Codec, Member, Part, _all_of
from rhofast.data.codecs.containers import (
    Picture,
    checksums,
    decode_all,
    decode_wanted,
    mean_color,
    open_container,
    trim,
    video_stream,
)
from rhofast.data.types import Stream, Units

_BLOCK = 1 << 24  # bytes of a copied file that share a checksum


class UnfitError(ValueError):
    """A source that a codec cannot store as it is; the message says why."""


class CopyCodec(Codec):
    """`copy`. Read whole for any of its frames; decoded from the nearest place before each where decoding can begin."""

    name: ClassVar[str] = "copy"
    suffix: ClassVar[str | None] = None

    def encoder_arguments(self) -> None:
        return None

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Every frame is decoded, and must be shown at its number / fps, within half an interval. Else it raises
        UnfitError."""
        times: list[float] = []
        means, sizes = [], set()
        with open_container(file) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
            timed = container.format.name != "avi"  # which stores no times, and whose frames all last equally long
            if stream.sample_aspect_ratio not in (None, 0, 1):
                raise UnfitError(f"its pixels are not square ({stream.sample_aspect_ratio})")
            for frame in decode_all(container, stream):
                if frame.rotation:
                    raise UnfitError(f"it is to be shown rotated by {frame.rotation} degrees")
                if len(times) % MEASURED == 0:
                    means.append(mean_color(frame))
                sizes.add((frame.width, frame.height))
                times.append(frame.time if timed and frame.time is not None else float("nan"))
        if len(sizes) > 1:
            raise UnfitError("its size changes in the middle")
        ((width, height),) = sizes or {(0, 0)}
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
        return Member(num_frames=len(times), fps=_constant_rate(times, fps), width=width, height=height, units=units)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """All of them."""
        return np.arange(len(units.frame) if len(frames) else 0, dtype=np.int64)

    def decode(self, part: Part) -> dict[int, Picture]:
        """Only the groups of pictures that hold the frames, where it is sure which those are."""
        decoded = decode_wanted(part.joined(), part.num_frames, part.frames)
        return _all_of(part, [decoded.get(number) for number in part.frames.tolist()])

    def trim(self, part: Part, takes: Collection[str]) -> Stream | None:
        trimmed = trim(part.joined(), part.num_frames, part.frames, takes)
        if trimmed is None:
            return None
        content, wanted = trimmed
        return Stream(content=np.frombuffer(content, dtype=np.uint8), wanted=wanted, frames=part.frames)


def _constant_rate(times: Sequence[float], stated: Fraction) -> Fraction:
    """The rate at which frames are shown at these times (seconds; NaN: unknown). Raises UnfitError if there is none."""
    if len(times) < 2 or np.isnan(times[0]) or np.isnan(times[-1]):
        return stated
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else 0.0
    off = np.abs((np.array(times) - times[0]) * rate - np.arange(len(times)))
    if rate == 0 or np.nanmax(off) > 0.5:
        raise UnfitError("its frame rate is not constant")
    return stated if abs(float(stated) - rate) <= 0.001 * rate else Fraction(rate).limit_denominator(10_000)
