"""Find out what is inside a video file, and refuse those that cannot become samples.

All packets of the video stream are read, and the first picture is decoded.
"""

from __future__ import annotations

import math
import re
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
import av.logging
from av.sidedata.sidedata import Type as SideData

from rhofast.data.codecs.containers import demux, mp4_defect, open_source, video_stream
from rhofast.data.codecs.frame_rate import FrameRate, measure_rate
from rhofast.data.codecs.segment import last_time
from rhofast.ingest.machine_errors import check_library_error

_MIN_RATE = Fraction(1, 100)  # frames per second; slower ones hardly move and would take a lot of space
_MAX_RATE = 1000  # frames per second; slow-motion cameras included
_MAX_ASPECT = 16  # of the longer to the shorter side, as shown
_INTERLACED = {2, 3, 4, 5}  # FFmpeg's AVFieldOrder: TT, BB, TB, BT
_HDR = {16, 18}  # transfer characteristics of ISO/IEC 23091-2: PQ (SMPTE ST 2084) and HLG
# Color matrices of ISO/IEC 23091-2 that swscale cannot convert: YCgCo, constant-luminance BT.2020, ICtCp, ...
_ODD_MATRICES = {8, *range(10, 18)}
_MIN_INTERLACED = 16  # pixels per side; ffmpeg cannot deinterlace smaller pictures, and no camera makes them

_FIRST_PACKETS = 100  # the first picture is decoded from these
JUMPY = ("mpeg", "mpegts", "ogg")  # formats whose clock may jump in the middle
JUMP = 10  # seconds; ffmpeg removes longer jumps of such a clock
# How FFmpeg describes a stream: "Stream #0:0: Video: evc (Main) (evc1 / 0x31637665), ..."; the codec may be "none".
_DESCRIBED = re.compile(r"Stream #\d+:\d+.*?: Video: (?P<name>[\w.-]+)(?: \([^/()]*\))*(?: \((?P<tag>.+?) / 0x\w+\))?")


class Refusal(StrEnum):
    """Why a source did not become a sample; this is the complete list."""

    MISSING = "missing"  # no such file
    UNREADABLE = "unreadable"  # the disk, the network or the server does not give it, after several attempts
    EMPTY = "empty"  # zero bytes
    NOT_A_VIDEO = "not_a_video"  # not a container that ffmpeg knows, or cut before its table of contents
    NO_VIDEO_STREAM = "no_video_stream"  # for example audio only
    DAMAGED = "damaged"  # ffmpeg reported an error while reading or decoding
    NO_FRAMES = "no_frames"  # the stream has no picture
    ODD_SHAPE = "odd_shape"  # displayed at an aspect ratio above 16, or rotated by an odd angle
    ODD_COLORS = "odd_colors"  # a color matrix that ffmpeg cannot convert: YCgCo, ICtCp, constant luminance
    TIMEOUT = "timeout"  # it took longer than `timeout`
    OUTSIDE = "outside_video"  # a segment that begins after the video, or in which no frame is shown
    TOO_SHORT = "too_short"  # shorter than `min_duration`
    TOO_LONG = "too_long"  # longer than `max_duration`
    NO_DECODER = "no_decoder"  # ffmpeg has no decoder for its video codec, which the detail names
    VARIABLE_RATE = "variable_rate"  # this one and the next six: `remux` only, which another codec may take
    ROTATED = "rotated"  # or mirrored, by a display matrix
    INTERLACED = "interlaced"  # pictures are pairs of fields
    HIDDEN_FRAMES = "hidden_frames"  # an edit list leaves out frames in the middle
    CHANGING_SIZE = "changing_size"  # of pictures, in the middle
    OTHER_FORMAT = "other_format"  # a codec, pixel format, brightness or container whose packets cannot be kept
    LONG_GROUP = "long_group"  # a group of pictures longer than `max_group`
    NOT_COPYABLE = "not_copyable"  # codec `copy` only: rotated, or a variable frame rate


UNFIT = frozenset(
    {
        Refusal.VARIABLE_RATE,
        Refusal.ROTATED,
        Refusal.INTERLACED,
        Refusal.HIDDEN_FRAMES,
        Refusal.CHANGING_SIZE,
        Refusal.OTHER_FORMAT,
        Refusal.LONG_GROUP,
        Refusal.NOT_COPYABLE,
    }
)
"""The reasons that a codec has against a sound source, which another codec may take."""


