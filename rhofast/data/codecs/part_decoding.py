"""Decode or copy single frames of a stored member, without decoding all frames before them.

If the timeline of the stream is certain, frames are decoded from the entries before them on (timeline.py). Otherwise a
file is decoded from its beginning.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from rhofast.data.codecs.containers import Picture, decode_all, open_container, video_stream
from rhofast.data.codecs.entries import restarts
from rhofast.data.codecs.timeline import Group, Timeline, read_groups, read_timeline

_BT601 = (2, 5, 6)  # AVColorSpace: unspecified, or BT.601 with 625 or 525 lines (ITU-T H.273, table 4)
_FULL_RANGE, _PROGRESSIVE = 2, 1  # AVColorRange, AVFieldOrder (0: unknown)
_PADDING = 256  # pixels per side by which decoders enlarge frames: whole blocks, and edges around them
_REORDERED = 4  # frames that a decoder on a device reliably holds back until they are shown


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a stranger may have made, and what it has to be.

    Attributes:
        file: The file, which can seek.
        size: Width and height of its frames in pixels.
        mp4: Whether it is an MP4; otherwise any container that ingest takes.
        codecs: Codecs that its frames may have, by their FFmpeg names; any if it is empty.
        probe: Whether to look into the stream before decoding it; not needed if the header states everything.
        groups: The groups of which the file has the bytes; None if it is whole.
    """

    file: BinaryIO
    size: tuple[int, int]
    mp4: bool = True
    codecs: Collection[str] = ()
    probe: bool = True
    groups: Sequence[Group] | None = None

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

    def timeline(self, container: Any, stream: Any, num_frames: int) -> Timeline | None:
        """Return the timeline of what there is of the opened file; None if it is not certain."""
        if self.groups is not None:
            return read_groups(container, stream, self.groups)
        return read_timeline(container, stream, num_frames)


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
    pictures: dict[int, Picture] = {}
    with container:
        timeline = source.timeline(container, stream, num_frames)
        if timeline is not None:
            pictures = _decode_runs(stream, timeline, frames, source.size)
    if len(pictures) == len(frames) or source.groups is not None:
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
        if stream.codec_context.codec.canonical_name not in accepted:
            return None
        if source.probe and not _is_plain(stream.codec_context):
            return None
        timeline = source.timeline(container, stream, num_frames)
        if timeline is None:
            return None
        kept = [place for first, last in timeline.runs_for(frames) for place in range(first, last + 1)]
        ranks = timeline.rank[kept]
        delay = np.maximum.accumulate(ranks) - ranks  # how many frames later than the latest one each is shown
        found = np.flatnonzero(np.isin(ranks, frames))
        if (ranks < 0).any() or (delay > _REORDERED).any() or len(found) < len(frames):
            return None
        if not restarts(stream.codec_context, timeline.packets[kept[0]]):
            return None  # as may be at the beginning of a segment; not every device begins there
        sink = io.BytesIO()
        try:
            with av.open(sink, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as trimmed:
                target = trimmed.add_stream_from_template(stream, opaque=True)
                for place in kept:
                    packet = timeline.packets[place]
                    packet.stream = target
                    trimmed.mux(packet)
        except av.error.FFmpegError:  # as of MPEG-4 that was not looked into
            return None
    if not source.probe:
        with open_container(sink) as container:
            if not _is_plain(video_stream(container).codec_context):
                return None
    return sink.getvalue(), np.searchsorted(np.sort(ranks), frames).astype(np.int32)


def _is_plain(decoder: Any) -> bool:
    """Return whether frames are as a decoder on a device returns them; a file that was not looked into does not tell.

    An H.264 packet may hold one field of a frame; other codecs seldom state the field order.
    """
    is_progressive = decoder.field_order == _PROGRESSIVE or (
        decoder.codec.canonical_name != "h264" and decoder.field_order == 0
    )
    is_bt601 = decoder.colorspace in _BT601 and decoder.color_range != _FULL_RANGE
    return bool(decoder.pix_fmt == "yuv420p" and is_bt601 and is_progressive)
