"""How a video is stored in a shard: the encode half and the decode half of each codec, side by side.

jpeg    every frame a baseline 4:2:0 JPEG inside an MJPEG MP4. Any clip costs exactly its own frames, any player plays
        the member, nvJPEG and the CPU both decode it.

A codec's settings are its fields; they are written to `dataset.json` and read back from there. What it is not: it runs
no ffmpeg (ingest/transcode.py) and no decoder (pipeline.py). Adding a codec: one class here and a line in CODECS.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import av
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from rhofast.config import Section, parse_section
from rhofast.data.types import Units
from rhofast.errors import ConfigError

SIDE_MULTIPLE = 16  # sides of stored pictures: whole 4:2:0 JPEG blocks and whole H.264 macroblocks, no hidden padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """What `index_member` found in an encoded member. fps is the constant frame rate; frames are numbered from 0."""

    num_frames: int
    fps: Fraction
    width: int
    height: int
    units: Units


class JpegCodec(Section):
    """`jpeg`. quality is ffmpeg's q scale: 2 (largest) to 31; 3 is about 15 kB for a 340x256 frame."""

    name: ClassVar[str] = "jpeg"
    suffix: ClassVar[str] = "mp4"

    quality: Annotated[int, Field(ge=2, le=31)] = 3

    def encoder_arguments(self) -> dict[str, Any]:
        """Output arguments for ffmpeg, as ffmpeg-python's `output` takes them."""
        return {"vcodec": "mjpeg", "pix_fmt": "yuvj420p", "qscale:v": self.quality, "f": self.suffix}

    def index_member(self, content: bytes) -> Member:
        """Find, check and measure every picture of a member.

        Each picture must start and end as a JPEG does, be whole (every entropy-coded block is read, at an eighth of
        the size, which also gives its exact mean color) and have the size of the first. Raises ValueError.
        """
        try:
            with av.open(io.BytesIO(content)) as container:
                stream = container.streams.video[0]
                fps = Fraction(stream.average_rate or 0)  # 0 for a single picture, which has no rate
                width, height = int(stream.codec_context.width), int(stream.codec_context.height)
                packets = [(int(packet.pos), int(packet.size)) for packet in container.demux(stream) if packet.size]
        except (av.error.FFmpegError, IndexError) as error:
            raise ValueError(f"the stored member cannot be opened: {error}") from None
        crcs, means = [], []
        for number, (offset, size) in enumerate(packets):
            picture = content[offset : offset + size]
            crcs.append(zlib.crc32(picture))
            means.append(_mean_color(picture, (width, height), number))
        offsets, sizes = zip(*packets, strict=True) if packets else ((), ())
        units = Units(
            frame=np.arange(len(packets), dtype=np.int32),
            offset=np.array(offsets, dtype=np.int64),
            size=np.array(sizes, dtype=np.int32),
            crc=np.array(crcs, dtype=np.uint32),
            rgb=np.array(means, dtype=np.float32).reshape(-1, 3),
        )
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def units_for(self, units: Units, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The rows of `units` that must be read to decode the distinct, ascending `frames`; here: the frames."""
        return frames.astype(np.int64)


def _mean_color(picture: bytes, size: tuple[int, int], number: int) -> npt.NDArray[np.float32]:
    if picture[:2] != b"\xff\xd8" or picture[-2:] != b"\xff\xd9":
        raise ValueError(f"picture {number} of the stored member is not a whole JPEG")
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
            if image.size != size:
                raise ValueError(f"picture {number} of the stored member is {image.size}, not {size}")
            image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))  # DC terms only: fast, and exact
            pixels = np.asarray(image, dtype=np.float32)
    except OSError as error:
        raise ValueError(f"picture {number} of the stored member cannot be decoded: {error}") from None
    mean: npt.NDArray[np.float32] = pixels.reshape(-1, 3).mean(axis=0)
    return mean


CODECS: dict[str, type[JpegCodec]] = {codec.name: codec for codec in (JpegCodec,)}


def build_codec(settings: Mapping[str, Any]) -> JpegCodec:
    """The codec of `{"name": ..., setting: value, ...}`. Raises ConfigError for an unknown name or setting."""
    options = dict(settings)
    name = options.pop("name", None)
    if name not in CODECS:
        raise ConfigError(f"codec {name!r} is not known", hint=f"known codecs: {', '.join(CODECS)}")
    return parse_section(CODECS[name], options, where=f"codec {name}")


def codec_settings(codec: JpegCodec) -> dict[str, Any]:
    """What `build_codec` builds the codec from again."""
    return {"name": codec.name, **codec.model_dump()}
