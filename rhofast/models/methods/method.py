"""What the trainer asks of a method, how a step runs, and the key network that some methods share. The dict of methods
is in `methods/__init__.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """Where in the run a step is. step: optimizer steps done; epoch: passes over the data done, fractional; epochs:
    those of the whole run."""

    step: int
    epoch: float
    epochs: float

    @property
    def fraction(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        return self.epoch / self.epochs


class Method(nn.Module, ABC):
    """A way to learn a backbone from several clips of each video.

    A step is what `forward_backward` does. Everything that must survive a checkpoint is a parameter or a buffer.
    Parameters that are not trained have requires_grad off; all others get a gradient from every backward of a step's
    last pass.

    backbone: the network that is trained, as evaluation and export see it. coupling: how the loss ties the videos of a
    batch together, so that it is no sum over micro-batches; None where it does not. (Batch norm ties them too; the
    trainer looks for it.)
    """

    backbone: nn.Module
    coupling: str | None = None

    @abstractmethod
    def num_passes(self, num_clips: int) -> int:
        """Forward and backward passes a step takes for P clips a video. Raises ValueError for a P it cannot use."""

    def check(self, num_clips: int, batch_size: int) -> None:
        """Raise ValueError for P clips a video, or a batch of all ranks, that it cannot use."""
        self.num_passes(num_clips)

    def begin_step(self, progress: TrainingProgress) -> None:
        """What happens once a step, before its first forward."""

    @abstractmethod
    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss of this pass, metrics as detached scalars).

        pixels: [B, P, C, T, H, W]. pass_index: 0 .. num_passes - 1, in order.
        """

    def end_step(self) -> None:
        """What happens once a step, after its last backward: gradients that must not be followed become None."""
