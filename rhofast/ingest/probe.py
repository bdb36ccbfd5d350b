"""What is inside a video file, and why one is refused. Reads the packets of its video and decodes the first picture."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
from av.sidedata.sidedata import Type as SideData

from rhofast.data.codecs.containers import video_stream

_MIN_RATE = Fraction(1, 100)  # frames a second; what is slower moves no more, and takes a lot of room
_MAX_RATE = 1000  # slow-motion cameras included
_MAX_ASPECT = 16  # of the longer to the shorter side, as shown
_RATE_TOLERANCE = 0.02  # of the stated frame rate; beyond, the one of the packets is believed
_INTERLACED = {2, 3, 4, 5}  # of FFmpeg's AVFieldOrder: TT, BB, TB, BT
_HDR = {16, 18}  # of ISO/IEC 23091-2's transfer characteristics: PQ (SMPTE ST 2084) and HLG
# Of the same's color matrices, those that swscale cannot convert: YCgCo, BT.2020 of constant luminance, ICtCp, ...
_ODD_MATRICES = {8, *range(10, 18)}
_MIN_INTERLACED = 16  # pixels a side; smaller ones are no camera's, and ffmpeg does not make them whole

# Formats of FFmpeg that are no moving pictures: one picture, text, a list of other files.
_STILL, _LIST = ("image2", "tty", "_pipe"), ("concat", "dash", "hls")
_FIRST_PACKETS = 100  # the first picture comes out of them
_JUMPY = ("mpeg", "mpegts", "ogg")  # formats whose clock may jump in the middle
_JUMP = 10  # seconds; longer jumps of such a clock ffmpeg takes out


class Refusal(StrEnum):
    """Why a source did not become a sample: the whole list."""

    MISSING = "missing"  # no such file, or not readable
    EMPTY = "empty"  # zero bytes
    NOT_A_VIDEO = "not_a_video"  # no container that ffmpeg knows, or one cut before its table of contents
    NO_VIDEO_STREAM = "no_video_stream"  # audio only, say
    DAMAGED = "damaged"  # ffmpeg met an error while reading or decoding
    NO_FRAMES = "no_frames"  # a stream without a single picture
    ODD_SHAPE = "odd_shape"  # more than 16 times as long as wide, as shown
    ODD_COLORS = "odd_colors"  # in a form that ffmpeg cannot bring to RGB: YCgCo, ICtCp, constant luminance
    TIMEOUT = "timeout"  # it took longer than allowed
    TOO_SHORT = "too_short"  # shorter than `min_duration`
    TOO_LONG = "too_long"  # longer than `max_duration`
    NOT_COPYABLE = "not_copyable"  # codec `copy` only: rotated, not of square pixels, or not of a constant rate


class RefusedError(Exception):
    """A source is refused. detail: what the library or ffmpeg said, one line, or empty."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """What transcoding needs to know.

    stream       number of the video stream in the container
    fps          the stream's average rate, frames a second
    frames       pictures, as far as the container tells them apart
    seconds      from the first picture to the end of the last
    interlaced   pictures are pairs of fields
    hdr          brightness is coded by PQ or HLG
    mirrored     left and right are to be exchanged before it is turned
    rotation     degrees, clockwise, by which it is to be turned: 0, 90, 180 or 270
    """

    codec: str
    stream: int
    fps: Fraction
    frames: int
    seconds: float
    interlaced: bool = False
    hdr: bool = False
    mirrored: bool = False
    rotation: int = 0


def probe(path: Path) -> SourceInfo:
    """Look into a file. Raises RefusedError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or str(error)) from None
    if size == 0:
        raise RefusedError(Refusal.EMPTY)
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            return _look(container)
    except PermissionError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or "") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise RefusedError(Refusal.NOT_A_VIDEO, str(getattr(error, "strerror", "") or error)) from None


