"""Read a source that is stored as it is: its packets, and where a segment of it begins.

The packets of all segments of a file are read once. The file itself stays open while its segments are cut out.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import demux, open_source
from rhofast.data.codecs.entries import UNKNOWN, Entries, EntryFinder
from rhofast.data.codecs.remux import PIXEL_FORMATS
from rhofast.data.codecs.segment import Clock
from rhofast.data.codecs.unfit import UnfitError
from rhofast.ingest.ffmpeg_messages import Messages, captured, pictures_are_whole
from rhofast.ingest.kept_source import kept
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo

_MAX_DELAY = 32  # pictures, twice the most that a decoder holds back until they are shown


@dataclass(frozen=True)
class RemuxPackets:
    """The N packets of a source's video stream, in the order of decoding.

    Attributes:
        times: When each is shown, by the clock of the stream, i64[N].
        rank: Number of the frame that each becomes, in the order in which frames are shown, i64[N].
        shown: Whether it can be decoded, and an edit list leaves it visible, bool[N].
        entries: Where decoding can begin.
        tick: Seconds per tick.
        rate: Frames per second.
    """

    times: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    entries: Entries
    tick: Fraction
    rate: Fraction

    @cached_property
    def visible(self) -> tuple[int, int, int]:
        """Number of the first visible frame, of the last one, and how many there are."""
        ranks = self.rank[self.shown]
        return int(ranks.min(initial=len(self.rank))), int(ranks.max(initial=-1)), len(ranks)

    @cached_property
    def clock(self) -> Clock:
        """When the visible frames are shown."""
        return Clock.of(np.sort(self.times[self.shown]), self.tick, self.rate)

    @cached_property
    def begins(self) -> npt.NDArray[np.int64]:
        """Numbers of the packets at which decoding can begin, ascending."""
        return np.flatnonzero(self.entries.any)

    @cached_property
    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Packets before which a stream can end, since all before them are shown by then, and the last of these frames.

        The end of the source is the last of them.
        """
        latest = np.insert(np.maximum.accumulate(self.rank), 0, -1)
        places = np.append(self.entries.any & (latest[:-1] + 1 == np.arange(len(self.rank))), True)
        return np.flatnonzero(places), latest[places]


@dataclass(slots=True)
class _LastSource:
    """The source that this process read last, whose segments may follow.

    Attributes:
        key: What tells it from others; empty for none.
        packets: Its packets.
    """

    key: tuple[Any, ...] = ()
    packets: RemuxPackets | None = None


_last = _LastSource()


def packets_of(path: Path, source: SourceInfo) -> RemuxPackets:
    """Return the packets of a source, which is read unless it is the one of the last call, unchanged.

    Args:
        path: The source.
        source: What is inside it.

    Raises:
        UnfitError: They do not tell which frames they become, or pictures have a pixel format that is not stored.
        RefusedError: A packet is damaged.
        FFmpegError: The source cannot be read.
    """
    status = path.stat()
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns, source.stream)
    if key != _last.key or _last.packets is None:
        _last.key, _last.packets = (), None
        with captured() as said, open_source(path) as container:
            said.opened()
            stream = container.streams[source.stream]
            check_format(stream)
            packets = _read_packets(container, stream, source.fps)
        check_messages(said.messages(source), path, source)
        _last.key, _last.packets = key, packets
        return packets
    return _last.packets


def _read_packets(container: Any, stream: Any, rate: Fraction) -> RemuxPackets:
    """Read the times of all packets of a source of so many frames per second.

    Raises:
        UnfitError: They do not tell the order in which pictures are shown, or the decoder is set up anew in the middle.
        RefusedError: A packet is damaged.
        FFmpegError: The source cannot be read.
    """
    context, times, shown = stream.codec_context, array("q"), bytearray()
    finder = EntryFinder(context)
    timed = container.format.name != "avi" or not context.has_b_frames  # AVI stores times of decoding
    for packet in demux(container, stream):
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise RefusedError(Refusal.DAMAGED, f"packet {len(times)} is damaged")
        if packet.has_sidedata("new_extradata") and times:
            raise UnfitError(Refusal.CHANGING_SIZE, f"at packet {len(times)} another stream begins")
        time = _time_of(container, packet)
        times.append(UNKNOWN if time is None else time)
        shown.append(not packet.is_discard)
        finder.add(packet)
    pts = finder.times(np.array(times, dtype=np.int64))
    if pts is None or not timed:
        raise UnfitError(Refusal.OTHER_FORMAT, f"{container.format.name} does not say when pictures are shown")
    if len(np.unique(pts)) < len(pts):
        raise UnfitError(Refusal.VARIABLE_RATE, "several pictures have the same time")
    rank = np.empty(len(pts), dtype=np.int64)
    rank[np.argsort(pts)] = np.arange(len(pts))
    if len(pts) and np.abs(rank - np.arange(len(pts))).max() > _MAX_DELAY:
        raise UnfitError(Refusal.VARIABLE_RATE, "its clock jumps back")
    entries = finder.find(pts)
    visible = np.array(shown, dtype=bool) & ~entries.undecodable(pts)
    return RemuxPackets(pts, rank, visible, entries, Fraction(stream.time_base or 1), rate)


@contextmanager
def opened_at(
    path: Path, source: SourceInfo, packets: RemuxPackets, first: int
) -> Iterator[tuple[Any, int, Iterator[Any]]]:
    """Open a source near a packet; in the middle, it stays open for the next segment.

    Args:
        path: The source.
        source: What is inside it.
        packets: Its packets.
        first: Number of the packet.

    Yields:
        Its stream, the number of the packet that comes next, which is not behind `first`, and the packets from there.
    """
    found = None
    with ExitStack() as stack:
        if first > 0:
            container = stack.enter_context(kept.opened(path, source))
            found = _jump(container, source, packets, first)
        if found is None:
            container = stack.enter_context(open_source(path))
            found = 0, demux(container, container.streams[source.stream])
        yield container.streams[source.stream], *found


def _jump(container: Any, source: SourceInfo, packets: RemuxPackets, first: int) -> tuple[int, Iterator[Any]] | None:
    """Jump to a packet, or to one before it; return its number and the packets from there, None if it is not known."""
    stream = container.streams[source.stream]
    with suppress(av.error.FFmpegError):
        container.seek(int(packets.times[first]), stream=stream)
        following = demux(container, stream)
        for packet in following:
            found = np.flatnonzero(packets.times == _time_of(container, packet))
            return (int(found[0]), chain([packet], following)) if len(found) and found[0] <= first else None
    return None


def _time_of(container: Any, packet: Any) -> int | None:
    """Return when a packet is shown; AVI stores times of decoding only."""
    time: int | None = packet.dts if container.format.name == "avi" else packet.pts
    return time


def check_format(stream: Any) -> None:
    """Raise UnfitError if pictures have a pixel format that is not stored."""
    pixels = str(stream.codec_context.pix_fmt)
    if pixels not in PIXEL_FORMATS:
        raise UnfitError(Refusal.OTHER_FORMAT, f"pixel format {pixels}")


def check_messages(said: Messages, path: Path, source: SourceInfo) -> None:
    """Raise RefusedError if what FFmpeg said means that pictures are damaged."""
    if said.damage or (said.doubt and not pictures_are_whole(path, source)):
        raise RefusedError(Refusal.DAMAGED, said.damage or said.doubt)
