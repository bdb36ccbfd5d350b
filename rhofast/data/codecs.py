"""How a video is stored in a shard: the encode half and the decode half of each codec, side by side.

jpeg    every frame a baseline 4:2:0 JPEG inside an MJPEG MP4. Any clip costs exactly its own frames, any player plays
        the member, nvJPEG and the CPU both decode it.
h264    closed groups of `gop` pictures without B-frames in a fragmented MP4, one group a fragment, so that a part of a
hevc    video is a slice of its bytes: about a quarter of the bytes of `jpeg`, for whole groups instead of frames.
copy    the source file, untouched. It must be upright, of square pixels and of a constant rate as it is.

A member is described by its *units* (data.types.Units): the pieces that are read and checked one by one. A unit holds
the frames from its own number up to that of the next; one that starts at the same frame as the next holds none of its
own (the header of an MP4, the blocks of a copied file) and is read with whichever of the others is wanted.

A codec's settings are its fields; they are written to `dataset.json` and read back from there. What it is not: it runs
no ffmpeg (ingest/transcode.py) and no DALI (pipeline.py). Adding a codec: one class here and a line in CODECS.
"""

from __future__ import annotations

import io
import struct
import zlib
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from rhofast.config.section import Section, parse_section
from rhofast.data.containers import (
    Picture,
    checksums,
    count_frames,
    decode_all,
    decode_wanted,
    fragment_starts,
    key_frame_colors,
    mean_color,
    open_container,
    read_packets,
    trim,
    video_stream,
)
from rhofast.data.types import Stream, Units
from rhofast.errors import ConfigError

SIDE_MULTIPLE = 16  # sides of stored pictures: whole 4:2:0 JPEG blocks and whole H.264 macroblocks, no hidden padding
MEASURED = 16  # of so many frames one's color is measured when a shard is made
_BASELINE = b"\xff\xc0\x00\x11\x08"  # how a frame header of three 8-bit components begins (ITU-T T.81, B.2.2)
_BLOCK = 1 << 24  # bytes of a copied file that share a checksum


class UnfitError(ValueError):
    """A source that a codec cannot store as it is; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """What `index_member` found in an encoded member. fps is the constant frame rate; frames are numbered from 0."""

    num_frames: int
    fps: Fraction
    width: int
    height: int
    units: Units


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What was read of a member of `num_frames` frames to decode the distinct, ascending `frames` i32[F]: the rows of
    its units, i64[U], that `Codec.units_for` asked for, and the bytes of each."""

    units: Units
    num_frames: int
    frames: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    pieces: Sequence[Any]

    def joined(self) -> io.BytesIO:
        """The pieces one after another, as a file."""
        return io.BytesIO(self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces))


class Codec(Section):
    """What all codecs share.

    name       in `dataset.json` and on the command line
    suffix     of the member in the tar; None where it is the source's own
    pictures   whether a unit is a picture that an image decoder takes; else it is a piece of a video stream
    """

    name: ClassVar[str]
    suffix: ClassVar[str | None] = "mp4"
    pictures: ClassVar[bool] = False

    @abstractmethod
    def encoder_arguments(self) -> dict[str, Any] | None:
        """Output arguments for ffmpeg, as ffmpeg-python's `output` takes them; None where nothing is encoded."""

    @property
    def untouched(self) -> bool:
        """Whether a member is its source, byte for byte."""
        return self.encoder_arguments() is None

    @abstractmethod
    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Find, check and measure everything in a member. Colors are measured in one frame of `MEASURED`, or in one of
        a group; the encoder is trusted with the others, unless `deep`: then every frame must come out of the decoder.
        Raises ValueError if something is not as it should be."""

    @abstractmethod
    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The rows of `units`, ascending, that must be read to decode the distinct, ascending `frames`."""

    @abstractmethod
    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode on the host: frame number -> RGB u8[H, W, 3], contiguous, for each of the wanted frames. Raises
        ValueError where one does not come out."""

    def trim(self, part: Part, takes: Collection[str]) -> Stream | None:
        """The wanted frames still encoded, for a decoder on a device that takes video of the codecs `takes` (FFmpeg's
        names) in this size; None where it cannot take this one. Raises ValueError as `decode` does."""
        return None


class JpegCodec(Codec):
    """`jpeg`. quality is ffmpeg's q scale: 2 (largest) to 31; 3 is about 15 kB for a 340x256 frame."""

    name: ClassVar[str] = "jpeg"
    pictures: ClassVar[bool] = True

    quality: Annotated[int, Field(ge=2, le=31)] = 3

    def encoder_arguments(self) -> dict[str, Any]:
        return {"vcodec": "mjpeg", "pix_fmt": "yuvj420p", "qscale:v": self.quality, "f": "mp4"}

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Each picture must start and end as a JPEG does and have the size of the first. A measured one is read whole,
        at an eighth of the size, which gives its exact mean color; the colors of those between are interpolated."""
        width, height, fps, packets = read_packets(file)
        crcs, measured, means = [], [], []
        for number, packet in enumerate(packets):
            file.seek(packet.offset)
            picture = file.read(packet.size)
            crcs.append(zlib.crc32(picture))
            is_measured = number % MEASURED == 0 or number == len(packets) - 1
            mean = _mean_color(picture, (width, height), number, measure=is_measured or deep)
            if is_measured:
                measured.append(number)
                means.append(mean)
        colors = np.array(means, dtype=np.float64).reshape(-1, 3)
        every = np.arange(len(packets))
        units = Units(
            frame=np.arange(len(packets), dtype=np.int32),
            offset=np.array([packet.offset for packet in packets], dtype=np.int64),
            size=np.array([packet.size for packet in packets], dtype=np.int32),
            crc=np.array(crcs, dtype=np.uint32),
            rgb=_interpolated(every, measured, colors),
        )
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Here: the frames themselves."""
        return frames.astype(np.int64)

    def decode(self, part: Part) -> dict[int, Picture]:
        decoded = {}
        for frame, piece in zip(part.frames.tolist(), part.pieces, strict=True):
            try:
                with Image.open(io.BytesIO(piece), formats=["JPEG"]) as image:
                    decoded[frame] = np.asarray(image.convert("RGB"))
            except OSError as error:
                raise ValueError(f"frame {frame} cannot be decoded: {error}") from None
        return decoded


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


