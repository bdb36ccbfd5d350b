"""A backbone that says what the persons in given boxes do: RoIAlign on its last map, and a linear head.

    clips [N, 3, T, H, W] --backbone--> [N, C, T, h, w] --mean over T--> [N, C, h, w]
    boxes --RoIAlign 7 x 7--> [K, C, 7, 7] --maximum--> [K, C] --dropout, linear, sigmoid--> [K, actions]

It is the head of PySlowFast for AVA. The boxes come from annotators or from a detector of persons; the network does not
change them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.evaluation.classifier import Classifier
from rhofast.models.roi_align import pool_regions

_GRID = 7  # cells per side of a region


class Detector(Classifier):
    """A backbone with a head per box: clips and their boxes -> [K, actions].

    It returns logits in training and sigmoid scores in evaluation mode.

    Args:
        backbone: A network with `feature_maps`, whose last map has num_features channels.
        num_actions: Number of actions.
        batch_stats: Whether batch norms use the statistics of the batch in training mode (see Classifier).
        dropout: Probability in [0, 1) that a feature is dropped.

    Raises:
        ConfigError: The backbone has no feature maps.
    """

    def __init__(self, backbone: nn.Module, num_actions: int, *, batch_stats: bool, dropout: float = 0.0) -> None:
        if not hasattr(backbone, "feature_maps"):
            raise ConfigError(
                f"{type(backbone).__name__} has no feature maps, in which detection looks at boxes",
                hint="choose a Slow or S3D backbone",
            )
        super().__init__(backbone, num_actions, trained=True, batch_stats=batch_stats, dropout=dropout)

    def forward(self, pixels: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits (training) or sigmoid scores (evaluation), f[K, actions].

        Args:
            pixels: Clips [N, 3, T, H, W].
            boxes: Number of the clip, left, top, right and bottom of each box in pixels, f32[K, 5].
        """
        maps: Tensor = self.backbone.feature_maps(pixels)[-1].mean(dim=2)  # type: ignore[operator]
        scale = 1 / map_stride(pixels.shape[-2:], maps.shape[-2:])
        with torch.autocast(pixels.device.type, enabled=False):
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
            regions = pool_regions(wide, boxes.to(wide.dtype), size=_GRID, scale=scale)
        logits: Tensor = self.head(self.dropout(regions.amax(dim=(2, 3))))
        return logits if self.training else logits.sigmoid()


def map_stride(pixels: torch.Size, maps: torch.Size) -> int:
    """Return how many pixels a place of the map stands for: the power of two nearest to the ratio of their sides.

    Sides that the stride does not divide are rounded up by the network, so that the ratio alone is not it.

    Args:
        pixels: Height and width of the clips.
        maps: Height and width of the maps.
    """
    ratio = math.sqrt(pixels[0] * pixels[1] / (maps[0] * maps[1]))
    return 1 << max(0, round(math.log2(ratio)))
