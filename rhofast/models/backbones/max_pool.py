"""Max pooling over time and space whose gradient can be repeated.

On a GPU the backward pass of `max_pool3d` adds gradients with atomic operations, in any order, unless torch is told to
use deterministic algorithms. In that of `max_pool2d` one thread sums the gradients of an input in the order of its
windows, in either memory layout, so training can be repeated. Torch lists the former as nondeterministic, and not the
latter; the compiled kernels of torch 2.14 agree (sm_90: atomic additions in the former, none in the latter).

The maximum over a box is the maximum over time of those over frames, so two poolings in two dimensions do for one in
three. Outputs are the same. So are gradients, except where several values of a box are the largest and it has more
than one frame: then another of them may get the gradient.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return the maxima of boxes: [N, C, T, H, W] -> [N, C, T', H', W'], in the same memory layout.

    Args:
        x: maps.
        kernel: frames, and pixels per side, of a box. Odd ones are padded by half of them, even ones are not padded.
        stride: distance of boxes in frames and in pixels.

    Returns:
        The maxima.
    """
    x = _over_space(x, kernel[1], stride[1])
    return x if kernel[0] == 1 else _over_time(x, kernel[0], stride[0])


def _over_space(x: Tensor, side: int, stride: int) -> Tensor:
    n, c, t, h, w = x.shape
    padding = side // 2 if side % 2 else 0
    if x.is_contiguous():  # frames become channels; either way no memory is copied
        pooled = F.max_pool2d(x.view(n, c * t, h, w), side, stride=stride, padding=padding)
        return pooled.view(n, c, t, *pooled.shape[2:])
    pooled = F.max_pool2d(x.transpose(1, 2).reshape(n * t, c, h, w), side, stride=stride, padding=padding)
    return pooled.view(n, t, *pooled.shape[1:]).transpose(1, 2)


def _over_time(x: Tensor, frames: int, stride: int) -> Tensor:
    padding = frames // 2 if frames % 2 else 0
    n, c, t, h, w = x.shape
    if x.is_contiguous():
        rows = x.view(n, c, t, h * w)
    else:  # channels last in two dimensions, too
        rows = x.permute(0, 2, 3, 4, 1).reshape(n, t, h * w, c).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(rows, (frames, 1), stride=(stride, 1), padding=(padding, 0))
    return pooled.view(n, c, -1, h, w)
