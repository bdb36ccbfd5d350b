"""Read the packets of a source: when each is shown, and at which of them decoding can begin. cut.py cuts by them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import demux, open_source
from rhofast.data.codecs.timeline import parted, restarts
from rhofast.ingest.probe import JUMPY, SourceInfo

_UNTIMED = {"avi", *JUMPY}  # containers that store times of decoding, or whose clock may jump
_FIRST_PACKETS = 100  # the first picture is decoded from these
_SMALL = 16  # bytes; an MPEG-4 picture of fewer may be one that is not coded, which no decoder shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Packets:
    """The N packets of a source's video stream, in the order of decoding, and the P pictures that they become.

    Attributes:
        pts: When each is shown, in ticks, i64[N].
        num_bytes: Size of each in bytes, i32[N].
        entry: Whether decoding can begin at each, bool[N].
        order: Number of the packet that becomes each picture, in the order of showing, i64[P].
        tick: Seconds per tick.
        last: Ticks for which the last picture is shown; 0 if unknown.
    """

    pts: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int32]
    entry: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    tick: Fraction
    last: int


def read_packets(path: Path, source: SourceInfo) -> Packets | None:
    """Read the times of all packets of a source.

    Args:
        path: The source.
        source: What is inside it.

    Returns:
        The packets; None if they do not tell which of them becomes which picture.
    """
    if source.container in _UNTIMED:
        return None
    pts, sizes, shown, keys = list[int](), list[int](), list[bool](), list[bool]()
    durations, picture = list[int](), None
    try:
        with open_source(path) as container:
            stream = container.streams[source.stream]
            stream.thread_count = 1
            context = stream.codec_context
            for packet in demux(container, stream):
                if picture is None and len(pts) < _FIRST_PACKETS:
                    with suppress(av.error.FFmpegError):
                        picture = next(iter(packet.decode()), None)
                if not packet.size:
                    continue
                if packet.pts is None or packet.is_corrupt or (pts and packet.has_sidedata("new_extradata")):
                    return None
                pts.append(int(packet.pts))
                sizes.append(packet.size)
                shown.append(not packet.is_discard)
                keys.append(bool(packet.is_keyframe) and restarts(context, packet))
                durations.append(int(packet.duration or 0))
            tick = Fraction(stream.time_base or 0)
    except av.error.FFmpegError:
        return None  # decoding from the beginning finds out what is wrong
    if picture is None or not keys[0] or not tick or (source.codec == "mpeg4" and min(sizes) <= _SMALL):
        return None
    times, visible = np.array(pts, dtype=np.int64), np.array(shown)
    ascending = np.argsort(times, kind="stable")
    order = ascending[visible[ascending]]
    hidden = int(np.argmax(visible[ascending]))
    is_whole = visible[ascending][hidden : hidden + len(order)].all()  # an edit list hides nothing in the middle
    if not is_whole or (np.diff(times[ascending]) == 0).any():
        return None
    if len(order) != source.frames or picture.pts != times[order[0]]:
        return None
    return Packets(
        pts=times,
        num_bytes=np.array(sizes, dtype=np.int32),
        entry=np.array(keys) & parted(times),
        order=order,
        tick=tick,
        last=durations[int(order[-1])],
    )


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