class CopyCodec(Codec):
    """`copy`. Read whole for any of its frames; decoded from the nearest place before each where decoding can begin."""

    name: ClassVar[str] = "copy"
    suffix: ClassVar[str | None] = None

    def encoder_arguments(self) -> None:
        return None

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Every frame is decoded, and must be shown at its number / fps, within half an interval. Else it raises
        UnfitError."""
        times: list[float] = []
        means, sizes = [], set()
        with open_container(file) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
            timed = container.format.name != "avi"  # which stores no times, and whose frames all last equally long
            if stream.sample_aspect_ratio not in (None, 0, 1):
                raise UnfitError(f"its pixels are not square ({stream.sample_aspect_ratio})")
            for frame in decode_all(container, stream):
                if frame.rotation:
                    raise UnfitError(f"it is to be shown rotated by {frame.rotation} degrees")
                if len(times) % MEASURED == 0:
                    means.append(mean_color(frame))
                sizes.add((frame.width, frame.height))
                times.append(frame.time if timed and frame.time is not None else float("nan"))
        if len(sizes) > 1:
            raise UnfitError("its size changes in the middle")
        ((width, height),) = sizes or {(0, 0)}
        end = file.seek(0, io.SEEK_END)
        offsets = np.array([*range(0, end, _BLOCK), end], dtype=np.int64)
        blocks = len(offsets) - 1
        units = Units(
            frame=np.zeros(blocks, dtype=np.int32),
            offset=offsets[:-1],
            size=np.diff(offsets).astype(np.int32),
            crc=checksums(file, offsets),
            rgb=np.tile(np.mean(means or [np.zeros(3)], axis=0).astype(np.float32), (blocks, 1)),
        )
        return Member(num_frames=len(times), fps=_constant_rate(times, fps), width=width, height=height, units=units)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """All of them."""
        return np.arange(len(units.frame) if len(frames) else 0, dtype=np.int64)

    def decode(self, part: Part) -> dict[int, Picture]:
        """Only the groups of pictures that hold the frames, where it is sure which those are."""
        decoded = decode_wanted(part.joined(), part.num_frames, part.frames)
        return _all_of(part, [decoded.get(number) for number in part.frames.tolist()])

    def trim(self, part: Part, takes: Collection[str]) -> Stream | None:
        trimmed = trim(part.joined(), part.num_frames, part.frames, takes)
        if trimmed is None:
            return None
        content, wanted = trimmed
        return Stream(content=np.frombuffer(content, dtype=np.uint8), wanted=wanted, frames=part.frames)


def _constant_rate(times: Sequence[float], stated: Fraction) -> Fraction:
    """The rate at which frames are shown at these times (seconds; NaN: unknown). Raises UnfitError if there is none."""
    if len(times) < 2 or np.isnan(times[0]) or np.isnan(times[-1]):
        return stated
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else 0.0
    off = np.abs((np.array(times) - times[0]) * rate - np.arange(len(times)))
    if rate == 0 or np.nanmax(off) > 0.5:
        raise UnfitError("its frame rate is not constant")
    return stated if abs(float(stated) - rate) <= 0.001 * rate else Fraction(rate).limit_denominator(10_000)


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (JpegCodec, H264Codec, HevcCodec, CopyCodec)}


def build_codec(settings: Mapping[str, Any]) -> Codec:
    """The codec of `{"name": ..., setting: value, ...}`. Raises ConfigError for an unknown name or setting."""
    options = dict(settings)
    name = options.pop("name", None)
    if name not in CODECS:
        raise ConfigError(f"codec {name!r} is not known", hint=f"known codecs: {', '.join(CODECS)}")
    return parse_section(CODECS[name], options, where=f"codec {name}")


def build_codecs(names: Sequence[str], options: Mapping[str, Any]) -> list[Codec]:
    """One codec a name, of several each with those of the options that it knows. Raises ConfigError as `build_codec`
    does, and for an option that none of them knows."""

    def fits(name: str, option: str) -> bool:
        return name not in CODECS or option in CODECS[name].model_fields

    unknown = [option for option in options if not any(fits(name, option) for name in names)]
    return [
        build_codec({"name": name, **{key: options[key] for key in options if key in unknown or fits(name, key)}})
        for name in names
    ]


def codec_settings(codec: Codec) -> dict[str, Any]:
    """What `build_codec` builds the codec from again."""
    return {"name": codec.name, **codec.model_dump()}


def frames_in(units: Units, num_frames: int) -> npt.NDArray[np.int64]:
    """How many frames each unit holds of its own: i64[U]."""
    return np.diff(units.frame, append=num_frames).astype(np.int64)


def _renumbered(part: Part) -> tuple[npt.NDArray[np.int32], int]:
    """(the wanted frames' numbers, i32[F], in a file of just the rows that were read, how many frames that has)."""
    counts = frames_in(part.units, part.num_frames)[part.rows]
    firsts = part.units.frame[part.rows]
    place = np.searchsorted(firsts, part.frames, side="right") - 1
    wanted = part.frames - firsts[place] + (np.cumsum(counts) - counts)[place]
    return wanted.astype(np.int32), int(counts.sum())


def _all_of(part: Part, found: Sequence[Any]) -> dict[int, Any]:
    """frame -> what was found of it. Raises ValueError where that is nothing."""
    for frame, thing in zip(part.frames.tolist(), found, strict=True):
        if thing is None:
            raise ValueError(f"frame {frame} does not come out of the decoder")
    return dict(zip(part.frames.tolist(), found, strict=True))


def usage(units: Units, num_frames: int, wanted: npt.NDArray[np.int32]) -> tuple[float, int]:
    """(bytes that hold the distinct, ascending, at least one `wanted` frames; frames that decoding them goes through).

    A frame's bytes are its share of its unit's. Of units without frames (the blocks of a copied file, a header) every
    frame of the member has the same share. Frames are decoded from the beginning of a unit up to its last wanted one; a
    copied file may be entered later than that, where it has key frames.
    """
    held = frames_in(units, num_frames)
    holders = np.searchsorted(units.frame, wanted, side="right") - 1
    shared = float(units.size[held == 0].sum(dtype=np.int64)) / num_frames
    lasts = np.append(np.flatnonzero(np.diff(holders)), len(wanted) - 1)  # of each holder, the last that is wanted
    decoded = int((wanted[lasts] - units.frame[holders[lasts]] + 1).sum())
    return float((units.size[holders] / held[holders] + shared).sum()), decoded


def _interpolated(
    every: npt.NDArray[np.int64], measured: Sequence[int], colors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    if not measured:
        return np.zeros((0, 3), dtype=np.float32)
    return np.stack([np.interp(every, measured, color) for color in colors.T], axis=1).astype(np.float32)


def _mean_color(picture: bytes, size: tuple[int, int], number: int, *, measure: bool) -> npt.NDArray[np.float32] | None:
    """Check a picture's form and size; if `measure`, read it whole, and return its mean color."""
    header = picture.find(_BASELINE)
    if picture[:2] != b"\xff\xd8" or picture[-2:] != b"\xff\xd9" or header < 0:
        raise ValueError(f"picture {number} of the stored member is not a whole baseline JPEG")
    height, width = struct.unpack_from(">HH", picture, header + len(_BASELINE))
    if (width, height) != size:
        raise ValueError(f"picture {number} of the stored member is {width}x{height}, not {size[0]}x{size[1]}")
    if not measure:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
            image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))  # DC terms only: fast, and exact
            pixels = np.asarray(image, dtype=np.float32)
    except OSError as error:
        raise ValueError(f"picture {number} of the stored member cannot be decoded: {error}") from None
    mean: npt.NDArray[np.float32] = pixels.reshape(-1, 3).mean(axis=0)
    return mean
