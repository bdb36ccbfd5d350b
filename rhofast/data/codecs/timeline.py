"""The timeline of a stream: which packet becomes which frame, and where decoding can begin.

    packets   0 1 2 3 | 4 5 6 7 | 8 9 ...     in the order of decoding
    frames    0 3 1 2 | 4 7 5 6 | 8 ...       the number of the frame that each packet becomes
    entries   ^         ^         ^           packets at which decoding can begin

part_decoding.py decodes by it. Of a file whose groups are known (`find_groups`), only the bytes of the needed ones have
to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import demux, fragment_starts, open_container, video_stream
from rhofast.data.codecs.entries import parted, restarts


@dataclass(frozen=True, slots=True)
class Timeline:
    """The N packets of a stream in the order of decoding, with the frame that each becomes.

    Attributes:
        packets: The packets as demuxed.
        rank: Number of the frame that each packet becomes, i64[N]; -1 for a packet that is decoded but not shown.
        entry: Whether decoding can begin at each packet, bool[N]: no later frame, in the order of decoding or of
            showing, needs an earlier one.
    """

    packets: list[Any]
    rank: npt.NDArray[np.int64]
    entry: npt.NDArray[np.bool_]

    def runs_for(self, frames: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
        """Return the runs of packets that must be decoded for the distinct `frames`.

        A run begins at an entry and ends at the last packet that becomes a wanted frame of its group, because
        references only go back.

        Returns:
            (first, last) packet of each run.
        """
        wanted = np.flatnonzero(np.isin(self.rank, frames))
        entries = np.flatnonzero(self.entry)
        groups = np.searchsorted(entries, wanted, side="right") - 1
        last = np.flatnonzero(np.diff(groups, append=len(entries)))  # the last wanted packet of each group
        return list(zip(entries[groups[last]].tolist(), wanted[last].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Group:
    """The packets from one entry up to the next, in a file where nothing else of the stream lies between them.

    Attributes:
        begin: Position of the first byte of its first packet.
        end: Position after the last byte of its last packet, or of what follows it up to the next group.
        first: Number of its first frame.
        count: Number of its frames, each of which is one packet.
    """

    begin: int
    end: int
    first: int
    count: int


def read_timeline(container: Any, stream: Any, num_frames: int) -> Timeline | None:
    """Read the timeline of a stream.

    Args:
        container: An opened container.
        stream: One of its video streams.
        num_frames: Number of frames that the whole stream decodes to.

    Returns:
        The timeline; None if it is not certain which packet becomes which frame, because packets have no times, or
        packets and frames are not one to one.
    """
    if container.format.name == "avi":  # AVI stores only times of decoding
        return None
    try:
        packets = [packet for packet in demux(container, stream) if packet.size]
    except av.error.FFmpegError:
        return None  # decoding from the beginning may still reach the wanted frames
    if any(packet.pts is None or packet.has_sidedata("new_extradata") for packet in packets):
        return None
    pts = np.array([packet.pts for packet in packets], dtype=np.int64)
    shown = np.array([not packet.is_discard for packet in packets], dtype=bool)
    if shown.sum() != num_frames or len(np.unique(pts)) < len(pts):
        return None
    rank = np.full(len(pts), -1)
    rank[np.flatnonzero(shown)[np.argsort(pts[shown])]] = np.arange(num_frames)
    apart = parted(pts)
    restarting = [
        number == 0 or (bool(apart[number]) and packet.is_keyframe and restarts(stream.codec_context, packet))
        for number, packet in enumerate(packets)
    ]
    return Timeline(packets, rank, np.array(restarting, dtype=bool))


def find_groups(file: BinaryIO, num_frames: int) -> list[Group] | None:
    """Find the groups of a file that can be read without the rest of it.

    The table of an MP4 or MOV must say where all packets are, before any of them is read. What it says is tried out.

    Args:
        file: The file, of any format.
        num_frames: Number of frames that it decodes to.

    Returns:
        The groups, in the order of their frames and of their bytes; None if the file has to be read as a whole.
    """
    with open_container(file, mp4=False, probe=False) as container:
        stream = video_stream(container)
        if "mp4" not in container.format.name or len(stream.index_entries) != num_frames or _is_fragmented(file):
            return None
        timeline = read_timeline(container, stream, num_frames)
        if timeline is None or (timeline.rank < 0).any() or any(packet.pos is None for packet in timeline.packets):
            return None
        begins = np.array([packet.pos for packet in timeline.packets], dtype=np.int64)
        ends = begins + [packet.size for packet in timeline.packets]
    if (begins[1:] < ends[:-1]).any():
        return None
    firsts = np.flatnonzero(timeline.entry)
    edges = np.append(begins[firsts], ends[-1]).tolist()
    counts = np.diff(firsts, append=num_frames).tolist()
    groups = [Group(*each) for each in zip(edges[:-1], edges[1:], firsts.tolist(), counts, strict=True)]
    with open_container(file, mp4=False, probe=False) as container:
        again = read_groups(container, video_stream(container), groups)
    return groups if again is not None and np.array_equal(again.rank, timeline.rank) else None


def _is_fragmented(file: BinaryIO) -> bool:
    """Return whether an MP4 lists packets beside its table, or has another layout than one of whole boxes."""
    position = file.tell()
    try:
        return bool(fragment_starts(file))
    except ValueError:
        return True
    finally:
        file.seek(position)


def read_groups(container: Any, stream: Any, groups: Sequence[Group]) -> Timeline | None:
    """Read the timeline of some groups of a file, and no other packets of the stream.

    Args:
        container: An opened container.
        stream: One of its video streams.
        groups: The groups, as `find_groups` found them.

    Returns:
        The timeline of the groups; None if they are not where they were.
    """
    packets: list[Any] = []
    ranks, entries, index = [], [], stream.index_entries
    try:
        for group in groups:
            if group.first >= len(index) or index[group.first].pos != group.begin:
                return None
            # It may go to an earlier entry, but not to a later one.
            container.seek(index[group.first].timestamp, stream=stream)
            found = _packets_between(container, stream, group)
            times = np.array([-1 if packet.pts is None else packet.pts for packet in found], dtype=np.int64)
            if len(found) != group.count or len(np.unique(times)) < len(times):
                return None
            packets += found
            ranks.append(group.first + times.argsort().argsort())
            entries += [True, *[False] * (group.count - 1)]
    except av.error.FFmpegError:
        return None
    return Timeline(packets, np.concatenate(ranks), np.array(entries, dtype=bool))


def _packets_between(container: Any, stream: Any, group: Group) -> list[Any]:
    found: list[Any] = []
    for packet in demux(container, stream):
        if packet.size and packet.pos is not None and packet.pos >= group.begin:
            if packet.pos >= group.end:
                break
            found.append(packet)
            if len(found) == group.count:
                break
    return found
