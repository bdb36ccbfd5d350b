"""What flows from a video file to the model. Frozen values, keyword-only, with shapes in their repr.

    VideoRecord --ingest--> shards --order, clips, augment--> plans --reader--> Sample --pipeline--> Views

Plans are numbers, not callables: they can be printed, stored, replayed, and given to the CPU and the GPU graph alike.
Shape legend: B videos, P clips a video (rho), T frames a clip, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _check_leading(owner: str, leading: tuple[int, ...], **arrays: Any) -> None:
    for name, array in arrays.items():
        if tuple(array.shape[: len(leading)]) != leading:
            raise ValueError(f"{owner}.{name} has shape {tuple(array.shape)}; its leading dimensions must be {leading}")


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class ClipPlan(_Shaped):
    """Which frames: `frames` i32[B, P, T], frame numbers in the stored sample, each in [0, number of frames)."""

    frames: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.frames.ndim != 3:
            raise ValueError(f"ClipPlan.frames must be [B, P, T], got shape {self.frames.shape}")


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class AugmentPlan(_Shaped):
    """What happens to each clip, the same for all its frames.

    crop   f32[B, P, 4]     left, top, width, height in stored pixels (whole numbers)
    flip   bool[B, P]       mirror left to right
    color  f32[B, P, 3, 4]  rgb' = color[:, :3] @ rgb + color[:, 3], on 0..255, rounded and clamped once at the end
    blur   f32[B, P]        sigma of the Gaussian in output pixels; 0 leaves the clip as it is
    """

    crop: npt.NDArray[np.float32]
    flip: npt.NDArray[np.bool_]
    color: npt.NDArray[np.float32]
    blur: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        leading = self.flip.shape
        if len(leading) != 2:
            raise ValueError(f"AugmentPlan.flip must be [B, P], got shape {leading}")
        _check_leading("AugmentPlan", (*leading, 4), crop=self.crop)
        _check_leading("AugmentPlan", (*leading, 3, 4), color=self.color)
        _check_leading("AugmentPlan", leading, blur=self.blur)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one video's clips need, and no more.

    sample      its number in the data set
    key         its key
    label       class number or None
    pictures    frame number -> picture, for each distinct frame of the plan. Where the codec stores pictures
                (`Codec.pictures`), each is one as stored, a complete JPEG file: u8[bytes]. Where it stores a stream of
                video, each is decoded: RGB u8[H, W, 3], contiguous. A data set has one kind.
    bytes_read  how many bytes were read from storage to get them: also headers, and groups of pictures to their end
    """

    sample: int
    key: str
    label: int | None
    pictures: dict[int, npt.NDArray[np.uint8]]
    bytes_read: int


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
