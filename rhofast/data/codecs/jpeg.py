"""The codec `jpeg`: every frame is a baseline 4:2:0 JPEG inside an MJPEG MP4.

    member   ftyp | mdat: JPEG 0, JPEG 1, ... | moov
    units           one unit per frame: the bytes of its JPEG

Any clip costs exactly its own frames. Any player plays a member, and both nvJPEG and the CPU decode its pictures.
"""

from __future__ import annotations

import io
import struct
from typing import Annotated, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs.codec import Codec, Member, Part
from rhofast.data.codecs.containers import Picture, read_packets
from rhofast.data.types import Units
from rhofast.data.units import MEASURED

_SEGMENT = struct.Struct(">HH")  # the marker, and the length of what follows it
_FRAME = struct.Struct(">HHBHHBxBxxBxxB")  # SOF0: marker, length, bits, height, width, components, their sampling
_SOF0, _DHT, _SOS, _DQT, _DRI, _COM = 0xFFC0, 0xFFC4, 0xFFDA, 0xFFDB, 0xFFDD, 0xFFFE  # ITU-T T.81, table B.1
_SKIPPED = frozenset((_DHT, _DQT, _DRI, _COM, *range(0xFFE0, 0xFFF0)))
_BASELINE = (_SOF0, 17, 8), (3, 0x22, 0x11, 0x11)  # three 8-bit components, 4:2:0: what surrounds height and width
_NO_BASELINE = "not a baseline 4:2:0 JPEG"


class JpegCodec(Codec):
    """The codec `jpeg`.

    Attributes:
        quality: Quality on ffmpeg's q scale, 2 (best, largest) to 31; with 3 a 340x256 frame has about 15 kB.
    """

    name: ClassVar[str] = "jpeg"
    pictures: ClassVar[bool] = True
    max_pixels: ClassVar[int] = 1 << 24  # 4096x4096, of which a batch may hold hundreds

    quality: Annotated[int, Field(ge=2, le=31)] = 3

    def encoder_arguments(self) -> dict[str, Any]:
        """Return output arguments for ffmpeg."""
        return {"vcodec": "mjpeg", "pix_fmt": "yuvj420p", "qscale:v": self.quality, "f": "mp4"}

    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Check that each picture starts and ends as a JPEG and has the size of the member.

        A measured picture is decoded at an eighth of its size, which gives its exact mean color.

        Args:
            file: The member, open for reading.
            deep: Whether to decode every picture.

        Returns:
            The size, rate and units of the member.

        Raises:
            ValueError: A picture is damaged, not a baseline JPEG, or of another size.
        """
        width, height, fps, packets = read_packets(file)
        self.check_size(width, height)
        crcs, means = [], []
        for number, packet in enumerate(packets):
            file.seek(packet.offset)
            picture = file.read(packet.size)
            crcs.append(crc32(picture))
            is_measured = number % MEASURED == 0 or number == len(packets) - 1
            mean = _mean_color(picture, (width, height), number, measure=is_measured or deep)
            if is_measured:
                means.append(mean)
        units = Units(
            frame=np.arange(len(packets), dtype=np.int32),
            offset=np.array([packet.offset for packet in packets], dtype=np.int64),
            size=np.array([packet.size for packet in packets], dtype=np.int32),
            crc=np.array(crcs, dtype=np.uint32),
            rgb=np.array(means, dtype=np.float32).reshape(-1, 3),
        )
        return Member(num_frames=len(packets), fps=fps, width=width, height=height, units=units)

    def find_fault(self, unit: int, piece: memoryview, width: int, height: int) -> str | None:
        """Return why a picture is not a baseline JPEG of the given size, or None."""
        return find_fault(piece, width, height)

    def units_for(self, units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the frames themselves: each is one unit."""
        return frames.astype(np.int64)

    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode the wanted pictures on the host."""
        decoded = {}
        for frame, piece in zip(part.frames.tolist(), part.pieces, strict=True):
            try:
                with Image.open(io.BytesIO(piece), formats=["JPEG"]) as image:
                    # `convert` copies a picture that is RGB already, which takes a tenth as long as decoding it.
                    decoded[frame] = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            except (OSError, SyntaxError) as error:
                raise ValueError(f"frame {frame} cannot be decoded: {error}") from None
        return decoded


def find_fault(picture: bytes | memoryview, width: int, height: int) -> str | None:
    """Return why bytes are not a baseline JPEG of a size, or None. It takes 2 microseconds.

    The marker segments up to the first scan are read (ITU-T T.81, B.2). They must be those of one frame of three 8-bit
    components, 4:2:0, in one scan; so a decoder is asked for exactly the picture that the index promises.

    Args:
        picture: The encoded picture.
        width: Expected width in pixels.
        height: Expected height in pixels.

    Returns:
        What is wrong, in a few words.
    """
    end = len(picture) - 2
    if end < 4 or picture[0] != 0xFF or picture[1] != 0xD8 or picture[end] != 0xFF or picture[end + 1] != 0xD9:
        return "not a whole JPEG"
    at, has_codes, has_steps, has_frame = 2, False, False, False
    while at + 4 <= end:
        marker, length = _SEGMENT.unpack_from(picture, at)
        if marker == _SOF0:
            if has_frame or at + 19 > end:
                break
            frame = _FRAME.unpack_from(picture, at)
            if (frame[:3], frame[5:]) != _BASELINE:
                break
            if frame[3] != height or frame[4] != width:
                return f"a picture of {frame[4]}x{frame[3]}, not {width}x{height}"
            has_frame = True
        elif marker == _SOS:
            is_whole = has_frame and has_codes and has_steps and length == 12 and picture[at + 4] == 3
            return None if is_whole and at + 14 <= end else _NO_BASELINE
        elif length < 2 or marker not in _SKIPPED:
            break
        elif marker == _DHT:
            has_codes = True
        elif marker == _DQT:
            has_steps = True
        at += 2 + length
    return _NO_BASELINE


def _mean_color(picture: bytes, size: tuple[int, int], number: int, *, measure: bool) -> npt.NDArray[np.float32] | None:
    """Check the form and size of a picture. If `measure`, also decode it and return its mean color."""
    if fault := find_fault(picture, *size):
        raise ValueError(f"picture {number} of the stored member: {fault}")
    if not measure:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
            image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))  # only DC terms: fast, and exact
            pixels = np.asarray(image, dtype=np.float32)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"picture {number} of the stored member cannot be decoded: {error}") from None
    mean: npt.NDArray[np.float32] = pixels.reshape(-1, 3).mean(axis=0)
    return mean
