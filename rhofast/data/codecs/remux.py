"""The codec `remux`: the source's own packets, not one pixel encoded anew, one closed group of pictures per fragment.

    source   I B P B P ... I B P ... I ...     in any container, with sound and other streams
    member   ftyp moov | moof mdat  | moof mdat | ...
    units    0 header  | 1 group    | 2 group   | ...     a group that needs the one before is joined to it

Groups are as long as the source's encoder made them, and may have B-frames: frames are numbered in the order in which
they are shown. The times in the member are those of a constant rate. A segment is stored as the groups that contain it.
Its first group may begin at an open entry of the source (entries.py), without the leading pictures.
ingest/remux.py makes the members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import av
import numpy as np
import numpy.typing as npt
from pydantic import Field

from rhofast.data.codecs.codec import Member, Part
from rhofast.data.codecs.containers import demux, mean_color, open_container, pixel_aspect, video_stream
from rhofast.data.codecs.entries import parted, recovers, restarts
from rhofast.data.codecs.fragments import FragmentCodec, group_units, groups_of, renumbered
from rhofast.data.codecs.part_decoding import trim
from rhofast.data.codecs.unfit import UnfitError
from rhofast.data.types import Stream

# Without transparency and palettes; 8 to 12 bits, of which the host keeps 8.
PIXEL_FORMATS = frozenset(
    ["gray", "gbrp", "yuvj420p", "yuvj422p", "yuvj444p"]
    + [f"{base}{depth}le" for base in ("gray", "gbrp") for depth in (10, 12)]
    + [f"yuv{chroma}p{depth}" for chroma in (420, 422, 440, 444) for depth in ("", "10le", "12le")]
)


class RemuxCodec(FragmentCodec):
    """The codec `remux`.

    Attributes:
        check: What is decoded when a member is made: all of it, or only the key frame of each group. Damage elsewhere
            is then found by nobody before training.
        max_group: Frames of the longest group that is taken, up to 10,000: a clip costs whole groups.
    """

    name: ClassVar[str] = "remux"
    streams: ClassVar[tuple[str, ...]] = ("h264", "hevc", "vp9", "av1")

    check: Literal["full", "keys"] = "full"
    max_group: Annotated[int, Field(ge=1, le=10_000)] = 300

    def encoder_arguments(self) -> None:
        """Return None: nothing is encoded."""
        return

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Check that each fragment is a group of its own, and measure the color of its key frame.

        Args:
            file: The member, open for reading.
            deep: Whether to decode every frame.

        Returns:
            The size, rate and units of the member, whose first frame is number 0.

        Raises:
            UnfitError: The size of the frames changes, or is too large.
            ValueError: The member is damaged, or its fragments are not closed groups.
        """
        with open_container(file) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            found = _read(container, stream, self.streams)
            width, height = int(stream.codec_context.width), int(stream.codec_context.height)
            fps, aspect = Fraction(stream.average_rate or 0), pixel_aspect(stream)
        try:
            self.check_size(width, height)
        except ValueError as error:
            raise UnfitError("other_format", str(error)) from None
        offsets, groups = groups_of(file, found.positions)
        firsts = np.flatnonzero(np.diff(groups, prepend=-1))
        if not (found.begins[firsts] & parted(found.pts)[firsts]).all():
            raise ValueError("the stored member's fragments are not closed groups of pictures")
        counts = np.bincount(groups)
        if counts.max() > self.max_group:
            raise ValueError(f"the stored member has a group of {counts.max()} frames, more than {self.max_group}")
        means = _decode(file, groups, (width, height), found.pts, deep=deep)
        return Member(
            num_frames=len(groups),
            fps=fps,
            width=width,
            height=height,
            units=group_units(file, offsets, counts, means),
            pixel_aspect=aspect,
        )

    def trim(self, part: Part, accepted: Collection[str]) -> Stream | None:
        """Copy the packets of the wanted frames to a new file; None if the device cannot decode them rightly."""
        wanted, num_frames = renumbered(part)
        trimmed = trim(self.source_of(part), num_frames, wanted, accepted)
        if trimmed is None:
            return None
        content, numbers = trimmed
        return Stream(content=np.frombuffer(content, dtype=np.uint8), wanted=numbers, frames=part.frames)