class RefusedError(Exception):
    """A source is refused.

    Attributes:
        reason: Why it is refused.
        detail: One line from the library or ffmpeg; may be empty.
    """

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True, slots=True)
class _Times:
    """When the pictures of a stream are shown.

    Attributes:
        frames: Number of displayed packets.
        ticks: Their times in ticks, as far as they are known.
        tick: Seconds per tick.
        last: Ticks for which the last picture is shown; 0 if unknown.
        reordered: Whether pictures are decoded in another order than they are shown.
    """

    frames: int
    ticks: array[int]
    tick: Fraction
    last: int
    reordered: bool

    @property
    def shown(self) -> int:
        """Number of pictures: those with a time, if any have one."""
        return len(self.ticks) or self.frames

    @property
    def span_s(self) -> Fraction:
        """Seconds from the first picture to the last."""
        return (max(self.ticks, default=0) - min(self.ticks, default=0)) * self.tick

    @property
    def last_s(self) -> Fraction:
        """Seconds for which the last picture is shown; 0 if unknown."""
        return self.last * self.tick


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """What transcoding needs to know about a source.

    Attributes:
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the video codec.
        decoder: FFmpeg's name of its decoder.
        stream: Number of the video stream in the container.
        fps: Frame rate of the stream, in frames per second; the average one if it varies.
        frames: Number of pictures, as far as the container tells them apart.
        seconds: Time from the first picture to the end of the last.
        last: Time of the last picture in seconds since the first one.
        constant: Whether picture n is shown at n / fps, whatever its timestamp says.
        interlaced: Whether pictures are pairs of fields.
        hdr: Whether brightness is coded with PQ or HLG.
        mirrored: Whether left and right must be exchanged before rotating.
        rotation: Clockwise rotation to apply, in degrees: 0, 90, 180 or 270.
    """

    container: str
    codec: str
    decoder: str
    stream: int
    fps: Fraction
    frames: int
    seconds: float
    last: float = 0.0
    constant: bool = False
    interlaced: bool = False
    hdr: bool = False
    mirrored: bool = False
    rotation: int = 0


def probe(path: Path) -> SourceInfo:
    """Return what is inside a video file; raises RefusedError if it cannot become a sample, or UnreadableError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or str(error)) from None
    if size == 0:
        raise RefusedError(Refusal.EMPTY)
    try:
        with open_source(path) as container:
            return _read_info(container)
    except PermissionError as error:
        raise RefusedError(Refusal.UNREADABLE, error.strerror or "") from None
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, av.error.ArgumentError):  # the format is not one of WHITELIST
            raise RefusedError(Refusal.NOT_A_VIDEO, "a picture, a list of files, text, or an unknown format") from None
        check_library_error(error)
        said = str(getattr(error, "strerror", "") or error)
        raise RefusedError(Refusal.NOT_A_VIDEO, mp4_defect(path, size) or said) from None


def _read_info(container: Any) -> SourceInfo:
    kind = str(container.format.name)
    try:
        stream = video_stream(container)
    except ValueError:
        raise _no_stream(container) from None
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
    times = _measure(_packets(container, stream, pictures), stream, has_jumps=kind in JUMPY)
    if times.frames == 0:
        raise RefusedError(Refusal.NO_FRAMES)
    mirrored, rotation = (
        _read_matrix(pictures[0]) if pictures else (False, 0)
    )  # if it does not decode, transcoding reports why
    found = _rate(stream, times)
    # Without timestamps, as in a raw H.264 stream, there is no span.
    span = times.span_s if times.span_s and not found.constant else (times.shown - 1) / found.rate
    seconds = span + max(times.last_s, 1 / found.rate)
    if times.frames < _MIN_RATE * seconds:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"{times.frames} pictures in {float(seconds):.0f} s")
    return SourceInfo(
        container=kind,
        codec=str(context.codec.canonical_name),
        decoder=str(context.name),
        stream=stream.index,
        fps=found.rate,
        frames=times.frames,
        seconds=float(seconds),
        last=last_time(float(times.span_s), float(span), float(times.tick), float(found.rate)),
        constant=found.constant,
        interlaced=int(getattr(context, "field_order", 0)) in _INTERLACED
        and min(context.width, context.height) >= _MIN_INTERLACED,
        hdr=int(context.color_trc) in _HDR,
        mirrored=mirrored,
        rotation=rotation,
    )


def _no_stream(container: Any) -> RefusedError:
    """Return why a container has no video stream that can be decoded."""
    attached = av.stream.Disposition.attached_pic
    missing = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & attached]
    if not missing:
        return RefusedError(Refusal.NO_VIDEO_STREAM)
    # PyAV tells the name of a codec without decoder only here, and only if it logs.
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        described = str(container.dumps_format())
    finally:
        av.logging.set_level(level)
    found = _DESCRIBED.search(described)
    name, tag = (found["name"], found["tag"]) if found else ("none", None)
    known = name if name != "none" else f"unknown codec {tag.strip()}" if tag else "unknown codec"
    return RefusedError(Refusal.NO_DECODER, known)


def _read_matrix(picture: Any) -> tuple[bool, int]:
    """Return (mirrored, rotation) from a picture's display matrix; raises RefusedError for other angles."""
    try:
        matrix = picture.side_data.get(SideData.DISPLAYMATRIX)
    except ValueError:  # some other side data, such as EXIF, has no name in PyAV 18
        return _quarter_turns(-picture.rotation, mirrored=False)
    if matrix is None:
        return False, 0
    # A pixel at (x, y) is shown at x' = across * x + down_across * y + ...
    across, across_down, _, down_across, down, *_ = struct.unpack("=9i", bytes(matrix))
    mirrored = across * down < across_down * down_across
    return _quarter_turns(math.degrees(math.atan2(across_down, across)) + (180 if mirrored else 0), mirrored=mirrored)


