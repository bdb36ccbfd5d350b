"""The codecs `h264` and `hevc`: closed groups of pictures, each in one fragment of a fragmented MP4.

    member   ftyp moov | moof mdat | moof mdat | ...
    units    0 header  | 1 group   | 2 group   | ...     `gop` frames per group; the header holds none

A group starts with a key frame and has no B-frames, so the header and any groups, put together, are a whole file again.
A member has about a quarter of the bytes of a `jpeg` one, but a clip costs whole groups instead of single frames.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
from pydantic import Field

from rhofast.data.codecs.codec import Member, Part, by_frame
from rhofast.data.codecs.containers import count_frames, key_frame_colors, read_packets
from rhofast.data.codecs.fragments import FragmentCodec, group_units, groups_of, renumbered
from rhofast.data.types import Stream


class _GroupCodec(FragmentCodec):
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
        offsets, groups = groups_of(file, [packet.offset for packet in packets])
        counts = np.bincount(groups)
        firsts = np.flatnonzero(np.diff(groups, prepend=-1))
        keys = [number for number, packet in enumerate(packets) if packet.is_key]
        if (counts > self.gop).any() or keys != firsts.tolist():
            raise ValueError(f"the stored member's fragments are not groups of up to {self.gop} frames")
        means = key_frame_colors(file)
        if len(means) != len(counts):
            raise ValueError(f"the stored member decodes to {len(means)} key frames, not {len(counts)}")
        if deep and (decoded := count_frames(file)) != len(packets):
            raise ValueError(f"the stored member decodes to {decoded} frames, not {len(packets)}")
        units = group_units(file, offsets, counts, means)
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def trim(self, part: Part, accepted: Collection[str]) -> Stream | None:
        """Put header and groups together to a whole file, whose frames are numbered from 0."""
        if self.name not in accepted:
            return None
        wanted, num_frames = renumbered(part)
        by_frame(part, [number < num_frames or None for number in wanted.tolist()])
        return Stream(content=np.frombuffer(b"".join(part.pieces), dtype=np.uint8), wanted=wanted, frames=part.frames)


class H264Codec(_GroupCodec):
    """The codec `h264`, 8 bits, 4:2:0."""

    name: ClassVar[str] = "h264"
    streams: ClassVar[tuple[str, ...]] = ("h264",)

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
    streams: ClassVar[tuple[str, ...]] = ("hevc",)

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
