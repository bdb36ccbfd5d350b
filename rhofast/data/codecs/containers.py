"""Looking into a stored member: its packets, its fragments, its frames, decoded on the host with PyAV.

What it is not: it knows nothing of shards or of how a codec stores things (codecs.py). All take a binary file that can
seek, and read from its beginning; what cannot be read raises ValueError.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

Picture = npt.NDArray[np.uint8]

_THUMB = 16  # pixels a side of the picture whose mean is a frame's mean color; divides the sides of what we encode
_BT601 = (2, 5, 6)  # not specified, or said in one of two ways (ITU-T H.273, table 4)
_FULL_RANGE, _PROGRESSIVE = 2, 1  # AVColorRange, AVFieldOrder (0: not known)
_REORDERED = 4  # frames that a decoder on a device can be trusted to hold back until they are to be shown


@dataclass(frozen=True, slots=True)
class Packet:
    offset: int
    size: int
    is_key: bool


def open_container(file: BinaryIO, *, probe: bool = True) -> Any:
    """probe: decode a little, to find what the header does not say; that costs as much as some frames."""
    file.seek(0)
    try:
        return av.open(file, "r", options={} if probe else {"probesize": "32", "analyzeduration": "0"})
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"the stored member cannot be opened: {error}") from None


def video_stream(container: Any) -> Any:
    """The first video stream that the container calls a default, or else the first; never a cover picture, nor one that
    nothing can decode. Raises ValueError if there is none."""
    kind = av.stream.Disposition
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & kind.attached_pic
    ]
    if not streams:
        raise ValueError("no video stream")
    return next((stream for stream in streams if stream.disposition & kind.default), streams[0])


def read_packets(file: BinaryIO) -> tuple[int, int, Fraction, list[Packet]]:
    """(width, height, frame rate, packets in their order) of a member's video stream. The rate is 0 for one picture."""
    with open_container(file) as container:
        stream = video_stream(container)
        fps = Fraction(stream.average_rate or 0)
        size = int(stream.codec_context.width), int(stream.codec_context.height)
        try:
            packets = [
                Packet(int(packet.pos), int(packet.size), bool(packet.is_keyframe))
                for packet in container.demux(stream)
                if packet.size
            ]
        except av.error.FFmpegError as error:
            raise ValueError(f"the stored member cannot be read: {error}") from None
    return *size, fps, packets


def fragment_starts(file: BinaryIO) -> list[int]:
    """Offsets of the `moof` boxes of an MP4 (ISO/IEC 14496-12, 4.2): where its fragments begin."""
    end, offset, starts = file.seek(0, io.SEEK_END), 0, []
    while offset + 8 <= end:
        file.seek(offset)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack(">Q", head[8:])
        if kind == b"moof":
            starts.append(offset)
        if size < 8:
            break
        offset += size
    if offset != end:
        raise ValueError("the stored member is not a whole MP4")
    return starts


