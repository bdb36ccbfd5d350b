"""Cut the packets that a segment needs out of a source, so that it is decoded without what lies before it.

    packets of the source   0 1 2 3 | 4 5 6 7 | 8 9 ...      in the order of decoding; decoding can begin at each bar
    pictures of a segment             x x x                  and one more, which tells how long the last one is shown
    piece                             4 5 6 7                a file of its own, in which every picture keeps its time

Leading pictures of the packet at which a piece begins are left out (data.codecs.entries): no segment needs them that is
not shown before that packet.

Everything is found by the order of packets: those of the whole source are read once, the packets that are found after a
jump into the file must be the same ones, and so must the pictures that ffmpeg says it has decoded of a piece. Where it
is not certain which packet becomes which picture (a variable rate without times, single fields), there is no cut: such
a source is decoded from its beginning.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import demux, open_source
from rhofast.data.codecs.entries import UNKNOWN
from rhofast.ingest.kept_source import kept
from rhofast.ingest.machine_errors import check_library_error
from rhofast.ingest.packets import Packets, stored_time
from rhofast.ingest.probe import JUMPY, SourceInfo

# Lines of ffmpeg's filter `showinfo`, of versions 4 to 9.
_TIME_BASE = re.compile(rb"^\[Parsed_showinfo_\d+ @ [^\]]*\] \[info\] config in time_base: (\d+)/(\d+),", re.MULTILINE)
_PICTURE = re.compile(
    rb"^\[Parsed_showinfo_\d+ @ [^\]]*\] \[info\] n: *\d+ pts: *(-?\d+) .*?fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\S+) ",
    re.MULTILINE,
)
_COLORS = re.compile(
    rb"^\[Parsed_showinfo_\d+ @ [^\]]*\] \[info\] +"
    rb"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)",
    re.MULTILINE,
)
_NOTHING = ("unknown", "reserved", "unspecified")  # words for colors that are not told
_MP4 = {"movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer", "fflags": "+bitexact"}
_FIELD_MARGIN = 2  # pictures on each side that deinterlacing looks at
_NEAR = 1_000  # packets; those of the whole source would be sent to another process for each segment
_EARLIER = 1  # seconds; jumps in containers without an index are inexact


class UncertainError(Exception):
    """It is not certain which packets a segment needs, or what they decode to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The packets of a segment, and the frames that are made of them.

    At a constant rate pictures are counted, and a tick is the time of one.

    Attributes:
        first: Number of the first packet.
        inside: Whether it is an open entry.
        gap: Whether it is one only if none of its leading pictures is needed, which has to be tried out.
        times: When each packet from `first` on is shown, i64[...]. Those before the first one are left out.
        pictures: Which of these times pictures are needed of, ascending, i64[...].
        shift: Time of the first picture of the source.
        tick: Seconds per tick.
        frames: The frames of the segment, by their numbers in the whole video.
        padding: How many frames show the last picture, if the segment ends with the source; otherwise 0. The piece does
            not say for how long it is shown.
        near: Number of the first packet of `stored` and `num_bytes`: some before `first`, at which a jump may end.
        stored: What the container says of when each packet from `near` to the last one is shown, i64[...].
        num_bytes: Size of each of them in bytes, i32[...].
        can_jump: Whether it shows where a jump has led.
    """

    first: int
    inside: bool
    gap: bool
    times: npt.NDArray[np.int64]
    pictures: npt.NDArray[np.int64]
    shift: int
    tick: Fraction
    frames: range
    padding: int
    near: int
    stored: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int32]
    can_jump: bool

    @property
    def offset(self) -> Fraction:
        """Seconds from the first picture of the source to the first one of the piece; below 0 for a hidden one."""
        return (int(self.times[0]) - self.shift) * self.tick

    def check(self, output: bytes, look: Look) -> None:
        """Raise UncertainError unless ffmpeg has decoded the needed pictures of the piece, in order and once each.

        Args:
            output: What it wrote to standard error, with the lines of its filter `showinfo`.
            look: What the first picture of the source looks like to ffmpeg.
        """
        ticks = {Fraction(int(found[1]), int(found[2])) for found in _TIME_BASE.finditer(output)}
        shown = [int(found[1]) for found in _PICTURE.finditer(output)]
        if len(ticks) != 1 or not shown:
            raise UncertainError("the piece has no pictures")
        tick, begin, (first, last) = ticks.pop(), int(self.times[0]), self.pictures[[0, -1]].tolist()
        times = [(time - shown[0]) * tick / self.tick + begin for time in shown]
        if [time for time in times if first <= time <= last] != self.pictures.tolist():
            raise UncertainError("the piece has other pictures than expected")
        if not Look.read(output).fits(look):
            raise UncertainError("pictures have another size or other colors than the first one of the source")


@dataclass(frozen=True, slots=True)
class Look:
    """What pictures look like to ffmpeg's filter `showinfo`.

    Attributes:
        shapes: Their pixel formats and sizes, each once.
        aspects: Their pixels' ratios of width to height, each once.
        colors: Their ranges, matrices, primaries and transfer characteristics, each once.
    """

    shapes: frozenset[tuple[str, ...]] = frozenset()
    aspects: frozenset[Fraction] = frozenset()
    colors: frozenset[tuple[str, ...]] = frozenset()

    @classmethod
    def read(cls, output: bytes) -> Look:
        """Return what the pictures look like whose lines ffmpeg wrote."""
        pictures, colors = list(_PICTURE.finditer(output)), list(_COLORS.finditer(output))
        return cls(
            shapes=frozenset((found[2].decode(), found[5].decode()) for found in pictures),
            aspects=frozenset(Fraction(int(found[3]), int(found[4]) or 1) for found in pictures),
            colors=frozenset(tuple(part.decode() for part in found.groups()) for found in colors),
        )

    @property
    def aspect(self) -> Fraction:
        """The pixels' ratio of width to height; 1 if it is not known."""
        return next(iter(self.aspects), Fraction(1)) or Fraction(1)

    def known_colors(self) -> dict[str, str]:
        """Return the colors as arguments of ffmpeg's filter `setparams`, as far as they are known."""
        names = ("range", "colorspace", "color_primaries", "color_trc")
        values = next(iter(self.colors), ())
        return {name: value for name, value in zip(names, values, strict=False) if value not in _NOTHING}

    def fits(self, first: Look) -> bool:
        """Return whether these pictures look as their source's first one, but for what its container tells."""
        wanted = next(iter(first.colors), ())
        return (self.shapes, len(self.aspects)) == (first.shapes, len(first.aspects)) and all(
            value in (other, *_NOTHING) for values in self.colors for value, other in zip(values, wanted, strict=False)
        )


