"""Read the packets of a source: when each is shown, and at which of them decoding can begin. cut.py cuts by them.

    container with times --read--> times of packets
    container without, or with a clock that jumps --decode once--> order of pictures, at a constant rate

What is decoded to find the order of pictures is not kept: all segments of a file share the order.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import demux, open_source
from rhofast.data.codecs.entries import UNKNOWN, Entries, EntryFinder
from rhofast.data.codecs.segment import Clock
from rhofast.ingest.probe import JUMP, JUMPY, SourceInfo

_FIRST_PACKETS = 100  # the first picture is decoded from these
_SMALL = 16  # bytes; an MPEG-4 picture of fewer may be one that is not coded, which no decoder shows


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The N packets of a source's video stream, in the order of decoding, and the P pictures that they become.

    Attributes:
        times: When each is shown, in ticks, i64[N].
        stored: What the container says of that, in its own ticks; UNKNOWN where it says nothing, i64[N].
        num_bytes: Size of each in bytes, i32[N].
        entries: Where decoding can begin.
        order: Number of the packet that becomes each picture, in the order of showing, i64[P].
        tick: Seconds per tick; one picture, if only their order is known.
        last: Ticks for which the last picture is shown; 0 if unknown.
        is_timed: Whether the container tells all of that, so that a jump into it can be checked.
    """

    stored: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int32]
    entries: Entries
    order: npt.NDArray[np.int64]
    tick: Fraction
    last: int
    is_timed: bool

    @cached_property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Number of each packet in the order of showing, i64[N]."""
        return np.argsort(np.argsort(self.times))

    def clock(self, source: SourceInfo, rate: Fraction) -> Clock:
        """Return when the frames of the whole video are shown.

        Args:
            source: What is inside the source.
            rate: Frames per second of the stored video.
        """
        is_kept = source.constant and rate == source.fps
        return Clock.of(self.times[self.order], self.tick, rate) if is_kept else Clock(rate)


def read_packets(path: Path, source: SourceInfo) -> Packets | None:
    """Read the times of all packets of a source.

    Args:
        path: The source.
        source: What is inside it.

    Returns:
        The packets; None if they do not tell which of them becomes which picture.
    """
    stored, dts, durations = array("q"), array("q"), array("q")
    sizes, shown, picture = array("i"), bytearray(), None
    try:
        with open_source(path) as container:
            stream = container.streams[source.stream]
            stream.thread_count = 1
            finder, reordered = EntryFinder(stream.codec_context), bool(stream.codec_context.has_b_frames)
            for packet in demux(container, stream):
                if picture is None and len(stored) < _FIRST_PACKETS:
                    with suppress(av.error.FFmpegError):
                        picture = next(iter(packet.decode()), None)
                if not packet.size:
                    continue
                if packet.is_corrupt or (stored and packet.has_sidedata("new_extradata")):
                    return None
                stored.append(stored_time(packet, source))
                dts.append(UNKNOWN if packet.dts is None else int(packet.dts))
                sizes.append(packet.size)
                shown.append(not packet.is_discard)
                finder.add(packet)
                durations.append(int(packet.duration or 0))
            tick = Fraction(stream.time_base or 0)
    except av.error.FFmpegError:
        return None  # decoding from the beginning finds out what is wrong
    if picture is None or not tick or (source.codec == "mpeg4" and min(sizes) <= _SMALL):
        return None
    told = np.array(stored, dtype=np.int64)
    times = finder.times(told)
    is_timed = times is not None and _has_clock(dts, source, tick, reordered=reordered)
    if times is not None and is_timed:
        first = picture.dts if source.container == "avi" else picture.pts
    elif source.constant and all(shown):
        found = _order_of_pictures(path, source, len(stored))
        if found is None:
            return None
        times, tick, durations, first = found, 1 / source.fps, array("q", [1]) * len(stored), 0
    else:
        return None
    entries = finder.find(times)
    if not entries.any[0]:
        return None
    ascending, lost = np.argsort(times, kind="stable"), entries.undecodable(times)
    visible = (np.array(shown, dtype=bool) & ~lost)[ascending]
    order = ascending[visible]
    hidden = int(np.argmax(visible))
    is_whole = visible[hidden : hidden + len(order)].all()  # an edit list hides nothing in the middle
    if not is_whole or (np.diff(times[ascending]) == 0).any():
        return None
    if not len(order) or sum(shown) != source.frames or first != times[order[0]]:
        return None
    return Packets(
        stored=told,
        times=times,
        num_bytes=np.array(sizes, dtype=np.int32),
        entries=entries,
        order=order,
        tick=tick,
        last=durations[int(order[-1])],
        is_timed=is_timed,
    )


def stored_time(packet: Any, source: SourceInfo) -> int:
    """Return when a packet is shown, as the container has it, in ticks; of AVI, when it is decoded."""
    time = packet.dts if source.container == "avi" else packet.pts
    return UNKNOWN if time is None else int(time)


def _has_clock(decoded: array[int], source: SourceInfo, tick: Fraction, *, reordered: bool) -> bool:
    """Return whether the times of a container are those of showing, by a clock that does not jump.

    Args:
        decoded: When each is decoded, in ticks.
        source: What is inside it.
        tick: Seconds per tick.
        reordered: Whether pictures are decoded in another order than they are shown.
    """
    if source.container not in JUMPY:
        return source.container != "avi" or not reordered
    steps = np.diff(np.array(decoded, dtype=np.float64))
    return UNKNOWN not in decoded and bool(((steps >= 0) & (steps * float(tick) < JUMP)).all())


def _order_of_pictures(path: Path, source: SourceInfo, count: int) -> npt.NDArray[np.int64] | None:
    """Decode a source, and return the number of the picture that each of its packets becomes.

    Args:
        path: The source.
        source: What is inside it.
        count: Number of its packets.

    Returns:
        The numbers, i64[count]; None if packets and pictures are not one to one.
    """
    shown = list[Any]()
    try:
        with open_source(path) as container:
            stream = container.streams[source.stream]
            stream.thread_count = 1
            stream.codec_context.options = {"skip_loop_filter": "all"}  # only their order counts
            packets = (packet for packet in demux(container, stream) if packet.size)
            for number, packet in enumerate(packets):
                packet.pts = packet.dts = number
                shown += [frame.pts for frame in stream.codec_context.decode(packet)]
            shown += [frame.pts for frame in stream.codec_context.decode(None)]
    except av.error.FFmpegError:
        return None
    if None in shown or sorted(shown) != list(range(count)):
        return None
    return np.argsort(np.array(shown, dtype=np.int64))


def count_pictures(path: Path, source: SourceInfo) -> int:
    """Decode a source and return the number of its pictures, up to the first error.

    Args:
        path: The source.
        source: What is inside it.
    """
    count = 0
    with suppress(av.error.FFmpegError), open_source(path) as container:
        stream = container.streams[source.stream]
        stream.thread_count = 1
        for packet in demux(container, stream):
            count += len(packet.decode())
    return count