def checksums(file: BinaryIO, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """CRC-32 of the bytes between neighboring offsets."""
    file.seek(int(offsets[0]))
    return np.array([zlib.crc32(file.read(int(size))) for size in np.diff(offsets)], dtype=np.uint32)


def decode_all(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise ValueError(f"the stored member cannot be decoded: {error}") from None


def key_frame_colors(file: BinaryIO) -> npt.NDArray[np.float64]:
    """The mean color of each key frame: f64[N, 3] in 0..255."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        stream.codec_context.skip_frame = "NONKEY"
        return np.array([mean_color(frame) for frame in decode_all(container, stream)]).reshape(-1, 3)


def count_frames(file: BinaryIO) -> int:
    """How many frames come out of the decoder."""
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        return sum(1 for _ in decode_all(container, stream))


def mean_color(frame: Any) -> npt.NDArray[np.float64]:
    """The mean color of a frame, f64[3] in 0..255."""
    small = frame.reformat(width=_THUMB, height=_THUMB, format="rgb24", interpolation="AREA")
    mean: npt.NDArray[np.float64] = small.to_ndarray().reshape(-1, 3).mean(axis=0)
    return mean


@dataclass(frozen=True, slots=True)
class Timeline:
    """A stream's packets in the order of decoding, where it is sure which of them becomes which frame.

    packets  as demuxed
    rank     number of the frame that each packet becomes, i64[N]; -1 for one that is decoded and not shown
    entry    whether decoding can begin at it, bool[N]: no frame from there on, in either order, needs one before it
    """

    packets: list[Any]
    rank: npt.NDArray[np.int64]
    entry: npt.NDArray[np.bool_]

    def runs_for(self, frames: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
        """Runs (first, last) of packets that suffice for the distinct `frames`: each begins at an entry, and ends at
        the last packet that any wanted frame of its group is made of, since references only go back."""
        places = np.flatnonzero(np.isin(self.rank, frames))
        entries = np.flatnonzero(self.entry)
        groups = np.searchsorted(entries, places, side="right") - 1
        last = np.flatnonzero(np.diff(groups, append=len(entries)))  # of each group's wanted packets
        return list(zip(entries[groups[last]].tolist(), places[last].tolist(), strict=True))


_RESTARTING = {"mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}  # whose key frames always forget the past


def read_timeline(container: Any, stream: Any, num_frames: int) -> Timeline | None:
    """The packets of a stream of which it is known that `num_frames` frames come out. None where it is not sure which
    packet is which frame: without times, or where packets and frames are not one to one."""
    if container.format.name == "avi":  # its times are those of decoding
        return None
    try:
        packets = [packet for packet in container.demux(stream) if packet.size]
    except av.error.FFmpegError:
        return None  # decoding from the beginning may still get as far as is needed
    if any(packet.pts is None or packet.has_sidedata("new_extradata") for packet in packets):
        return None
    pts = np.array([packet.pts for packet in packets], dtype=np.int64)
    shown = np.array([not packet.is_discard for packet in packets], dtype=bool)
    if shown.sum() != num_frames or len(np.unique(pts)) < len(pts):
        return None
    rank = np.full(len(pts), -1)
    rank[np.flatnonzero(shown)[np.argsort(pts[shown])]] = np.arange(num_frames)
    # Nothing that is decoded before an entry is shown after it, and nothing decoded after it is shown before it.
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
    """Whether a decoder that begins at this key frame gives the same pictures as one that began earlier. In H.264 and
    HEVC a recovery point counts as a key frame too, after which pictures may still refer to earlier ones: there it must
    be an instantaneous refresh (ITU-T H.264, 7.4.1.2.4; H.265, 7.4.2.2), in an MP4's or Matroska's form."""
    if codec in _RESTARTING:
        return True
    if codec not in ("h264", "hevc") or extradata[:1] != b"\x01" or len(extradata) < 23:
        return False
    length = (extradata[4 if codec == "h264" else 21] & 3) + 1  # of the sizes of the NAL units
    content, at, kinds = memoryview(packet), 0, set()
    while at + length < len(content):
        kinds.add(content[at + length] & 31 if codec == "h264" else content[at + length] >> 1 & 63)
        at += length + int.from_bytes(content[at : at + length], "big")
    refreshes, others = ({5}, set(range(1, 5))) if codec == "h264" else ({19, 20}, set(range(19)) | {21, 22, 23})
    return bool(kinds & refreshes) and not kinds & others


def decode_wanted(
    file: BinaryIO, num_frames: int, frames: npt.NDArray[np.int32], *, probe: bool = True
) -> dict[int, Picture]:
    """RGB u8[H, W, 3], contiguous, of those of the distinct `frames` that come out of the decoder.

    num_frames: how many frames the whole file has, as an earlier decoding counted them. probe: look into the stream
    before decoding it; not needed where the header says everything. Only the packets are decoded that the frames need;
    where it is not sure which those are, all from the beginning.
    """
    with open_container(file, probe=probe) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        timeline = read_timeline(container, stream, num_frames)
        if timeline is not None:
            pictures = _decode_runs(stream, timeline, frames)
            if len(pictures) == len(frames):
                return pictures
    wanted, pictures, convert = set(frames.tolist()), {}, _converter()
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        for number, frame in enumerate(decode_all(container, stream)):
            if number in wanted:
                pictures[number] = convert(frame)
                if len(pictures) == len(wanted):
                    break
    return pictures


def _decode_runs(stream: Any, timeline: Timeline, frames: npt.NDArray[np.int32]) -> dict[int, Picture]:
    number_at = {timeline.packets[place].pts: int(timeline.rank[place]) for place in np.flatnonzero(timeline.rank >= 0)}
    wanted, pictures, convert = set(frames.tolist()), dict[int, Picture](), _converter()
    decoder = stream.codec_context
    try:
        for first, last in timeline.runs_for(frames):
            for packet in [*timeline.packets[first : last + 1], None]:
                for frame in decoder.decode(packet):
                    number = number_at.get(frame.pts)
                    if number is not None and number in wanted:
                        pictures[number] = convert(frame)
            decoder.flush_buffers()
    except av.error.FFmpegError:
        return {}  # where decoding from the beginning does better, it is done
    return dict(sorted(pictures.items()))


def _converter() -> Callable[[Any], Picture]:
    """To RGB, for many frames alike: setting up the conversion costs more than converting a small frame."""
    reformatter = VideoReformatter()

    def convert(frame: Any) -> Picture:
        # The decoder pads the rows of some widths; DALI takes none of that.
        return np.ascontiguousarray(reformatter.reformat(frame, format="rgb24").to_ndarray())

    return convert


def trim(
    file: BinaryIO, num_frames: int, frames: npt.NDArray[np.int32], takes: Collection[str]
) -> tuple[bytes, npt.NDArray[np.int32]] | None:
    """(an MP4 of just the packets that the distinct, ascending `frames` need, their numbers in it) for a decoder that
    takes streams of the codecs `takes` (FFmpeg's names), of 8 bits, 4:2:0, in the colors of BT.601, and reorders few
    frames. None where it cannot take this one, or it is not sure which packets those are. num_frames: as above."""
    with open_container(file) as container:
        stream = video_stream(container)
        decoder = stream.codec_context
        codec = decoder.codec.canonical_name
        is_plain = decoder.pix_fmt == "yuv420p" and decoder.colorspace in _BT601 and decoder.color_range != _FULL_RANGE
        # In H.264 a device may be given two fields of a frame as two pictures; others seldom say what they are.
        is_progressive = decoder.field_order == _PROGRESSIVE or (codec != "h264" and decoder.field_order == 0)
        if codec not in takes or not is_plain or not is_progressive:
            return None
        timeline = read_timeline(container, stream, num_frames)
        if timeline is None:
            return None
        kept = [place for first, last in timeline.runs_for(frames) for place in range(first, last + 1)]
        ranks = timeline.rank[kept]
        delay = np.maximum.accumulate(ranks) - ranks  # how far behind the latest frame one is shown
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
