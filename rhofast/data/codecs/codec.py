"""The interface of a storage codec: how a video is encoded into a member of a shard, indexed, and decoded again.

A member is described by its *units* (data.types.Units): the pieces that are read and checked one by one. A unit holds
the frames from its own number up to that of the next unit. A unit that starts at the same frame as the next one holds
no frame of its own (the header of an MP4, a block of a copied file; at the end of a member, one that starts at the
number of its frames); it is read together with whichever unit is wanted.

    ingest     encoder_arguments -> ffmpeg -> member -> index_member -> units of the index
    training   frames -> units_for -> rows of units -> reader -> Part -> decode (host) or trim (device)

The settings of a codec are its fields. They are written to `dataset.json` and read back from there. ingest/transcode.py
runs ffmpeg with the arguments; decode/ decodes pictures and streams on the device.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from rhofast.config.section import Section
from rhofast.data.codecs.containers import Picture
from rhofast.data.types import Stream, Units

SIDE_MULTIPLE = 16  # of the sides of stored pictures: whole 4:2:0 JPEG blocks and H.264 macroblocks, without padding
MAX_SIDE = 16_384  # pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """What `index_member` finds in an encoded member; frames are numbered from 0.

    Attributes:
        num_frames: Number of frames.
        fps: Constant frame rate, in frames per second.
        width: Width in pixels.
        height: Height in pixels.
        units: The pieces of the member.
        pixel_aspect: Width of a pixel as shown, divided by its height, as single precision holds it.
    """

    num_frames: int
    fps: Fraction
    width: int
    height: int
    units: Units
    pixel_aspect: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The bytes of a member that were read to decode some of its frames.

    Attributes:
        units: All units of the member.
        num_frames: Number of frames of the member.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        frames: The wanted frames, i32[F], distinct and ascending.
        rows: The units that were read, i64[U], as `Codec.units_for` returned them.
        pieces: The bytes of each of these units.
    """

    units: Units
    num_frames: int
    width: int
    height: int
    frames: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    pieces: Sequence[Any]

    def joined(self) -> io.BytesIO:
        """Return the pieces, one after another, as a file."""
        return io.BytesIO(self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces))


class Codec(Section):
    """Base class of storage codecs; its fields are the codec's settings.

    Attributes:
        name: Name in `dataset.json` and on the command line.
        suffix: Suffix of the member in the tar; None for the suffix of the source.
        pictures: Whether a unit is a picture for an image decoder; otherwise it is a piece of a video stream.
        cuts: Whether a member may be a part of its source.
        max_pixels: Largest number of pixels of a frame, which bounds the memory of decoders.
    """

    name: ClassVar[str]
    suffix: ClassVar[str | None] = "mp4"
    pictures: ClassVar[bool] = False
    cuts: ClassVar[bool] = True
    max_pixels: ClassVar[int] = 1 << 25  # 8K, 7680x4320

    @abstractmethod
    def encoder_arguments(self) -> dict[str, Any] | None:
        """Return output arguments for `output` of ffmpeg-python; None if nothing is encoded."""

    @property
    def untouched(self) -> bool:
        """Whether the frames of a member equal those of its source, bit by bit."""
        return self.encoder_arguments() is None

    @abstractmethod
    def index_member(self, file: BinaryIO, *, deep: bool = False) -> Member:
        """Find, check and measure the units of a member.

        Args:
            file: The member, open for reading.
            deep: Whether to decode every frame. By default only the frames whose colors are measured are decoded: one
                in `MEASURED`, or one per group of pictures.

        Returns:
            The size, rate and units of the member.

        Raises:
            ValueError: The member is damaged, or not of the layout of this codec.
        """

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        """Raise ValueError if frames are larger than the codec stores.

        Args:
            width: Width of the frames in pixels.
            height: Height of the frames in pixels.
        """
        if max(width, height) > MAX_SIDE or width * height > cls.max_pixels:
            limit = f"{MAX_SIDE} pixels per side and {cls.max_pixels} pixels"
            raise ValueError(f"frames of {width}x{height} are larger than codec {cls.name} stores: {limit}")

    @abstractmethod
    def units_for(self, units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the units that must be read to decode some frames.

        Args:
            units: All units of the member.
            num_frames: Number of frames of the member.
            frames: The wanted frames, i32[F], distinct and ascending.

        Returns:
            Rows of `units`, i64[U], ascending.
        """

    @abstractmethod
    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode the wanted frames on the host.

        Returns:
            Frame number -> RGB u8[H, W, 3], contiguous.

        Raises:
            ValueError: A frame cannot be decoded.
        """

    def find_fault(self, unit: int, piece: memoryview, width: int, height: int) -> str | None:
        """Return why the bytes of a unit must not reach a decoder, or None.

        Args:
            unit: Number of the unit in its member.
            piece: Its bytes, whose checksum is right.
            width: Width of the frames in pixels, as the index says.
            height: Height of the frames in pixels.

        Returns:
            What is wrong, in a few words.
        """
        return None

    def trim(self, part: Part, accepted: Collection[str]) -> Stream | None:
        """Cut the wanted frames out of a stream for a video decoder on the device, without decoding them.

        Args:
            part: The bytes that were read, and the wanted frames.
            accepted: Codecs that the decoder accepts for this size, by their FFmpeg names.

        Returns:
            The trimmed stream; None if the decoder cannot decode it.

        Raises:
            ValueError: A frame is not in the stream.
        """
        return None


def by_frame(part: Part, found: Sequence[Any]) -> dict[int, Any]:
    """Map each wanted frame to what was found for it.

    Args:
        part: The wanted frames.
        found: One value per wanted frame; None if the frame was not found.

    Returns:
        Frame number -> value.

    Raises:
        ValueError: A frame was not found.
    """
    for frame, value in zip(part.frames.tolist(), found, strict=True):
        if value is None:
            raise ValueError(f"frame {frame} cannot be decoded: the decoder does not return it")
    return dict(zip(part.frames.tolist(), found, strict=True))