@dataclass(frozen=True, slots=True)
class Window:
    """The frames of a video that are stored.

    Attributes:
        first: The first frame.
        stop: The frame behind the last one; None for the end of the video.
        cut: What of the source is decoded, from a piece of it; None for all of the source.
        look: What the first picture of the source looks like.
    """

    first: int
    stop: int | None
    cut: Cut | None = None
    look: Look = Look()


def plan_cut(
    packets: Packets, source: SourceInfo, rate: Fraction, start: float, end: float | None, *, gaps: bool = False
) -> Cut | None:
    """Find the packets that a segment needs.

    Frame k shows the last picture whose time, rounded to frames, is not after k, as ffmpeg's filter `fps` has it.

    Args:
        packets: The packets of the source.
        source: What is inside it.
        rate: Frames per second of the stored video.
        start: Beginning of the segment in seconds since the first picture.
        end: End of the segment; None for the end of the source.
        gaps: Whether decoding may begin where it has to be tried out whether it can.

    Returns:
        The cut; None if the segment has no frames, since it begins after the source or is too short.

    Raises:
        UncertainError: It is not known when the source ends.
    """
    count, order = len(packets.order), packets.order
    times = packets.ranks if source.constant else packets.times - packets.times.min()
    tick = 1 / source.fps if source.constant else packets.tick
    place = times[order] - times[order[0]]
    last = 1 if source.constant else packets.last
    total, per_tick = ceil((int(place[-1]) + last) * tick * rate), tick * rate
    frames = packets.clock(source, rate).frames(start, end, total)
    first, stop = frames.start, frames.stop
    # A picture at time t is shown from frame floor(t * rate + 1/2) on.
    low = int(np.searchsorted(place, ceil((first + Fraction(1, 2)) / per_tick))) - 1
    high = int(np.searchsorted(place, ceil((stop - Fraction(1, 2)) / per_tick)))
    if high == count and (not last or source.interlaced):
        raise UncertainError("it is not known for how long the last picture is shown")
    if not frames:
        return None
    if source.interlaced:
        low, high = low - _FIELD_MARGIN, high + _FIELD_MARGIN
    wanted = order[max(0, low) : high + 1]
    entry = packets.entries.any | (packets.entries.gap if gaps else False)
    begin = int(np.flatnonzero(entry & (times <= times[wanted[0]]))[-1])
    behind = int(wanted.max()) + 1
    return Cut(
        first=begin,
        inside=not packets.entries.closed[begin],
        gap=bool(packets.entries.gap[begin]),
        times=times[begin:behind],
        pictures=times[wanted],
        shift=int(times[order[0]]),
        tick=tick,
        frames=frames,
        padding=stop - int(place[-1] * per_tick + Fraction(1, 2)) if high >= count else 0,
        near=(near := max(0, begin - _NEAR)),
        stored=packets.stored[near:behind],
        num_bytes=packets.num_bytes[near:behind],
        can_jump=begin > 0 and packets.is_timed,
    )


