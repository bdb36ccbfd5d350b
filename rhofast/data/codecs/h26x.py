"""The codecs `h264` and `hevc`: closed groups of pictures, one fragment of an MP4 each."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rhofast.data.codecs.codec import Codec, Member, Part, _all_of
from rhofast.data.codecs.containers import (
    Picture,
    checksums,
    count_frames,
    decode_wanted,
    fragment_starts,
    key_frame_colors,
    read_packets,
)
from rhofast.data.types import Stream, Units, frames_in


class _GroupCodec(Codec):
    """Closed groups of pictures: `gop` frames each, the first a key frame, no B-frames. quality: the encoder's constant
    rate factor, 0 (lossless, or nearly) to 51. preset: its trade of time for size."""

    quality: Annotated[int, Field(ge=0, le=51)] = 23
    gop: Annotated[int, Field(ge=1, le=600)] = 16
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "medium"
    )

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Each fragment must be one group, whose key frame, which comes first, gives the group's color."""
        width, height, fps, packets = read_packets(file)
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
            raise ValueError(f"{len(means)} key frames come out of the stored member, not {len(starts)}")
        if deep and (decoded := count_frames(file)) != len(packets):
            raise ValueError(f"{decoded} frames come out of the stored member, not {len(packets)}")
        units = Units(
            frame=np.concatenate([[0], np.cumsum(counts) - counts]).astype(np.int32),
            offset=offsets[:-1],
            size=np.diff(offsets).astype(np.int32),
            crc=checksums(file, offsets),
            rgb=np.concatenate([np.zeros((1, 3)), means]).astype(np.float32),
        )
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The header (row 0), and the group of each frame."""
        groups = np.unique(np.searchsorted(units.frame, frames, side="right") - 1)
        return np.concatenate([[0], groups]) if len(groups) else groups

    def decode(self, part: Part) -> dict[int, Picture]:
        wanted, coming = _renumbered(part)
        decoded = decode_wanted(part.joined(), coming, wanted, probe=False)  # the header says everything
        return _all_of(part, [decoded.get(number) for number in wanted.tolist()])

    def trim(self, part: Part, takes: Collection[str]) -> Stream | None:
        """Header and groups put together are a whole file again, whose frames count from 0."""
        if self.name not in takes:
            return None
        wanted, coming = _renumbered(part)
        _all_of(part, [number < coming or None for number in wanted.tolist()])
        return Stream(content=np.frombuffer(b"".join(part.pieces), dtype=np.uint8), wanted=wanted, frames=part.frames)


class H264Codec(_GroupCodec):
    """`h264`, 8-bit 4:2:0."""

    name: ClassVar[str] = "h264"

    def encoder_arguments(self) -> dict[str, Any]:
        # Without `cpu-independent` x264 decides a little differently on other machines.
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
    """`hevc`, 8-bit 4:2:0."""

    name: ClassVar[str] = "hevc"

    quality: Annotated[int, Field(ge=0, le=51)] = 26

    def encoder_arguments(self) -> dict[str, Any]:
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
            "vtag": "hvc1",  # or else some players do not know it
            **_FRAGMENTED,
        }


_FRAGMENTED = {
    "pix_fmt": "yuv420p",
    "movflags": "+frag_keyframe+empty_moov+default_base_moof+skip_trailer",
    "f": "mp4",
}


def _renumbered(part: Part) -> tuple[npt.NDArray[np.int32], int]:
    """(the wanted frames' numbers, i32[F], in a file of just the rows that were read, how many frames that has)."""
    counts = frames_in(part.units, part.num_frames)[part.rows]
    firsts = part.units.frame[part.rows]
    place = np.searchsorted(firsts, part.frames, side="right") - 1
    wanted = part.frames - firsts[place] + (np.cumsum(counts) - counts)[place]
    return wanted.astype(np.int32), int(counts.sum())
