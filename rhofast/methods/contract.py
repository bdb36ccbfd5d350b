"""What the trainer asks of a method. The dict of methods is in `methods/__init__.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Method(nn.Module, ABC):
    """A way to learn a backbone from several clips of each video.

    A step is `num_parts(P)` calls of `forward`, each followed by a backward; gradients add up. Everything that must
    survive a checkpoint is a parameter or a buffer. Parameters that are not trained have requires_grad off.

    backbone: the network that is trained, as evaluation and export see it.
    """

    backbone: nn.Module

    @abstractmethod
    def num_parts(self, num_clips: int) -> int:
        """Forward and backward passes a step takes for P clips a video. Raises ValueError for a P it cannot use."""

    @abstractmethod
    def forward(self, pixels: Tensor, part: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss of this part, metrics as detached scalars).

        pixels: [B, P, C, T, H, W]. part: 0 .. num_parts - 1, in order. progress: share of the run that is over, in
        [0, 1], for schedules inside the method.
        """
