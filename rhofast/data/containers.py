"""Looking into a stored member: its packets, its fragments, its frames, decoded on the host with PyAV.

What it is not: it knows nothing of shards or of how a codec stores things (codecs.py). All take a binary file that can
seek, and read from its beginning; what cannot be read raises ValueError.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_THUMB = 16  # pixels a side of the picture whose mean is a frame's mean color; divides the sides of what we encode


@dataclass(frozen=True, slots=True)
class Packet:
    offset: int
    size: int
    is_key: bool


def open_container(file: BinaryIO) -> Any:
    file.seek(0)
    try:
        return av.open(file, "r")
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"the stored member cannot be opened: {error}") from None


def video_stream(container: Any) -> Any:
    """The first video stream that the container calls a default, or else the first; never a cover picture, nor one that
    nothing can decode. Raises ValueError if there is none."""
    kind = av.stream.Disposition
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & kind.attached_pic
    ]
    if not streams:
        raise ValueError("no video stream")
    return next((stream for stream in streams if stream.disposition & kind.default), streams[0])


def read_packets(file: BinaryIO) -> tuple[int, int, Fraction, list[Packet]]:
    """(width, height, frame rate, packets in their order) of a member's video stream. The rate is 0 for one picture."""
    with open_container(file) as container:
        stream = video_stream(container)
        fps = Fraction(stream.average_rate or 0)
        size = int(stream.codec_context.width), int(stream.codec_context.height)
        try:
            packets = [
                Packet(int(packet.pos), int(packet.size), bool(packet.is_keyframe))
                for packet in container.demux(stream)
                if packet.size
            ]
        except av.error.FFmpegError as error:
            raise ValueError(f"the stored member cannot be read: {error}") from None
    return *size, fps, packets


def fragment_starts(file: BinaryIO) -> list[int]:
    """Offsets of the `moof` boxes of an MP4 (ISO/IEC 14496-12, 4.2): where its fragments begin."""
    end, offset, starts = file.seek(0, io.SEEK_END), 0, []
    while offset + 8 <= end:
        file.seek(offset)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack(">Q", head[8:])
        if kind == b"moof":
            starts.append(offset)
        if size < 8:
            break
        offset += size
    if offset != end:
        raise ValueError("the stored member is not a whole MP4")
    return starts


def checksums(file: BinaryIO, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """CRC-32 of the bytes between neighboring offsets."""
    file.seek(int(offsets[0]))
    return np.array([zlib.crc32(file.read(int(size))) for size in np.diff(offsets)], dtype=np.uint32)


def decode_all(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise ValueError(f"the stored member cannot be decoded: {error}") from None


def key_frame_colors(file: BinaryIO) -> npt.NDArray[np.float64]:
    """The mean color of each key frame: f64[N, 3] in 0..255."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        stream.codec_context.skip_frame = "NONKEY"
        return np.array([mean_color(frame) for frame in decode_all(container, stream)]).reshape(-1, 3)


def count_frames(file: BinaryIO) -> int:
    """How many frames come out of the decoder."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        return sum(1 for _ in decode_all(container, stream))


def mean_color(frame: Any) -> npt.NDArray[np.float64]:
    """The mean color of a frame, f64[3] in 0..255."""
    small = frame.reformat(width=_THUMB, height=_THUMB, format="rgb24", interpolation="AREA")
    mean: npt.NDArray[np.float64] = small.to_ndarray().reshape(-1, 3).mean(axis=0)
    return mean


def decode_wanted(file: BinaryIO, numbers: Sequence[int], frames: npt.NDArray[np.int32]) -> dict[int, Picture]:
    """Those of the coming frames, whose numbers are known, that are wanted."""
    wanted, pictures = set(frames.tolist()), dict[int, Picture]()
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        for number, frame in zip(numbers, decode_all(container, stream), strict=False):
            if number in wanted:
                pictures[number] = frame.to_ndarray(format="rgb24")
                if len(pictures) == len(wanted):
                    break
    if len(pictures) < len(wanted):
        raise ValueError(f"frame {min(wanted - set(pictures))} does not come out of the decoder")
    return pictures
