"""Make a member of codec `remux`: copy the packets of a source into closed groups, and find damage.

    source --read all packets--> times, key frames --plan--> groups of the segment --copy--> member --decode--> damage

Groups begin where a decoder begins anew. The first group of a segment may begin at any other place at which decoding
can begin, without its leading pictures (data.codecs.entries), and the last may end before such a place.

The source is read twice and never held in memory; of the segments of one file, only the first one reads all of it. What
does not fit is an UnfitError before anything is written. Frames get the times of a constant rate, in the order in which
they are shown, whatever the source's clock says.

Frames that an edit list hides at the beginning or at the end are stored, as those around a segment are: groups are
whole, and the index says which of their frames belong to the sample.

With `check=full` every frame is decoded, as `ffmpeg` would, and what the decoder says counts (ffmpeg_messages.py). With
`check=keys` what counts is what the demuxer says, flags of damaged packets, and the key frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import Member
from rhofast.data.codecs.containers import demux, open_source
from rhofast.data.codecs.entries import Entries, EntryFinder
from rhofast.data.codecs.remux import PIXEL_FORMATS, RemuxCodec
from rhofast.data.codecs.segment import Clock
from rhofast.data.codecs.unfit import UnfitError
from rhofast.ingest.ffmpeg_messages import Messages, captured, pictures_are_whole
from rhofast.ingest.machine_errors import WRITING, UnwritableError, check_library_error
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo

_MAX_DELAY = 32  # pictures, twice the most that a decoder holds back until they are shown

ResultT = TypeVar("ResultT")

# One fragment per key frame, of a file that no second pass completes, and no names of programs in it.
_MP4 = {"movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer", "fflags": "+bitexact"}


@dataclass(frozen=True, slots=True)
class _Packets:
    """The N packets of a source's video stream, in the order of decoding.

    Attributes:
        times: When each is shown, by the clock of the stream, i64[N].
        rank: Number of the frame that each becomes, in the order in which frames are shown, i64[N].
        shown: Whether it can be decoded, and an edit list leaves it visible, bool[N].
        entries: Where decoding can begin.
        tick: Seconds per tick.
    """

    times: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    entries: Entries
    tick: Fraction


_last: dict[tuple[Any, ...], _Packets] = {}  # of the source that this process read last


@dataclass(frozen=True, slots=True)
class _Cut:
    """What of a source is stored.

    Attributes:
        packets: Their numbers, ascending, i64[...].
        begins: Which of them begin a group, bool[...].
        lead: Number of stored frames before the sample's first one.
        num_frames: Number of frames of the sample.
    """

    packets: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_]
    lead: int
    num_frames: int


def remux(
    path: Path, source: SourceInfo, codec: RemuxCodec, segment: tuple[float | None, float | None], out: Path
) -> Member:
    """Make the member of one source, or of a segment of it.

    Args:
        path: The source.
        source: What is inside it.
        codec: The codec.
        segment: Beginning and end in seconds since the first shown picture; None for those of the video.
        out: The file to write.

    Returns:
        What is in the member.

    Raises:
        UnfitError: The source cannot be stored as it is.
        RefusedError: It is damaged, or the segment has no frames.
        UnreadableError: It cannot be read.
        UnwritableError: `out` cannot be written.
    """
    check_kind(source)
    try:
        packets = _packets_of(path, source)
        cut = _plan(packets, source, codec, segment)
        _copy(path, source, packets, cut, out)
        with captured() as said, out.open("rb") as file:
            said.opened()
            try:
                member = codec.index_member(file, deep=codec.check == "full")
            except UnfitError:
                raise
            except ValueError as error:
                raise RefusedError(Refusal.DAMAGED, str(error)) from None
        _check_messages(said.messages(source, inside=bool(packets.entries.open[cut.packets[0]])), path, source)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, UnfitError):
            raise
        check_library_error(error)
        raise RefusedError(Refusal.DAMAGED, str(getattr(error, "strerror", "") or error)) from None
    units = replace(
        member.units,
        frame=(member.units.frame - cut.lead).astype(np.int32),
        after=member.num_frames - cut.lead - cut.num_frames,
    )
    return replace(member, num_frames=cut.num_frames, fps=source.fps, units=units)


def check_kind(source: SourceInfo) -> None:
    """Raise UnfitError if a source cannot be stored without encoding it, as far as its description tells."""
    if source.codec not in RemuxCodec.streams:
        raise UnfitError(Refusal.OTHER_FORMAT, f"codec {source.codec}, not {', '.join(RemuxCodec.streams)}")
    if source.mirrored or source.rotation:
        raise UnfitError(Refusal.ROTATED, f"by {source.rotation} degrees{', mirrored' if source.mirrored else ''}")
    if source.interlaced:
        raise UnfitError(Refusal.INTERLACED, "pictures are pairs of fields")
    if source.hdr:
        raise UnfitError(Refusal.OTHER_FORMAT, "high dynamic range, which has to be tone-mapped")
    if not source.constant:
        raise UnfitError(Refusal.VARIABLE_RATE, f"{float(source.fps):.2f} frames/s on average")


def check_format(stream: Any) -> None:
    """Raise UnfitError if pictures have a pixel format that is not stored."""
    pixels = str(stream.codec_context.pix_fmt)
    if pixels not in PIXEL_FORMATS:
        raise UnfitError(Refusal.OTHER_FORMAT, f"pixel format {pixels}")


def _packets_of(path: Path, source: SourceInfo) -> _Packets:
    """Return the packets of a source, which is read unless it is the one of the last call, unchanged."""
    status = path.stat()
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns, source.stream)
    if key not in _last:
        _last.clear()
        with captured() as said, open_source(path) as container:
            said.opened()
            stream = container.streams[source.stream]
            check_format(stream)
            packets = _read_packets(container, stream)
        _check_messages(said.messages(source), path, source)
        _last[key] = packets
    return _last[key]


def _read_packets(container: Any, stream: Any) -> _Packets:
    """Read the times of all packets.

    Raises:
        UnfitError: They do not tell the order in which pictures are shown, or the decoder is set up anew in the middle.
        RefusedError: A packet is damaged.
        FFmpegError: The source cannot be read.
    """
    context, times, shown = stream.codec_context, list[int | None](), list[bool]()
    finder = EntryFinder(context)
    timed = container.format.name != "avi" or not context.has_b_frames  # AVI stores times of decoding
    for packet in demux(container, stream):
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise RefusedError(Refusal.DAMAGED, f"packet {len(times)} is damaged")
        if packet.has_sidedata("new_extradata") and times:
            raise UnfitError(Refusal.CHANGING_SIZE, f"at packet {len(times)} another stream begins")
        times.append(_time_of(container, packet))
        shown.append(not packet.is_discard)
        finder.add(packet)
    pts = finder.times(times)
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
    return _Packets(pts, rank, visible, entries, Fraction(stream.time_base or 1))


def _plan(packets: _Packets, source: SourceInfo, codec: RemuxCodec, segment: tuple[float | None, float | None]) -> _Cut:
    """Choose the groups that contain a segment.

    Raises:
        UnfitError: An edit list hides frames in the middle, the first group lacks its key frame, or one is too long.
        RefusedError: The segment, or the video, has no frames.
    """
    visible = np.sort(packets.rank[packets.shown])
    if not len(visible):
        raise RefusedError(Refusal.NO_FRAMES)
    hidden, total = int(visible[0]), len(visible)
    if visible[-1] - hidden + 1 != total:
        raise UnfitError(Refusal.HIDDEN_FRAMES, f"{visible[-1] - hidden + 1 - total} in the middle")
    if not packets.entries.any[0]:
        raise UnfitError(Refusal.OTHER_FORMAT, "it does not begin with a key frame at which decoding can begin")
    frames = Clock.of(np.sort(packets.times[packets.shown]), packets.tick, source.fps).frames(*segment, total)
    if not frames:
        raise RefusedError(Refusal.OUTSIDE, "no frame is shown in the segment")
    ranks, entry = packets.rank, packets.entries.any
    first = int(np.flatnonzero(entry & (ranks <= hidden + frames[0]))[-1])
    # A group ends where another begins, if all of its pictures are shown by then.
    latest = np.maximum.accumulate(ranks)
    ends = entry & (np.insert(latest[:-1], 0, -1) + 1 == np.arange(len(ranks)))
    stop = int(np.flatnonzero(np.append(ends, True) & (np.insert(latest, 0, -1) >= hidden + frames[-1]))[0])
    chosen = np.arange(first, stop)[ranks[first:stop] >= ranks[first]]
    begins = packets.entries.closed[chosen]
    begins[0] = True
    longest = int(np.diff(np.flatnonzero(np.append(begins, True))).max())
    if longest > codec.max_group:
        raise UnfitError(Refusal.LONG_GROUP, f"{longest} frames, more than max_group={codec.max_group}")
    lead = hidden + frames[0] - int(ranks[first])
    return _Cut(packets=chosen, begins=begins, lead=lead, num_frames=len(frames))


def _copy(path: Path, source: SourceInfo, packets: _Packets, cut: _Cut, out: Path) -> None:
    """Write the chosen packets, with times of a constant rate; raises FFmpegError or UnwritableError."""
    first = int(cut.packets[0])
    ranks = packets.rank[cut.packets] - packets.rank[first]
    delay = int((np.arange(len(ranks)) - ranks).max())  # so that no picture is shown before it is decoded
    with ExitStack() as stack:
        container, stream, number = _open_at(path, source, packets, first)
        stack.callback(container.close)
        written = _write(out, lambda: av.open(str(out), "w", format="mp4", options=_MP4))
        stack.callback(lambda: _write(out, written.close))
        target = written.add_stream_from_template(stream, opaque=True)  # nothing is encoded
        target.time_base = 1 / source.fps
        for place, packet in _chosen(container, stream, cut, number):
            copied = av.Packet(bytes(packet))  # without flags and side data that mean nothing here
            copied.stream, copied.time_base = target, 1 / source.fps
            copied.dts, copied.pts, copied.duration = place, int(ranks[place]) + delay, 1
            copied.is_keyframe = bool(cut.begins[place])
            _write(out, partial(written.mux, copied))


def _write(out: Path, call: Callable[[], ResultT]) -> ResultT:
    """Call what writes a member; raise UnwritableError if the machine does not let it."""
    try:
        return call()
    except OSError as error:
        if error.errno in WRITING:
            raise UnwritableError(error.errno, str(out.parent)) from None
        raise


def _open_at(path: Path, source: SourceInfo, packets: _Packets, first: int) -> tuple[Any, Any, int]:
    """Open a source near a packet.

    Args:
        path: The source.
        source: What is inside it.
        packets: Its packets.
        first: Number of the packet.

    Returns:
        The opened container, which the caller closes, its stream, and the number of the packet that comes next; it is
        not behind `first`.
    """
    number = 0
    if first > 0:
        with suppress(av.error.FFmpegError), open_source(path) as container:
            stream = container.streams[source.stream]
            container.seek(int(packets.times[first]), stream=stream)
            found = np.flatnonzero(packets.times == _time_of(container, next(demux(container, stream))))
            number = int(found[0]) if len(found) and found[0] <= first else 0
    container = open_source(path)
    stream = container.streams[source.stream]
    if number:  # the same way again, which gives the same packets
        container.seek(int(packets.times[first]), stream=stream)
    return container, stream, number


def _time_of(container: Any, packet: Any) -> int | None:
    """Return when a packet is shown; AVI stores times of decoding only."""
    time: int | None = packet.dts if container.format.name == "avi" else packet.pts
    return time


def _chosen(container: Any, stream: Any, cut: _Cut, number: int) -> Iterator[tuple[int, Any]]:
    """Yield the packets of a cut with their places in it; the first that the container gives is packet `number`."""
    wanted = enumerate(cut.packets.tolist())
    place, following = next(wanted)
    for packet in demux(container, stream):
        if not packet.size:
            continue
        if number == following:
            yield place, packet
            place, following = next(wanted, (-1, -1))
            if following < 0:
                return
        number += 1


def _check_messages(said: Messages, path: Path, source: SourceInfo) -> None:
    """Raise RefusedError if what FFmpeg said means that pictures are damaged."""
    if said.damage or (said.doubt and not pictures_are_whole(path, source)):
        raise RefusedError(Refusal.DAMAGED, said.damage or said.doubt)
