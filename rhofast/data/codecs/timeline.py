"""Decode or copy single frames of a stored member, without decoding all frames before them.

    packets   0 1 2 3 | 4 5 6 7 | 8 9 ...     in the order of decoding
    frames    0 3 1 2 | 4 7 5 6 | 8 ...       the number of the frame that each packet becomes
    entries   ^         ^         ^           packets at which decoding can begin

For frames 5 and 6, packets 4 to 7 are decoded. This is done only if the timeline of the stream is certain: which packet
becomes which frame, and where decoding can begin. Otherwise a file is decoded from its beginning.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from rhofast.data.codecs.containers import Picture, decode_all, demux, open_container, video_stream

_BT601 = (2, 5, 6)  # AVColorSpace: unspecified, or BT.601 with 625 or 525 lines (ITU-T H.273, table 4)
_FULL_RANGE, _PROGRESSIVE = 2, 1  # AVColorRange, AVFieldOrder (0: unknown)
_PADDING = 256  # pixels per side by which decoders enlarge frames: whole blocks, and edges around them
_REORDERED = 4  # frames that a decoder on a device reliably holds back until they are shown


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


_RESTARTING = {"mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}  # their key frames never depend on the past


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
    # At an entry, no packet that is decoded earlier is shown later, and none that is decoded later is shown earlier.
    later = np.append(np.minimum.accumulate(pts[::-1])[::-1][1:], np.iinfo(np.int64).max)
    earlier = np.insert(np.maximum.accumulate(pts)[:-1], 0, np.iinfo(np.int64).min) if len(pts) else pts
    parted = (earlier < pts) & (pts < later)
    extradata = stream.codec_context.extradata or b""
    entry = [
        number == 0 or (bool(apart) and packet.is_keyframe and _restarts(stream.codec_context.name, extradata, packet))
        for number, (apart, packet) in enumerate(zip(parted, packets, strict=True))
    ]
    return Timeline(packets, rank, np.array(entry, dtype=bool))


def _restarts(codec: str, extradata: bytes, packet: Any) -> bool:
    """Return whether a decoder that begins at this key frame gives the same pictures as one that began earlier.

    In H.264 and HEVC a recovery point counts as a key frame too, but pictures after it may still refer to earlier ones.
    There the packet must be an instantaneous refresh (ITU-T H.264, 7.4.1.2.4; H.265, 7.4.2.2), in the form of MP4 or
    Matroska.
    """
    if codec in _RESTARTING:
        return True
    if codec not in ("h264", "hevc") or extradata[:1] != b"\x01" or len(extradata) < 23:
        return False
    length = (extradata[4 if codec == "h264" else 21] & 3) + 1  # bytes of the size before each NAL unit
    content, offset, kinds = memoryview(packet), 0, set()
    while offset + length < len(content):
        header = content[offset + length]
        kinds.add(header & 31 if codec == "h264" else header >> 1 & 63)
        offset += length + int.from_bytes(content[offset : offset + length], "big")
    refreshes, others = ({5}, set(range(1, 5))) if codec == "h264" else ({19, 20}, set(range(19)) | {21, 22, 23})
    return bool(kinds & refreshes) and not kinds & others


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a stranger may have made, and what it has to be.

    Attributes:
        file: The file, which can seek.
        size: Width and height of its frames in pixels.
        mp4: Whether it is an MP4; otherwise any container that ingest takes.
        codecs: Codecs that its frames may have, by their FFmpeg names; any if it is empty.
        probe: Whether to look into the stream before decoding it; not needed if the header states everything.
    """

    file: BinaryIO
    size: tuple[int, int]
    mp4: bool = True
    codecs: Collection[str] = ()
    probe: bool = True

    def open(self) -> tuple[Any, Any]:
        """Return the opened container, which the caller closes, and its video stream, for one thread.

        Raises:
            ValueError: The file cannot be opened, or its frames are not as they have to be.
        """
        container = open_container(self.file, mp4=self.mp4, probe=self.probe)
        try:
            stream = video_stream(container)
            context = stream.codec_context
            if self.codecs and context.codec.canonical_name not in self.codecs:
                raise ValueError(f"its codec is {context.codec.canonical_name}, not {' or '.join(self.codecs)}")
            # A container may round sizes up; what the decoder returns is compared exactly.
            width, height = (side + _PADDING for side in self.size)
            if context.width > width or context.height > height:
                raise ValueError(_other_size(context, self.size))
        except ValueError:
            container.close()
            raise
        stream.thread_count = 1
        context.options = {"max_pixels": str(width * height)}
        return container, stream


def _other_size(frame: Any, size: tuple[int, int]) -> str:
    return f"its frames are {frame.width}x{frame.height}, not {size[0]}x{size[1]}"


