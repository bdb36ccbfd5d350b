"""The values that flow from a video file to the model: frozen, keyword-only, with shapes in their repr.

    VideoRecord --ingest--> shards --order, clips, augment--> plans --reader--> Sample --pipeline--> Views

Plans are numbers, not callables: they can be printed, stored and replayed, and the graphs of the CPU and of the GPU
take the same ones. In shapes, B is the number of videos, P of clips per video (rho), T of frames per clip, and C, H, W
are channels, height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rhofast.data.inside import ByteRange, ParquetCell
from rhofast.data.shaped import Plan, Shaped, check_leading

if TYPE_CHECKING:  # the plans need numpy alone; only Views holds tensors
    import torch

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in the luma of a pixel (ITU-R BT.601), f64[3]."""


class TimedLabel(NamedTuple):
    """One of several labels of a video, which holds for [start, end) of it.

    Attributes:
        label: Class number >= 0.
        start: Seconds; None for the beginning.
        end: Seconds; None for the end.
    """

    label: int
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One sample of a data set as its recipe found it: a video file, or a segment of it.

    All times are seconds since the first shown picture of the file.

    Attributes:
        key: Short ASCII name, unique in the data set, of letters, digits, `_` and `-`.
        path: The video file, or the file that it lies in.
        label: Class number >= 0, or None if there are no labels.
        label_name: Name of the class, or None if only numbers are known.
        start: Beginning of the segment; None for the beginning of the file.
        end: End of the segment, which is not in it; None for the end of the file.
        labels: Further labels, each with the time for which it holds: (class number, start, end).
        extra: The user's own fields, a JSON object of at most 64 KiB in UTF-8, which is stored as it is.
        inside: Where in the file the video lies, if it is one of many there; None: the file is the video.
        where: Where the record stands, such as `list.csv:7`, for messages; empty where nothing but the path says it.
    """

    key: str
    path: Path
    label: int | None = None
    label_name: str | None = None
    start: float | None = None
    end: float | None = None
    labels: Sequence[tuple[int, float | None, float | None]] | None = None
    extra: Mapping[str, Any] | None = None
    inside: ByteRange | ParquetCell | None = field(default=None, kw_only=True)
    where: str = field(default="", compare=False, kw_only=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedOver:
    """A file or folder that a recipe found and does not list.

    Attributes:
        path: The file or folder.
        reason: Why, in a few words, such as `hidden`; things that are passed over are counted by it.
    """

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A point of the run between two batches.

    Attributes:
        epoch: Number of the epoch, >= 0.
        position: Number of samples of this epoch that were consumed before.
    """

    epoch: int
    position: int


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Units(Shaped):
    """The U pieces of one stored member that can be read and checked one by one, in their order.

    Attributes:
        frame: Number of the first frame of each unit, i32[U]. Negative where units hold frames before the sample's
            frame 0: a segment is stored as the groups of pictures that contain it.
        offset: Position of each unit in bytes from the first byte of the member, i64[U]. There is nothing between them.
        size: Size of each unit in bytes, i32[U].
        crc: Checksum of each unit, u32[U].
        rgb: Measured mean colors in 0..255, f32[C, 3]: of each unit, or of fewer frames (see units.colors_of).
        after: Number of frames that the last unit holds behind the sample's last one.
    """

    frame: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    crc: npt.NDArray[np.uint32]
    rgb: npt.NDArray[np.float32]
    after: int = 0


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Geometry(Shaped):
    """The properties of B samples that plans depend on.

    Attributes:
        num_frames: Frames per sample, i32[B].
        fps: Frames per second, f64[B].
        width: Width of the stored frames in pixels, i32[B].
        height: Height of the stored frames in pixels, i32[B].
        pixel_aspect: Width of a pixel as shown, divided by its height, f64[B]; 1 for square pixels.
    """

    num_frames: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    pixel_aspect: npt.NDArray[np.float64]

    @property
    def shown_width(self) -> npt.NDArray[np.int32]:
        """Width of the frames as shown, in pixels that are as wide as the stored ones are high, i32[B]."""
        return np.maximum(np.rint(self.width * self.pixel_aspect), 1).astype(np.int32)


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class ClipPlan(Plan):
    """The frames of each clip, by their numbers in the stored sample, in [0, number of frames).

    Attributes:
        frames: The frames that the clips show, i32[B, P, T].
        neighbor: The frames that are subtracted from them in the clips of `AugmentPlan.difference`, i32[B, P, T]; equal
            to `frames` in all other clips. None if no clip can show differences.
    """

    frames: npt.NDArray[np.int32]
    neighbor: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 3:
            raise ValueError(f"ClipPlan.frames has shape {self.frames.shape}; it must be [B, P, T]")
        if self.neighbor is not None:
            check_leading("ClipPlan", self.frames.shape, neighbor=self.neighbor)

    @property
    def needed(self) -> npt.NDArray[np.int32]:
        """All frames that must be decoded, with repeats: i32[B, 1, P, T], or i32[B, 2, P, T] with neighbors."""
        return np.stack([self.frames] if self.neighbor is None else [self.frames, self.neighbor], axis=1)


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class AugmentPlan(Plan):
    """The augmentation of each clip, the same for all its frames.

    Attributes:
        crop: Left, top, width and height in stored pixels (whole numbers), f32[B, P, 4].
        flip: Whether the clip is mirrored left to right, bool[B, P].
        color: Color matrix, f32[B, P, 3, 4]: rgb' = color[:, :3] @ rgb + color[:, 3], on 0..255, clamped once at the
            end.
        blur: Sigma of the Gaussian in output pixels, f32[B, P]; 0 leaves the clip as it is.
        difference: Whether the clip shows differences in time, bool[B, P]: before `color`,
            r = g = b = (255 + luma(frame) - luma(neighbor)) / 2, with the frames of ClipPlan. None if no clip can show
            differences.
        size: Width and height to which crops are resized in pixels, i32[B, P, 2], the same for all clips of a batch.
            None for squares of `augment.size`.
        ops: Operations of RandAugment after the blur, in their order, i8[B, P, N]: numbers of ImageOp, 0 for none.
            None without RandAugment.
        amounts: How much each of them does, f32[B, P, N], in the units of ImageOp.
        erase: Left, top, width and height of what is then erased, in output pixels, i32[B, P, 4]; width 0 for nothing.
            None without random erasing.
        noise: Seed of the normal noise there, i64[B, P]; None: the mean color is there.
        share: Share of the clip itself in its mixture with clip p of the batch's sample b XOR 1, f32[B, P] in [0, 1].
            None without mixing.
        cut: Left, top, width and height of the other clip's rectangle in this one, in output pixels, i32[B, P, 4];
            width 0: all pixels are blended by `share`.
    """

    crop: npt.NDArray[np.float32]
    flip: npt.NDArray[np.bool_]
    color: npt.NDArray[np.float32]
    blur: npt.NDArray[np.float32]
    difference: npt.NDArray[np.bool_] | None = None
    size: npt.NDArray[np.int32] | None = None
    ops: npt.NDArray[np.int8] | None = None
    amounts: npt.NDArray[np.float32] | None = None
    erase: npt.NDArray[np.int32] | None = None
    noise: npt.NDArray[np.int64] | None = None
    share: npt.NDArray[np.float32] | None = None
    cut: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        leading = self.flip.shape
        if len(leading) != 2:
            raise ValueError(f"AugmentPlan.flip has shape {leading}; it must be [B, P]")
        check_leading("AugmentPlan", (*leading, 4), crop=self.crop)
        check_leading("AugmentPlan", (*leading, 3, 4), color=self.color)
        check_leading("AugmentPlan", leading, blur=self.blur)
        if self.size is not None:
            check_leading("AugmentPlan", (*leading, 2), size=self.size)
        for name in ("difference", "ops", "amounts", "erase", "noise", "share", "cut"):
            if getattr(self, name) is not None:
                check_leading("AugmentPlan", leading, **{name: getattr(self, name)})


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Stream(Shaped):
    """A video for a decoder on the device, cut down to the groups of pictures that hold the wanted frames.

    Attributes:
        content: A complete video file, u8[bytes].
        wanted: Numbers of the wanted frames in `content`, i32[F]; distinct and ascending.
        frames: Numbers of the same frames in the stored sample, i32[F]; distinct and ascending.
    """

    content: npt.NDArray[np.uint8]
    wanted: npt.NDArray[np.int32]
    frames: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        check_leading("Stream", self.frames.shape, wanted=self.wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The frames that the clips of one video need, and no more: either pictures or a stream.

    Attributes:
        sample: Number of the sample in the data set.
        key: Key of the video.
        label: Class number, or None.
        pictures: Frame number -> picture, for each distinct frame of the plan. If the codec stores pictures
            (`Codec.pictures`), each picture is a complete JPEG file as stored, u8[bytes]. If it stores a video stream
            that was decoded on the host, each is RGB u8[H, W, 3], contiguous. Empty if there is a stream.
        bytes_read: Number of bytes that were read from storage, including headers and the rest of groups of pictures.
        stream: The frames of the plan, still encoded, if the device will decode them; otherwise None.
        bytes_used: Number of the bytes read that hold the frames of the plan (see units.usage).
        frames_decoded: Number of frames that are decoded to get the frames of the plan.
        extra: Fields of the user's own; None if they were not asked for.
    """

    sample: int
    key: str
    label: int | None
    pictures: dict[int, npt.NDArray[np.uint8]]
    bytes_read: int
    stream: Stream | None = None
    bytes_used: float = 0.0
    frames_decoded: int = 0
    extra: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class Views(Shaped):
    """A batch as the model gets it, by attributes (`views.pixels`) or as a dict (`views["pixels"]`, `**views`).

    Attributes:
        pixels: Normalized pixels [B, P, C, T, H, W] on the device, channels-last in memory; float32, or float16 on a
            GPU if the loader was asked for it.
        sample: Numbers of the samples in the data set, i64[B].
        label: Class numbers, i64[B]; -100 (the ignore index of torch) for samples without a label.
        share: Share of each clip's own label where clips are mixed (mixup, CutMix), f32[B, P]; the rest is the label of
            sample b XOR 1. None, and not in the dict, without mixing.
        labels: Which classes hold at some time of each clip, bool[B, P, classes]: the label and those with times.
        key: Keys of the samples, B texts.
        extra: Fields of the user's own, B dicts; `views["extra.NAME"]` is a list of one of them, None where it is not.

    The last three are None, and not in the dict, unless the loader was asked for them (`fields`).
    """

    pixels: torch.Tensor
    sample: torch.Tensor
    label: torch.Tensor
    share: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    key: list[str] | None = None
    extra: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 6:
            raise ValueError(f"Views.pixels has shape {tuple(self.pixels.shape)}; it must be [B, P, C, T, H, W]")
        check_leading("Views", (self.pixels.shape[0],), sample=self.sample, label=self.label)
        for name in ("share", "labels"):
            if getattr(self, name) is not None:
                check_leading("Views", tuple(self.pixels.shape[:2]), **{name: getattr(self, name)})

    def clips(self) -> Iterator[torch.Tensor]:
        """Return the P clips one after another, each a view [B, C, T, H, W] without a copy."""
        return iter(self.pixels.unbind(dim=1))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """Return the batch on a device; tensors that are there already are not copied, and lists stay what they are.

        Args:
            device: The device.
            non_blocking: Whether a copy from pinned memory may go on while the caller continues, as in `Tensor.to`.

        Returns:
            The batch, with the layout of its pixels in memory.
        """
        held = dict(self)
        moved: dict[str, Any] = {
            name: value if isinstance(value, list) else value.to(device, non_blocking=non_blocking)
            for name, value in held.items()
        }
        return self if all(moved[name] is held[name] for name in held) else type(self)(**moved)

    def keys(self) -> tuple[str, ...]:
        """Return the names of what the batch has; with it `dict(views)` and `model(**views)` work."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name) is not None)

    def __getitem__(self, name: str) -> Any:
        """Return a tensor or list by its name; raise KeyError if there is none of this name."""
        if name in self.keys():
            return getattr(self, name)
        if self.extra is not None and name.startswith("extra."):
            return [one.get(name.removeprefix("extra.")) for one in self.extra]
        raise KeyError(f"{name!r} is not in the batch, which has {', '.join(self.keys())}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())
