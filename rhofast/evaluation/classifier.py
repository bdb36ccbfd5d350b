"""A backbone with a linear classifier on top, and the dropout before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalDropout(nn.Module):
    """Dropout of rows [B, D] that are some of a global batch's: a row loses the same numbers on whichever rank it is,
    so the number of ranks changes nothing. `begin` comes before each forward in training."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share
        self._seed, self._rows, self._batch = 0, slice(None), 0

    def begin(self, *, seed: int, rows: slice, batch: int) -> None:
        """The next forward is of these rows of a global batch of so many. seed: of the step, the same on every rank."""
        self._seed, self._rows, self._batch = seed, rows, batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._share == 0:
            return x
        generator = torch.Generator(x.device).manual_seed(self._seed)
        draws = torch.rand(self._batch, x.shape[1], generator=generator, device=x.device)[self._rows]
        return x * (draws >= self._share) / (1 - self._share)


class Classifier(nn.Module):
    """[N, 3, T, H, W] -> [N, classes]: logits in training, softmax scores in evaluation mode.

    backbone: [N, 3, T, H, W] -> [N, num_features]. trained: whether the backbone's weights are; if not, no gradient
    goes there. batch_stats: its batch norms take the batch's statistics in training mode (they keep up their running
    ones, too); off: those stay as they are. size: pixels a side in training. Of larger pictures a network with a
    `feature_maps` method is pooled in windows of what `size` gave, and the scores of all places are averaged.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        trained: bool,
        batch_stats: bool,
        dropout: float = 0.0,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(trained)
        self.dropout = GlobalDropout(dropout)
        width: Any = backbone.num_features
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self._trained, self._batch_stats, self._size = trained, batch_stats, size

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if not self._batch_stats:
            for module in self.backbone.modules():
                if not self._trained or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        if self.training:
            with torch.set_grad_enabled(self._trained):
                features = self.backbone(pixels)
            logits: Tensor = self.head(self.dropout(features))
            return logits
        scores: Tensor = self.head(self._places(pixels)).softmax(dim=-1)
        return scores if scores.ndim == 2 else scores.mean(dim=1)

    def _places(self, pixels: Tensor) -> Tensor:
        """Features [N, D], or [N, places, D] where pictures are larger than in training."""
        maps = getattr(self.backbone, "feature_maps", None)
        if maps is None or self._size is None or pixels.shape[-1] <= self._size:
            features: Tensor = self.backbone(pixels)
            return features
        last = maps(pixels)[-1]
        shrunk = -(-pixels.shape[-1] // last.shape[-1])
        window = min(-(-self._size // shrunk), last.shape[-1])
        return F.avg_pool3d(last, (last.shape[2], window, window), stride=1).flatten(2).transpose(1, 2)
