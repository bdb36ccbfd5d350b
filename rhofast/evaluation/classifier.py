"""A backbone with a linear classifier on top, and the dropout in front of the classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalDropout(nn.Module):
    """Dropout that does not depend on the number of ranks.

    The mask is drawn for the global batch, and each rank applies the rows of its own samples. `begin` must be called
    before each forward pass in training.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share
        self._seed, self._rows, self._batch = 0, slice(None), 0

    def begin(self, *, seed: int, rows: slice, batch: int) -> None:
        """Set the rows of the next forward pass.

        Args:
            seed: Seed of the step, the same on every rank.
            rows: Rows of the global batch that belong to this rank.
            batch: Size of the global batch.
        """
        self._seed, self._rows, self._batch = seed, rows, batch

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mask to f[B, D] in training; return the input in evaluation mode."""
        if not self.training or self._share == 0:
            return x
        generator = torch.Generator(x.device).manual_seed(self._seed)
        draws = torch.rand(self._batch, x.shape[1], generator=generator, device=x.device)[self._rows]
        return x * (draws >= self._share) / (1 - self._share)


class Classifier(nn.Module):
    """A backbone with a linear head: [N, 3, T, H, W] -> [N, classes].

    It returns logits in training and scores in evaluation mode, by the softmax or, for several labels per video, by the
    sigmoid. For frames larger than in training, the feature
    maps of a network with a `feature_maps` method are pooled in windows of the training size, and the scores of all
    positions are averaged.
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
        several: bool = False,
    ) -> None:
        """Build the head.

        Args:
            backbone: [N, 3, T, H, W] -> [N, num_features].
            num_classes: Number of classes.
            trained: Whether the weights of the backbone are trained, except for those that it keeps frozen itself. If
                not, it gets no gradient.
            batch_stats: Whether batch norms use the statistics of the batch in training mode and update their running
                statistics. If not, the running statistics stay fixed.
            dropout: Probability in [0, 1) that a feature is dropped.
            size: Height and width in pixels of the frames in training. None disables the pooling of larger frames.
            several: Whether a video may have several classes: the scores are sigmoids, not a softmax.
        """
        super().__init__()
        self.backbone = backbone if trained else backbone.requires_grad_(False)
        self.dropout = GlobalDropout(dropout)
        width: Any = backbone.num_features
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self._trained, self._batch_stats, self._size, self._several = trained, batch_stats, size, several

    def train(self, mode: bool = True) -> Classifier:
        """Set the training mode, except for modules of the backbone that stay in evaluation mode."""
        super().train(mode)
        if not self._batch_stats:
            for module in self.backbone.modules():
                if not self._trained or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (training) or scores (evaluation), f[N, classes]."""
        if self.training:
            with torch.set_grad_enabled(self._trained):
                features = self.backbone(pixels)
            logits: Tensor = self.head(self.dropout(features))
            return logits
        positions: Tensor = self.head(self._features(pixels))
        scores = positions.sigmoid() if self._several else positions.softmax(dim=-1)
        return scores if scores.ndim == 2 else scores.mean(dim=1)

    def _features(self, pixels: Tensor) -> Tensor:
        """Return features [N, D], or [N, positions, D] where frames are larger than in training."""
        maps = getattr(self.backbone, "feature_maps", None)
        if maps is None or self._size is None or pixels.shape[-1] <= self._size:
            features: Tensor = self.backbone(pixels)
            return features
        last = maps(pixels)[-1]
        shrunk = -(-pixels.shape[-1] // last.shape[-1])
        window = min(-(-self._size // shrunk), last.shape[-1])
        return F.avg_pool3d(last, (last.shape[2], window, window), stride=1).flatten(2).transpose(1, 2)
