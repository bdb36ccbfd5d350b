"""The codecs `h264` and `hevc`: closed groups of pictures, each in one fragment of a fragmented MP4.

    member   ftyp moov | moof mdat | moof mdat | ...
    units    0 header  | 1 group   | 2 group   | ...     `gop` frames per group; the header holds none

A group starts with a key frame and has no B-frames, so the header and any groups, put together, are a whole file again.
A member has about a quarter of the bytes of a `jpeg` one, but a clip costs whole groups instead of single frames.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rhofast.data.codecs.codec import Codec, Member, Part, by_frame
from rhofast.data.codecs.containers import (
    Picture,
    checksums,
    count_frames,
    fragment_starts,
    key_frame_colors,
    read_packets,
)
from rhofast.data.codecs.part_decoding import Source, decode_wanted
from rhofast.data.types import Stream, Units
from rhofast.data.units import frames_in


class _GroupCodec(Codec):
    """Closed groups of pictures, each with a key frame first and without B-frames.

    Attributes:
        quality: Constant rate factor of the encoder, 0 (lossless, or nearly) to 51.
        gop: Frames per group, 1 to 600.
        preset: Preset of the encoder: slower ones give smaller files.
    """

    quality: Annotated[int, Field(ge=0, le=51)] = 23
    gop: Annotated[int, Field(ge=1, le=600)] = 16
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "medium"
    )

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Check that each fragment is one group, and measure the color of its key frame, which comes first.

        Args:
            file: The member, open for reading.
            deep: Whether to decode every frame.

        Returns:
            The size, rate and units of the member.

        Raises:
            ValueError: The member is damaged, or its fragments are not groups of up to `gop` frames.
        """
        width, height, fps, packets = read_packets(file)
        self.check_size(width, height)
        starts = fragment_starts(file)
        if not starts:
            raise ValueError("the stored member has no fragments")
        end = file.seek(0, io.SEEK_END)
        groups = np.searchsorted(starts, [packet.offset for packet in packets], side="right") - 1
        counts = np.bincount(groups, minlength=len(starts))
        firsts = np.flatnonzero(np.diff(groups, prepend=-1))
        keys = [number for number, packet in enumerate(packets) if packet.is_key]
        if (counts == 0).any() or (counts > self.gop).any() or keys != firsts.tolist():
            raise ValueError(f"the stored member's fragments are not groups of up to {self.gop} frames")
        offsets = np.array([0, *starts, end], dtype=np.int64)
        means = key_frame_colors(file)
        if len(means) != len(starts):
            raise ValueError(f"the stored member decodes to {len(means)} key frames, not {len(starts)}")
        if deep and (decoded := count_frames(file)) != len(packets):
            raise ValueError(f"the stored member decodes to {decoded} frames, not {len(packets)}")
        units = Units(
            frame=np.concatenate([[0], np.cumsum(counts) - counts]).astype(np.int32),
            offset=offsets[:-1],
            size=np.diff(offsets).astype(np.int32),
            crc=checksums(file, offsets),
            rgb=np.concatenate([np.zeros((1, 3)), means]).astype(np.float32),
        )
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def find_fault(self, unit: int, piece: memoryview, width: int, height: int) -> str | None:
        """Return why a unit does not begin as the header or a fragment of an MP4 does, or None."""
        kind = b"moof" if unit else b"ftyp"
        return None if piece[4:8] == kind else "not a piece of a fragmented MP4"

    def units_for(self, units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the header (row 0) and the groups of the wanted frames."""
        groups = np.unique(np.searchsorted(units.frame, frames, side="right") - 1)
        return np.concatenate([[0], groups]) if len(groups) else groups

    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode the wanted frames on the host, from the file that header and groups make."""
        wanted, num_frames = _renumbered(part)
        # The header says everything, so nothing is probed.
        source = Source(part.joined(), (part.width, part.height), codecs=(self.name,), probe=False)
        decoded = decode_wanted(source, num_frames, wanted)
        return by_frame(part, [decoded.get(number) for number in wanted.tolist()])

    def trim(self, part: Part, accepted: Collection[str]) -> Stream | None:
        """Put header and groups together to a whole file, whose frames are numbered from 0."""
        if self.name not in accepted:
            return None
        wanted, num_frames = _renumbered(part)
        by_frame(part, [number < num_frames or None for number in wanted.tolist()])
        return Stream(content=np.frombuffer(b"".join(part.pieces), dtype=np.uint8), wanted=wanted, frames=part.frames)


class H264Codec(_GroupCodec):
    """The codec `h264`, 8 bits, 4:2:0."""

    name: ClassVar[str] = "h264"

    def encoder_arguments(self) -> dict[str, Any]:
        """Return output arguments for ffmpeg."""
        # Without `cpu-independent` the decisions of x264 depend a little on the machine.
        return {
            "vcodec": "libx264",
            "x264-params": "cpu-independent=1:open-gop=0",
            "crf": self.quality,
            "bf": 0,
            "g": self.gop,
            "keyint_min": self.gop,
            "sc_threshold": 0,
            "preset": self.preset,
            **_FRAGMENTED,
        }


class HevcCodec(_GroupCodec):
    """The codec `hevc`, 8 bits, 4:2:0."""

    name: ClassVar[str] = "hevc"

    quality: Annotated[int, Field(ge=0, le=51)] = 26

    def encoder_arguments(self) -> dict[str, Any]:
        """Return output arguments for ffmpeg."""
        parameters = {
            "keyint": self.gop,
            "min-keyint": self.gop,
            "scenecut": 0,
            "open-gop": 0,
            "bframes": 0,
            "pools": "none",
            "frame-threads": 1,
            "wpp": 0,
            "info": 0,
            "log-level": "error",
        }
        return {
            "vcodec": "libx265",
            "x265-params": ":".join(f"{name}={value}" for name, value in parameters.items()),
            "crf": self.quality,
            "preset": self.preset,
            "vtag": "hvc1",  # some players recognize HEVC only by this tag
            **_FRAGMENTED,
        }


_FRAGMENTED = {
    "pix_fmt": "yuv420p",
    "movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer",
    "f": "mp4",
}


def _renumbered(part: Part) -> tuple[npt.NDArray[np.int32], int]:
    """Number the wanted frames in the file that consists of the units that were read.

    Returns:
        The numbers of the wanted frames in that file, i32[F], and the number of its frames.
    """
    counts = frames_in(part.units, part.num_frames)[part.rows]
    firsts = part.units.frame[part.rows]
    place = np.searchsorted(firsts, part.frames, side="right") - 1
    wanted = part.frames - firsts[place] + (np.cumsum(counts) - counts)[place]
    return wanted.astype(np.int32), int(counts.sum())
