"""Draw clips that a program holds: a batch of a loader, or stored frames of a `ClipDataset`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rhofast.analysis.rendering import DrawnClip, DrawnVideo, contact_sheet
from rhofast.analysis.replay import displayable
from rhofast.data.loader.staged_loader import StagedLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Views
from rhofast.errors import ConfigError

_FRAME_WIDTH = 128  # pixels; wider frames are made smaller, so that a row of eight fits on a screen

Frames = npt.NDArray[np.uint8]


def draw_clips(
    clips: Views | torch.Tensor,
    loader: StagedLoader | None = None,
    *,
    videos: int | None = None,
    pixel_aspect: float = 1.0,
) -> Image.Image:
    """Draw clips, one per row with its frames from left to right; the clips of a video are below each other.

    A notebook shows the picture if it is the value of a cell; `.save("clips.png")` writes it to a file.

    Args:
        clips: A batch of a loader, or frames as a `ClipDataset` gives them: RGB u8[T, H, W, 3] or u8[N, T, H, W, 3].
        loader: The loader that the batch is of, which undoes the normalization and names the videos. Needed for a
            batch only.
        videos: Number of videos to draw, from the first; None for all.
        pixel_aspect: Width of a stored pixel as shown, divided by its height: `ClipDataset.row(sample).pixel_aspect`.
            Batches have square pixels in any case.

    Returns:
        The picture. Frames are about 128 pixels wide.

    Raises:
        ConfigError: An argument is wrong.
    """
    if videos is not None and (isinstance(videos, bool) or not isinstance(videos, int) or videos < 1):
        raise ConfigError(f"videos={videos!r} must be a whole number, at least 1")
    if isinstance(clips, Views):
        if not isinstance(loader, StagedLoader):
            raise ConfigError(
                f"loader={loader!r} must be the loader of the batch, which knows its normalization",
                hint="draw_clips(views, loader)",
            )
        frames = displayable(clips.pixels[:videos], loader.augment)
        aspect = 1.0
        titles = [_title(loader.shards, sample) for sample in clips.sample[:videos].tolist()]
        captions = [(f"clip {number + 1}",) if frames.shape[1] > 1 else () for number in range(frames.shape[1])]
    else:
        if isinstance(pixel_aspect, bool) or not isinstance(pixel_aspect, int | float) or not 0 < pixel_aspect < 1e3:
            raise ConfigError(f"pixel_aspect={pixel_aspect!r} must be a positive number, 1 for square pixels")
        frames, aspect = _stored(clips)[:videos], float(pixel_aspect)
        titles, captions = [()] * len(frames), [()]
    return contact_sheet([_drawn(*video, captions) for video in zip(titles, _fitted(frames, aspect), strict=True)])


def _title(shards: Mixture, sample: int) -> tuple[str, ...]:
    """Return key and class of a sample."""
    row = shards.row(sample)
    classes = shards.sets[shards.locate(sample)[0]].info.classes
    return (row.key,) if row.label is None else (row.key, classes[row.label])


def _stored(clips: object) -> Frames:
    """Return stored frames as u8[N, 1, T, H, W, 3]."""
    shape = tuple(getattr(clips, "shape", ()))
    if not isinstance(clips, torch.Tensor) or clips.dtype != torch.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        kind = str(getattr(clips, "dtype", "")).removeprefix("torch.")
        given = f"{kind}{list(shape)}" if shape else repr(clips)
        raise ConfigError(f"clips={given:.80} must be a batch of a loader, or frames u8[T, H, W, 3]")
    if not clips.numel():
        raise ConfigError(f"clips: there is nothing to draw in a tensor of shape {list(shape)}")
    return np.asarray(clips.cpu().reshape(-1, 1, *shape[-4:]).numpy())


def _fitted(frames: Frames, aspect: float) -> Frames:
    """Return frames u8[..., H, W, 3] of square pixels that are no wider than `_FRAME_WIDTH`."""
    *leading, height, width, _ = frames.shape
    shown = max(1, round(width * aspect))
    if width <= _FRAME_WIDTH and shown == width:
        return frames
    across = min(shown, _FRAME_WIDTH)
    size = across, max(1, round(height * across / shown))
    small = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
        for frame in frames.reshape(-1, height, width, 3)
    ]
    return np.stack(small).reshape(*leading, size[1], size[0], 3)


def _drawn(title: tuple[str, ...], frames: Frames, captions: Sequence[tuple[str, ...]]) -> DrawnVideo:
    """Return the clips of a video, u8[P, T, H, W, 3], with their words."""
    clips = (DrawnClip(frames=clip, caption=caption) for clip, caption in zip(frames, captions, strict=True))
    return DrawnVideo(title=title, clips=tuple(clips))