def write_piece(path: Path, source: SourceInfo, cut: Cut, out: Path) -> None:
    """Copy the packets of a cut to a file of their own: an MP4, which keeps rotation.

    Args:
        path: The source.
        source: What is inside it.
        cut: Which of its packets are copied.
        out: The file to write.

    Raises:
        UncertainError: The source has other packets than before, or they cannot be copied.
    """
    jumps = [True, False] if cut.can_jump else [False]
    try:
        for jump in jumps:
            try:
                _copy(path, source, cut, out, jump)
                if cut.gap and _decode(path, source, cut, jump) != _decode(path, source, replace(cut, gap=False), jump):
                    raise UncertainError("pictures need leading ones of the packet at which the piece begins")
                return
            except UncertainError:
                if not jump:
                    raise
    except (av.error.FFmpegError, OSError, ValueError) as error:  # trouble in writing comes again in decoding
        check_library_error(error)
        raise UncertainError(str(error)) from None


def _copy(path: Path, source: SourceInfo, cut: Cut, out: Path, jump: bool) -> None:
    """Copy the packets of a cut; raises UncertainError if others are found."""
    decoded = iter(_decoding_times(cut.times[cut.times >= cut.times[0]]).tolist())
    opened = kept.opened(path, source) if jump else open_source(path)
    with opened as container, av.open(str(out), "w", format="mp4", options=_MP4) as piece:
        stream = container.streams[source.stream]
        target = piece.add_stream_from_template(stream, opaque=True)
        target.time_base = cut.tick
        for time, packet in _found(container, stream, source, cut, jump):
            if time >= cut.times[0]:
                packet.stream, packet.time_base = target, cut.tick
                packet.pts, packet.dts, packet.duration = time, next(decoded), 0
                piece.mux(packet)


def _decode(path: Path, source: SourceInfo, cut: Cut, jump: bool) -> list[tuple[int, int]]:
    """Decode the packets of a cut, with the leading ones if it has a gap without them.

    Returns:
        Time and CRC-32 of each picture that is shown from the first packet on.
    """
    shown: list[tuple[int, int]] = []
    with open_source(path) as container:
        stream = container.streams[source.stream]
        stream.thread_count = 1
        for time, packet in [*_found(container, stream, source, cut, jump), (0, None)]:
            if packet is not None and not cut.gap and time < cut.times[0]:
                continue
            if packet is not None:
                packet.pts = packet.dts = time
            with suppress(av.error.FFmpegError):  # leading pictures lack what they refer to
                shown += [
                    (frame.pts, zlib.crc32(frame.to_ndarray()))
                    for frame in stream.codec_context.decode(packet)
                    if frame.pts >= cut.times[0]
                ]
    return shown


def _found(container: Any, stream: Any, source: SourceInfo, cut: Cut, jump: bool) -> Iterator[tuple[int, Any]]:
    """Yield the packets of a cut with the times at which they are shown.

    Raises:
        UncertainError: There are others than before; a jump may lead to the wrong place.
    """
    number: int | None = None if jump else 0
    if jump:
        earlier = _EARLIER / Fraction(stream.time_base) if source.container in JUMPY else 0
        container.seek(int(cut.stored[cut.first - cut.near] - earlier), stream=stream)
    for packet in demux(container, stream):
        if not packet.size:
            continue
        stored = stored_time(packet, source)
        if number is None:  # behind a jump
            number = next((cut.near + place for place in np.flatnonzero(cut.stored == stored).tolist()), None)
        if number is None:
            continue
        if jump and number > cut.first:
            break
        jump = False
        if number >= cut.first:
            place = number - cut.near
            if packet.size != cut.num_bytes[place] or stored not in (cut.stored[place], UNKNOWN):
                break
            yield int(cut.times[number - cut.first]), packet
        number += 1
        if number == cut.first + len(cut.times):
            return
    raise UncertainError("it has other packets than before")


def _decoding_times(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return times of decoding for packets with these times of showing: ascending, and none after its picture's."""
    ascending = np.sort(times)
    delay = int((np.arange(len(times)) - np.searchsorted(ascending, times)).max(initial=0))
    before = ascending[0] - np.arange(delay, 0, -1)
    return np.concatenate([before, ascending])[: len(times)]