@dataclass(frozen=True, slots=True)
class _Packets:
    """The N packets of a member, in the order of decoding.

    Attributes:
        positions: Position of each in the file.
        pts: When each is shown, in ticks, i64[N].
        begins: Whether it is a key frame at which decoding can begin, bool[N]; the first one may need that nothing is
            before it.
    """

    positions: list[int]
    pts: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_]


def _read(container: Any, stream: Any, codecs: Collection[str]) -> _Packets:
    """Read the packets of a member; raise ValueError if they are none of the codecs, or have no times of their own."""
    context = stream.codec_context
    if context.codec.canonical_name not in codecs:
        raise ValueError(f"the stored member's codec is {context.codec.canonical_name}, not {' or '.join(codecs)}")
    positions, times, begins = list[int](), list[Any](), list[bool]()
    try:
        for packet in demux(container, stream):
            if packet.size:
                positions.append(int(packet.pos))
                times.append(packet.pts)
                begins.append(bool(packet.is_keyframe) and (restarts if begins else recovers)(context, packet))
    except av.error.FFmpegError as error:
        raise ValueError(f"the stored member cannot be read: {error}") from None
    if None in times or len(set(times)) < len(times):
        raise ValueError("frames of the stored member have no times, or equal ones")
    return _Packets(positions, np.array(times, dtype=np.int64), np.array(begins, dtype=bool))


def _decode(
    file: BinaryIO, groups: npt.NDArray[np.int64], size: tuple[int, int], pts: npt.NDArray[np.int64], *, deep: bool
) -> npt.NDArray[np.float64]:
    """Decode each group of a member by itself, or only its key frame.

    Args:
        file: The member.
        groups: Number of the group of each packet, i64[N].
        size: Width and height that all frames have to have.
        pts: When each packet is shown, i64[N].
        deep: Whether to decode whole groups.

    Returns:
        Mean color of the key frame of each group, f64[groups, 3] in 0..255.

    Raises:
        UnfitError: A frame has another size.
        ValueError: A group does not decode to its frames, in the order of their times.
    """
    means, begin = [], 0
    with open_container(file, probe=False) as container:  # the header says everything
        stream = video_stream(container)
        stream.thread_count = 1
        # Only key frames are looked at. What others look like is not, so they need no filter; parsing them does not.
        stream.codec_context.options = {"skip_loop_filter": "nokey"}
        for number, packets in enumerate(_grouped(container, stream, groups)):
            times = pts[begin : begin + len(packets)]
            begin += len(packets)
            expected = np.sort(times) if deep else times[:1]
            shown = []
            try:
                for packet in [*(packets if deep else packets[:1]), None]:
                    for frame in stream.codec_context.decode(packet):
                        if (frame.width, frame.height) != size:
                            what = f"from {size[0]}x{size[1]} to {frame.width}x{frame.height}"
                            raise UnfitError("changing_size", what)
                        if frame.pts == packets[0].pts:
                            means.append(mean_color(frame))
                        shown.append(frame.pts)
                stream.codec_context.flush_buffers()
            except av.error.FFmpegError as error:
                raise ValueError(f"the stored member cannot be decoded: {error}") from None
            if shown != expected.tolist() or len(means) != number + 1:
                raise ValueError(f"group {number} decodes to {len(shown)} frames, or in another order than it is shown")
    return np.array(means, dtype=np.float64).reshape(-1, 3)


def _grouped(container: Any, stream: Any, groups: npt.NDArray[np.int64]) -> Iterator[list[Any]]:
    """Yield the packets of each group; raise ValueError if they cannot be read."""
    held: list[Any] = []
    current = 0
    try:
        for number, packet in enumerate(packet for packet in demux(container, stream) if packet.size):
            if groups[number] != current:
                yield held
                held, current = [], int(groups[number])
            held.append(packet)
    except av.error.FFmpegError as error:
        raise ValueError(f"the stored member cannot be read: {error}") from None
    if held:
        yield held