def _quarter_turns(angle: float, *, mirrored: bool) -> tuple[bool, int]:
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) > 1:
        raise RefusedError(Refusal.ODD_SHAPE, f"rotated by {angle:.0f} degrees")
    return mirrored, quarters % 4 * 90


def _measure(packets: Iterator[Any], stream: Any, *, has_jumps: bool) -> _Times:
    """Read the times of the displayed packets.

    Args:
        packets: The displayed packets, in the order of decoding.
        stream: Their stream.
        has_jumps: Whether the clock of the container may jump.
    """
    shown, decoded = array("q"), array("q")  # timestamps in units of the stream's time base
    frames, first, end, duration, offset, step = 0, None, None, 0, 0, 0
    longest = JUMP / Fraction(stream.time_base or 1)
    for packet in packets:
        frames += 1
        if packet.dts is not None:
            dts = packet.dts + offset
            if has_jumps and decoded and not 0 <= dts - decoded[-1] < longest:
                offset += decoded[-1] + step - dts
                dts = packet.dts + offset
            elif decoded:
                step = dts - decoded[-1]
            decoded.append(dts)
        if packet.pts is not None:
            shown.append(packet.pts + offset)
            first = shown[-1] if frames == 1 and packet.is_keyframe else first
            if end is None or shown[-1] > end:
                end, duration = shown[-1], packet.duration or 0
    times = shown if 2 * len(shown) > frames else decoded  # AVI stores decoding times only
    if first is not None and min(times, default=first) < first:  # shown before the first key frame: not decodable
        times = array("q", [time for time in times if time >= first])
    reordered = any(after < before for before, after in pairwise(shown))
    return _Times(frames, times, Fraction(stream.time_base or 0), duration, reordered)


def _packets(container: Any, stream: Any, pictures: list[Any]) -> Iterator[Any]:
    """Yield packets up to the first error, which transcoding reports; append the first picture to `pictures`."""
    try:
        for number, packet in enumerate(demux(container, stream)):
            if not pictures and number < _FIRST_PACKETS:
                with suppress(av.error.FFmpegError):
                    pictures.extend(packet.decode()[:1])
            if packet.size and not packet.is_discard:
                yield packet
    except av.error.FFmpegError:
        return


def _rate(stream: Any, times: _Times) -> FrameRate:
    """Return the frame rate; raises RefusedError if it is outside [_MIN_RATE, _MAX_RATE]."""
    stated = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    found = measure_rate(times.ticks, times.tick, stated, reordered=times.reordered)
    if not found.rate:
        last = times.last_s
        # In a raw stream, the average rate is only ffmpeg's default.
        rate = 1 / last if times.frames == 1 and last * _MAX_RATE >= 1 else stated[-1] if stated else Fraction(0)
        found = FrameRate(rate, constant=True)
    if not _MIN_RATE <= found.rate <= _MAX_RATE:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"frame rate {float(found.rate):g}")
    stays = times.last_s * found.rate > 1.5 and not times.reordered  # as the last picture of an animation may
    return FrameRate(found.rate.limit_denominator(10_000), found.constant and not (stays and times.frames > 1))
