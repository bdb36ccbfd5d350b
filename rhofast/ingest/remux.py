"""Make a member of codec `remux`: copy the packets of a source into closed groups, and find damage.

    source --read all packets--> times, key frames --plan--> groups of the segment --copy--> member --decode--> damage

Groups begin where a decoder begins anew. The first group of a segment may begin at any other place at which decoding
can begin, without its leading pictures (data.codecs.entries), and the last may end before such a place.

The source is read twice (remux_source.py) and never held in memory; of the segments of one file, only the first one
reads all of it. What does not fit is an UnfitError before anything is written. Frames get the times of a constant rate,
in the order in which they are shown, whatever the source's clock says.

Frames that an edit list hides at the beginning or at the end are stored, as those around a segment are: groups are
whole, and the index says which of their frames belong to the sample.

With `check=full` every frame is decoded, as `ffmpeg` would, and what the decoder says counts (ffmpeg_messages.py). With
`check=keys` what counts is what the demuxer says, flags of damaged packets, and the key frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import Member
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.unfit import UnfitError
from rhofast.ingest.ffmpeg_messages import captured
from rhofast.ingest.machine_errors import WRITING, UnwritableError, check_library_error
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo
from rhofast.ingest.remux_source import RemuxPackets, check_messages, opened_at, packets_of

ResultT = TypeVar("ResultT")

# One fragment per key frame, of a file that no second pass completes, and no names of programs in it.
_MP4 = {"movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer", "fflags": "+bitexact"}


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
        packets = packets_of(path, source)
        cut = _plan(packets, codec, segment)
        _copy(path, source, packets, cut, out)
        with captured() as said, out.open("rb") as file:
            said.opened()
            try:
                member = codec.index_member(file, deep=codec.check == "full")
            except UnfitError:
                raise
            except ValueError as error:
                raise RefusedError(Refusal.DAMAGED, str(error)) from None
        check_messages(said.messages(source, inside=bool(packets.entries.open[cut.packets[0]])), path, source)
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


def _plan(packets: RemuxPackets, codec: RemuxCodec, segment: tuple[float | None, float | None]) -> _Cut:
    """Choose the groups that contain a segment.

    Raises:
        UnfitError: An edit list hides frames in the middle, the first group lacks its key frame, or one is too long.
        RefusedError: The segment, or the video, has no frames.
    """
    hidden, last, total = packets.visible
    if not total:
        raise RefusedError(Refusal.NO_FRAMES)
    if last - hidden + 1 != total:
        raise UnfitError(Refusal.HIDDEN_FRAMES, f"{last - hidden + 1 - total} in the middle")
    if not packets.entries.any[0]:
        raise UnfitError(Refusal.OTHER_FORMAT, "it does not begin with a key frame at which decoding can begin")
    frames = packets.clock.frames(*segment, total)
    if not frames:
        raise RefusedError(Refusal.OUTSIDE, "no frame is shown in the segment")
    ranks, begins, (ends, latest) = packets.rank, packets.begins, packets.ends
    first = int(begins[ranks[begins] <= hidden + frames[0]][-1])
    stop = int(ends[np.searchsorted(latest, hidden + frames[-1])])
    chosen = np.arange(first, stop)[ranks[first:stop] >= ranks[first]]
    groups = packets.entries.closed[chosen]
    groups[0] = True
    longest = int(np.diff(np.flatnonzero(np.append(groups, True))).max())
    if longest > codec.max_group:
        raise UnfitError(Refusal.LONG_GROUP, f"{longest} frames, more than max_group={codec.max_group}")
    lead = hidden + frames[0] - int(ranks[first])
    return _Cut(packets=chosen, begins=groups, lead=lead, num_frames=len(frames))


def _copy(path: Path, source: SourceInfo, packets: RemuxPackets, cut: _Cut, out: Path) -> None:
    """Write the chosen packets, with times of a constant rate; raises FFmpegError or UnwritableError."""
    first = int(cut.packets[0])
    ranks = packets.rank[cut.packets] - packets.rank[first]
    delay = int((np.arange(len(ranks)) - ranks).max())  # so that no picture is shown before it is decoded
    with ExitStack() as stack:
        stream, number, following = stack.enter_context(opened_at(path, source, packets, first))
        written = _write(out, lambda: av.open(str(out), "w", format="mp4", options=_MP4))
        stack.callback(lambda: _write(out, written.close))
        target = written.add_stream_from_template(stream, opaque=True)  # nothing is encoded
        target.time_base = 1 / source.fps
        for place, packet in _chosen(following, cut, number):
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


def _chosen(following: Iterator[Any], cut: _Cut, number: int) -> Iterator[tuple[int, Any]]:
    """Yield the packets of a cut with their places in it, out of those that follow, of which the first has a number."""
    wanted = enumerate(cut.packets.tolist())
    place, wanted_next = next(wanted)
    for packet in following:
        if not packet.size:
            continue
        if number == wanted_next:
            yield place, packet
            place, wanted_next = next(wanted, (-1, -1))
            if wanted_next < 0:
                return
        number += 1