def _look(container: Any) -> SourceInfo:
    kind = str(container.format.name)
    if kind.endswith(_STILL) or kind in _LIST:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"its format is {kind}")
    try:
        stream = video_stream(container)
    except ValueError:
        raise RefusedError(Refusal.NO_VIDEO_STREAM) from None
    context = stream.codec_context
    sar = stream.sample_aspect_ratio or 1
    if context.width and context.height:
        aspect = float(context.width * sar / context.height)
        if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
            raise RefusedError(Refusal.ODD_SHAPE, f"{context.width}x{context.height}, pixels {sar}")
    if int(context.colorspace) in _ODD_MATRICES:
        raise RefusedError(Refusal.ODD_COLORS, f"color matrix {int(context.colorspace)} of ISO/IEC 23091-2")
    stream.thread_count = 1
    pictures: list[Any] = []
    frames, span, last = _measure(_packets(container, stream, pictures), stream, has_jumps=kind in _JUMPY)
    if frames == 0:
        raise RefusedError(Refusal.NO_FRAMES)
    mirrored, rotation = _read_matrix(pictures[0]) if pictures else (False, 0)  # ffmpeg will have to say more
    fps = _rate(stream, frames, span, last)
    if span == 0:  # nothing in it tells the time, as in a bare H.264 stream
        span = (frames - 1) / fps
    seconds = span + max(last, 1 / fps)
    if frames < _MIN_RATE * seconds:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"{frames} pictures in {float(seconds):.0f} s")
    return SourceInfo(
        codec=str(context.name),
        stream=stream.index,
        fps=fps,
        frames=frames,
        seconds=float(seconds),
        interlaced=int(getattr(context, "field_order", 0)) in _INTERLACED
        and min(context.width, context.height) >= _MIN_INTERLACED,
        hdr=int(context.color_trc) in _HDR,
        mirrored=mirrored,
        rotation=rotation,
    )


def _read_matrix(picture: Any) -> tuple[bool, int]:
    """(mirrored, rotation) by a picture's display matrix. Raises RefusedError."""
    data = next((bytes(data) for data in picture.side_data if data.type == SideData.DISPLAYMATRIX), None)
    if data is None:
        return False, 0
    across, across_down, _, down_across, down, *_ = struct.unpack("=9i", data)  # a pixel's x' = across * x + ...
    mirrored = across * down < across_down * down_across
    angle = math.degrees(math.atan2(across_down, across)) + (180 if mirrored else 0)
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) > 1:
        raise RefusedError(Refusal.ODD_SHAPE, f"to be turned by {angle:.0f} degrees")
    return mirrored, quarters % 4 * 90


def _measure(packets: Iterator[Any], stream: Any, *, has_jumps: bool) -> tuple[int, Fraction, Fraction]:
    """(packets that are shown, seconds from the first to the last of them, seconds that the last is shown); a time is 0
    where nothing tells it."""
    frames, end, duration = 0, None, 0
    shown, decoded = array("q"), array("q")  # when, in units of the stream's clock
    for packet in packets:
        frames += 1
        if packet.pts is not None:
            shown.append(packet.pts)
            if end is None or packet.pts > end:
                end, duration = packet.pts, packet.duration or 0
        if packet.dts is not None:
            decoded.append(packet.dts)
    unit = Fraction(stream.time_base or 0)
    if has_jumps:
        steps = [after - before for before, after in pairwise(decoded)]
        usual = [step for step in steps if 0 < step * unit < _JUMP]
        return frames, Fraction(sum(usual) * len(steps), max(1, len(usual))) * unit, duration * unit
    times = shown if 2 * len(shown) > frames else decoded  # an AVI says only when to decode
    return frames, (max(times, default=0) - min(times, default=0)) * unit, duration * unit


def _packets(container: Any, stream: Any, pictures: list[Any]) -> Iterator[Any]:
    """Packets up to an error, about which ffmpeg will have to say more. The first picture goes to `pictures`."""
    try:
        for number, packet in enumerate(container.demux(stream)):
            if not pictures and number < _FIRST_PACKETS:
                with suppress(av.error.FFmpegError):
                    pictures.extend(packet.decode()[:1])
            if packet.size and not packet.is_discard:
                yield packet
    except av.error.FFmpegError:
        return


def _rate(stream: Any, frames: int, span: Fraction, last: Fraction) -> Fraction:
    """The average frame rate: a stated one that the packets agree with, or else theirs (some containers state the ticks
    of their clock). Raises RefusedError for a rate that no video has."""
    stated = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if frames > 1 and span > 0:
        measured = (frames - 1) / span
        agreed = [rate for rate in stated if abs(rate - measured) <= _RATE_TOLERANCE * measured + 1 / span]
        rate = agreed[0] if agreed else measured
    elif frames == 1 and last * _MAX_RATE >= 1:
        rate = 1 / last
    else:  # of a bare stream, the average is a default of ffmpeg's
        rate = stated[-1] if stated else Fraction(0)
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"frame rate {float(rate):g}")
    return rate.limit_denominator(10_000)
