"""Regions of feature maps, as detection pools them: the door to torchvision's operator."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import roi_align


def pool_regions(maps: Tensor, boxes: Tensor, *, size: int, scale: float) -> Tensor:
    """Sample the regions of boxes on a grid, by bilinear interpolation at continuous positions (RoIAlign).

    Each cell of the grid is the mean of as many samples as it has pixels of the map, rounded up; boxes are shifted by
    half a pixel of the map (`aligned`), as in Detectron2 and PySlowFast.

    Args:
        maps: f32[N, C, H, W].
        boxes: Number of the map, left, top, right and bottom of each box in pixels of the input, f32[K, 5].
        size: Cells per side of the grid.
        scale: Pixels of the map per pixel of the input.

    Returns:
        f32[K, C, size, size].
    """
    pooled: Tensor = roi_align(maps, boxes, size, scale, sampling_ratio=-1, aligned=True)
    return pooled
