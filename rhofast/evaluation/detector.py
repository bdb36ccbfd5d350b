"""A backbone that says what the persons in given boxes do: RoIAlign on its last map, and a linear head.

    clips [N, 3, T, H, W] --backbone--> [N, C, T, h, w] --mean over T--> [N, C, h, w]
    boxes --RoIAlign 7 x 7--> [K, C, 7, 7] --maximum--> [K, C] --dropout, linear, sigmoid--> [K, actions]

It is the head of PySlowFast for AVA. The last map of a ViT are its tokens at their places. The boxes come from
annotators or from a detector of persons; the network does not change them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhofast.errors import ConfigError
from rhofast.evaluation.classifier import Classifier
from rhofast.models.backbones.clip_limits import ClipLimits
from rhofast.models.backbones.vit import ViT
from rhofast.models.roi_align import pool_regions

_GRID = 7  # cells per side of a region
_HINT = (
    "choose slow_..., s3d, s3dg, vit, r3d_18, mc3_18, r2plus1d_18 or swin3d_..., or add a method last_map to your own"
)


class Detector(Classifier):
    """A backbone with a head per box: clips and their boxes -> [K, actions].

    It returns logits in training and sigmoid scores in evaluation mode.

    Args:
        backbone: A network with `last_map` (check_maps).
        num_actions: Number of actions.
        batch_stats: Whether batch norms use the statistics of the batch in training mode (see Classifier).
        dropout: Probability in [0, 1) that a feature is dropped.
    """

    def __init__(self, backbone: nn.Module, num_actions: int, *, batch_stats: bool, dropout: float = 0.0) -> None:
        super().__init__(backbone, num_actions, trained=True, batch_stats=batch_stats, dropout=dropout)
        limits = getattr(backbone, "limits", None)
        self._multiple = limits.size_multiple if isinstance(limits, ClipLimits) else 1

    def forward(self, pixels: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits (training) or sigmoid scores (evaluation), f[K, actions].

        Frames whose sides are no multiples of a ViT's patch are continued to the right and below with the mean color,
        as whole frames of any shape are tested.

        Args:
            pixels: Clips [N, 3, T, H, W].
            boxes: Number of the clip, left, top, right and bottom of each box in pixels, f32[K, 5].
        """
        below, right = (-side % self._multiple for side in pixels.shape[-2:])
        if below or right:
            pixels = functional.pad(pixels, (0, right, 0, below))
        maps: Tensor = self.backbone.last_map(pixels).mean(dim=2)  # type: ignore[operator]
        stride = getattr(self.backbone, "map_stride", None)
        scale = 1 / (stride or map_stride(pixels.shape[-2:], maps.shape[-2:]))
        with torch.autocast(pixels.device.type, enabled=False):
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
            regions = pool_regions(wide, boxes.to(wide.dtype), size=_GRID, scale=scale)
        logits: Tensor = self.head(self.dropout(regions.amax(dim=(2, 3))))
        return logits if self.training else logits.sigmoid()


def check_maps(backbone: nn.Module, name: str) -> None:
    """Check that a backbone has maps of whole frames of any shape, in which boxes are looked at.

    Args:
        backbone: The network.
        name: Its name, for the error.

    Raises:
        ConfigError: It has none, or none of such frames.
    """
    limits = getattr(backbone, "limits", None)
    if isinstance(limits, ClipLimits) and limits.exact:
        side = limits.size
        raise ConfigError(
            f"backbone.name={name}: it takes frames of {side} x {side} pixels alone; detection tests whole frames",
            hint=_HINT,
        )
    if not callable(getattr(backbone, "last_map", None)):
        raise ConfigError(f"backbone.name={name}: it gives no map in which detection could look at boxes", hint=_HINT)
    if isinstance(backbone, ViT):
        options = backbone.options
        if options.keep < 1:
            raise ConfigError(
                f"backbone.keep={options.keep:g}: detection needs the tokens of all places",
                hint="--set backbone.keep=1",
            )
        if options.position == "sincos1d" and not options.resize_positions:
            raise ConfigError(
                "backbone.position=sincos1d numbers the patches of each width anew, and detection tests frames of all "
                "shapes",
                hint="--set backbone.resize_positions=true resizes the positions of pretraining instead",
            )


def map_stride(pixels: torch.Size, maps: torch.Size) -> int:
    """Return how many pixels a place of the map stands for: the power of two nearest to the ratio of their sides.

    Sides that the stride does not divide are rounded up by the network, so that the ratio alone is not it.

    Args:
        pixels: Height and width of the clips.
        maps: Height and width of the maps.
    """
    ratio = math.sqrt(pixels[0] * pixels[1] / (maps[0] * maps[1]))
    return 1 << max(0, round(math.log2(ratio)))