def decode_wanted(source: Source, num_frames: int, frames: npt.NDArray[np.int32]) -> dict[int, Picture]:
    """Decode some frames of a file.

    Only the packets that the frames need are decoded; if these are not certain, all packets from the beginning.

    Args:
        source: The file.
        num_frames: Number of frames of the whole file, as counted by an earlier decoding.
        frames: The wanted frames, i32[F], distinct.

    Returns:
        Frame number -> RGB u8[H, W, 3], contiguous, for each wanted frame that could be decoded.

    Raises:
        ValueError: The file cannot be decoded.
    """
    container, stream = source.open()
    with container:
        timeline = read_timeline(container, stream, num_frames)
        if timeline is not None:
            pictures = _decode_runs(stream, timeline, frames, source.size)
            if len(pictures) == len(frames):
                return pictures
    wanted, pictures, convert = set(frames.tolist()), {}, _converter(source.size)
    container, stream = replace(source, probe=True).open()
    with container:
        for number, frame in enumerate(decode_all(container, stream)):
            if number in wanted:
                pictures[number] = convert(frame)
                if len(pictures) == len(wanted):
                    break
    return pictures


def _decode_runs(
    stream: Any, timeline: Timeline, frames: npt.NDArray[np.int32], size: tuple[int, int]
) -> dict[int, Picture]:
    frame_at = {timeline.packets[place].pts: int(timeline.rank[place]) for place in np.flatnonzero(timeline.rank >= 0)}
    wanted, pictures, convert = set(frames.tolist()), dict[int, Picture](), _converter(size)
    decoder = stream.codec_context
    try:
        for first, last in timeline.runs_for(frames):
            for packet in [*timeline.packets[first : last + 1], None]:
                for frame in decoder.decode(packet):
                    number = frame_at.get(frame.pts)
                    if number is not None and number in wanted:
                        pictures[number] = convert(frame)
            decoder.flush_buffers()
    except av.error.FFmpegError:
        return {}  # the caller then decodes from the beginning
    return dict(sorted(pictures.items()))


def _converter(size: tuple[int, int]) -> Callable[[Any], Picture]:
    """Return a conversion to RGB for many frames of a size: setting it up costs more than converting a small frame."""
    reformatter = VideoReformatter()

    def convert(frame: Any) -> Picture:
        if (frame.width, frame.height) != size:  # a stream may change it at any frame
            raise ValueError(_other_size(frame, size))
        # The decoder pads the rows of some widths, which DALI does not accept.
        return np.ascontiguousarray(reformatter.reformat(frame, format="rgb24").to_ndarray())

    return convert


def trim(
    source: Source, num_frames: int, frames: npt.NDArray[np.int32], accepted: Collection[str]
) -> tuple[bytes, npt.NDArray[np.int32]] | None:
    """Copy the packets that some frames need to a new MP4, for a video decoder on a device.

    The decoder must accept streams of 8 bits, 4:2:0, progressive, in the colors of BT.601, with few reordered frames.

    Args:
        source: The file.
        num_frames: Number of frames of the whole file, as counted by an earlier decoding.
        frames: The wanted frames, i32[F], distinct and ascending.
        accepted: Codecs that the decoder accepts, by their FFmpeg names.

    Returns:
        The MP4, and the numbers of the wanted frames in it, i32[F]; None if the decoder does not accept the stream, or
        the packets that the frames need are not certain.

    Raises:
        ValueError: The file cannot be opened.
    """
    container, stream = source.open()
    with container:
        decoder = stream.codec_context
        codec = decoder.codec.canonical_name
        is_plain = decoder.pix_fmt == "yuv420p" and decoder.colorspace in _BT601 and decoder.color_range != _FULL_RANGE
        # An H.264 packet may hold one field of a frame; other codecs seldom state the field order.
        is_progressive = decoder.field_order == _PROGRESSIVE or (codec != "h264" and decoder.field_order == 0)
        if codec not in accepted or not is_plain or not is_progressive:
            return None
        timeline = read_timeline(container, stream, num_frames)
        if timeline is None:
            return None
        kept = [place for first, last in timeline.runs_for(frames) for place in range(first, last + 1)]
        ranks = timeline.rank[kept]
        delay = np.maximum.accumulate(ranks) - ranks  # how many frames later than the latest one each is shown
        found = np.flatnonzero(np.isin(ranks, frames))
        if (ranks < 0).any() or (delay > _REORDERED).any() or len(found) < len(frames):
            return None
        sink = io.BytesIO()
        with av.open(sink, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as trimmed:
            target = trimmed.add_stream_from_template(stream)
            for place in kept:
                packet = timeline.packets[place]
                packet.stream = target
                trimmed.mux(packet)
        return sink.getvalue(), np.searchsorted(np.sort(ranks), frames).astype(np.int32)
