"""What flows from a video file to the model. Frozen values, keyword-only, with shapes in their repr.

    VideoRecord --ingest--> shards --order, clips, augment--> plans --reader--> Sample --pipeline--> Views

Plans are numbers, not callables: they can be printed, stored, replayed, and given to the CPU and the GPU graph alike.
Shape legend: B videos, P clips a video (rho), T frames a clip, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # the plans need numpy alone; only Views holds tensors
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecord:
    """One video of a data set as its recipe found it.

    key         short, ASCII, unique in the data set: letters, digits, `_` and `-`
    path        the video file
    label       class number >= 0, or None where there are no labels
    label_name  the class's name, or None where only numbers are known
    """

    key: str
    path: Path
    label: int | None = None
    label_name: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where in the run: `position` samples of `epoch` were consumed before this batch."""

    epoch: int
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """The independently decodable pieces of one member, in order; `offset` counts from the member's first byte.

    frame i32[U], offset i64[U], size i32[U] bytes, crc u32[U], rgb f32[U, 3] mean color in 0..255
    """

    frame: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    crc: npt.NDArray[np.uint32]
    rgb: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What planning needs to know of B samples: num_frames i32[B], fps f64[B], width i32[B], height i32[B]."""

    num_frames: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]


class _Shaped:
    """A repr that shows what matters of arrays: dtype and shape."""

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            shape = getattr(value, "shape", None)
            kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
            text = repr(value) if shape is None else f"{kind}{list(shape)}"
            parts.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(parts)})"


class _Plan(_Shaped):
    """Numbers for B samples: arrays with B in front."""

    def take(self, rows: npt.NDArray[Any] | Sequence[int]) -> Self:
        """The plans of some of the samples: `rows` are places in [0, B), or a mask."""
        return type(self)(**{name: array[rows] for name, array in self._arrays().items()})

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """One plan of several, one after another, all of which have the same arrays."""
        arrays = [plan._arrays() for plan in plans]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}


def _check_leading(owner: str, leading: tuple[int, ...], **arrays: Any) -> None:
    for name, array in arrays.items():
        if tuple(array.shape[: len(leading)]) != leading:
            raise ValueError(f"{owner}.{name} has shape {tuple(array.shape)}; its leading dimensions must be {leading}")


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class ClipPlan(_Plan):
    """Which frames, by their numbers in the stored sample, each in [0, number of frames).

    frames    i32[B, P, T]  what the clips show
    neighbor  i32[B, P, T]  what is subtracted from it in the clips of `AugmentPlan.difference`; the same as `frames` in
                            all other clips. None where there can be no such clip
    """

    frames: npt.NDArray[np.int32]
    neighbor: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 3:
            raise ValueError(f"ClipPlan.frames must be [B, P, T], got shape {self.frames.shape}")
        if self.neighbor is not None:
            _check_leading("ClipPlan", self.frames.shape, neighbor=self.neighbor)

    @property
    def needed(self) -> npt.NDArray[np.int32]:
        """All frames that must be decoded, i32[B, 1 or 2, P, T], with repeats."""
        return np.stack([self.frames] if self.neighbor is None else [self.frames, self.neighbor], axis=1)


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class AugmentPlan(_Plan):
    """What happens to each clip, the same for all its frames.

    crop        f32[B, P, 4]     left, top, width, height in stored pixels (whole numbers)
    flip        bool[B, P]       mirror left to right
    color       f32[B, P, 3, 4]  rgb' = color[:, :3] @ rgb + color[:, 3], on 0..255, clamped once at the end
    blur        f32[B, P]        sigma of the Gaussian in output pixels; 0 leaves the clip as it is
    difference  bool[B, P]       before `color`: r = g = b = (255 + luma(frame) - luma(neighbor)) / 2, with the frames
                                 of ClipPlan. None where there can be no such clip
    """

    crop: npt.NDArray[np.float32]
    flip: npt.NDArray[np.bool_]
    color: npt.NDArray[np.float32]
    blur: npt.NDArray[np.float32]
    difference: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        leading = self.flip.shape
        if len(leading) != 2:
            raise ValueError(f"AugmentPlan.flip must be [B, P], got shape {leading}")
        _check_leading("AugmentPlan", (*leading, 4), crop=self.crop)
        _check_leading("AugmentPlan", (*leading, 3, 4), color=self.color)
        _check_leading("AugmentPlan", leading, blur=self.blur)
        if self.difference is not None:
            _check_leading("AugmentPlan", leading, difference=self.difference)


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Stream(_Shaped):
    """A video for a decoder on the device, cut down to the groups of pictures that hold the wanted frames.

    content  u8[bytes]  a whole video file
    wanted   i32[F]     the numbers that the wanted frames have in it: distinct, ascending
    frames   i32[F]     their numbers in the stored sample: distinct, ascending
    """

    content: npt.NDArray[np.uint8]
    wanted: npt.NDArray[np.int32]
    frames: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        _check_leading("Stream", self.frames.shape, wanted=self.wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one video's clips need, and no more: either pictures or a stream.

    sample      its number in the data set
    key         its key
    label       class number or None
    pictures    frame number -> picture, for each distinct frame of the plan. Where the codec stores pictures
                (`Codec.pictures`), each is one as stored, a complete JPEG file: u8[bytes]. Where it stores a stream of
                video that was decoded on the host: RGB u8[H, W, 3], contiguous. Empty where there is a stream.
    bytes_read  how many bytes were read from storage to get them: also headers, and groups of pictures to their end
    stream      the frames of the plan, still encoded, where the device shall decode them
    bytes_used, frames_decoded   of what was read, what holds the plan's frames; how many are decoded to get them
    """

    sample: int
    key: str
    label: int | None
    pictures: dict[int, npt.NDArray[np.uint8]]
    bytes_read: int
    stream: Stream | None = None
    bytes_used: float = 0.0
    frames_decoded: int = 0


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Views(_Shaped):
    """A batch as the model gets it.

    pixels  [B, P, C, T, H, W] on the device, normalized; float32, or float16 on a GPU; channels-last in memory
    sample  i64[B] numbers in the data set
    label   i64[B]; -100 (torch's ignore index) where there is none
    """

    pixels: torch.Tensor
    sample: torch.Tensor
    label: torch.Tensor

    def __post_init__(self) -> None:
        if self.pixels.ndim != 6:
            raise ValueError(f"Views.pixels must be [B, P, C, T, H, W], got shape {tuple(self.pixels.shape)}")
        _check_leading("Views", (self.pixels.shape[0],), sample=self.sample, label=self.label)

    def clips(self) -> Iterator[torch.Tensor]:
        """The P clips one after another, each [B, C, T, H, W]: a view, no copy."""
        return iter(self.pixels.unbind(dim=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLimits:
    """What a device's video decoder takes of one codec, 8 bits 4:2:0: sides in pixels, inclusive; `blocks` of 16x16
    pixels a frame. engines: how many frames it decodes at once."""

    engines: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    max_blocks: int

    def fit(self, width: int, height: int) -> bool:
        """Whether it takes frames of this size, which it counts in whole blocks."""
        across, down = -(-width // 16), -(-height // 16)
        fits_width = self.min_width <= 16 * across and width <= self.max_width
        fits_height = self.min_height <= 16 * down and height <= self.max_height
        return fits_width and fits_height and across * down <= self.max_blocks


def frames_in(units: Units, num_frames: int) -> npt.NDArray[np.int64]:
    """How many frames each unit holds of its own: i64[U]."""
    return np.diff(units.frame, append=num_frames).astype(np.int64)


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
