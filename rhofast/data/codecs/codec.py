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
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from rhofast.config.section import Section
from rhofast.data.codecs.containers import (
    Picture,
)
from rhofast.data.types import Stream, Units

SIDE_MULTIPLE = 16  # sides of stored pictures: whole 4:2:0 JPEG blocks and whole H.264 macroblocks, no hidden padding
MEASURED = 16  # of so many frames one's color is measured when a shard is made


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


def _all_of(part: Part, found: Sequence[Any]) -> dict[int, Any]:
    """frame -> what was found of it. Raises ValueError where that is nothing."""
    for frame, thing in zip(part.frames.tolist(), found, strict=True):
        if thing is None:
            raise ValueError(f"frame {frame} does not come out of the decoder")
    return dict(zip(part.frames.tolist(), found, strict=True))
