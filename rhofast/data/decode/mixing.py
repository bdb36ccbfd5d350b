"""Erase rectangles of clips, and mix clips of two videos, as a plan says; in torch, on normalized pixels.

erase   a rectangle shows normal noise, or the mean color
mix     a' = s a + (1 - s) b, or a rectangle of a shows b;  b' likewise, with its own numbers, from the a before
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def erase_boxes(pixels: Tensor, boxes: npt.NDArray[np.int32], noise: npt.NDArray[np.int64] | None) -> None:
    """Erase rectangles in place, the same one in all frames of a clip.

    Noise is that of torch's generator of the device with the plan's seed: a function of the clip's address, but another
    one on a GPU than on the CPU.

    Args:
        pixels: Normalized pixels, f32[B, P, C, T, H, W].
        boxes: Left, top, width and height, i32[B, P, 4]; width 0 for nothing.
        noise: Seed of the noise of each clip, i64[B, P]; None for the mean color, 0.
    """
    generator = torch.Generator(pixels.device)
    for b, p in zip(*np.nonzero(boxes[..., 2]), strict=True):
        box = _inside(pixels[b, p].permute(1, 2, 3, 0), boxes[b, p].tolist())  # [T, h, w, C], as it lies in memory
        if noise is None:
            box.zero_()
        else:
            generator.manual_seed(int(noise[b, p]))
            box.copy_(torch.randn(box.shape, generator=generator, device=box.device))


def mix_neighbors(pixels: Tensor, share: npt.NDArray[np.float32], cut: npt.NDArray[np.int32]) -> None:
    """Mix clip p of sample b with clip p of sample b XOR 1, in place.

    Args:
        pixels: Normalized pixels, f32[B, P, C, T, H, W], with an even B.
        share: Share of the clip itself, f32[B, P].
        cut: The rectangle that shows the other clip, i32[B, P, 4]; width 0: all pixels are blended.

    Raises:
        ValueError: B is odd.
    """
    if len(pixels) % 2:
        raise ValueError(f"{len(pixels)} videos cannot be mixed in pairs")
    for b in range(0, len(pixels), 2):
        for p in np.flatnonzero((share[b : b + 2] < 1).any(axis=0)):
            clips = [pixels[b + which, p].permute(1, 2, 3, 0) for which in (0, 1)]
            numbers = [(float(share[b + which, p]), cut[b + which, p].tolist()) for which in (0, 1)]
            # What one takes of the other is copied before the other changes.
            taken = [_taken(clips[1 - which], *numbers[which]) for which in (0, 1)]
            for clip, (own, box), other in zip(clips, numbers, taken, strict=True):
                if other is None:
                    continue
                if box[2]:
                    _inside(clip, box).copy_(other)
                else:
                    clip.lerp_(other, 1 - own)


def _taken(other: Tensor, own: float, box: Sequence[int]) -> Tensor | None:
    """Return a copy of what a clip takes of the other one; None for nothing."""
    if own == 1:
        return None
    return (_inside(other, box) if box[2] else other).clone()


def _inside(clip: Tensor, box: Sequence[int]) -> Tensor:
    """Return a view of a rectangle (left, top, width, height) of all frames [T, H, W, C]."""
    left, top, width, height = box
    return clip[:, top : top + height, left : left + width]
