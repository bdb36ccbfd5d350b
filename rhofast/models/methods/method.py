"""The interface of a pretraining method.

A method is a module around a backbone that turns several clips of each video into a loss. The trainer calls it so:

    begin_step(progress)                                once per step
    forward(pixels, 0), backward                        once per pass: a step has num_passes(num_clips) of them, so that
    ...                                                 memory holds the activations of one pass at a time
    forward(pixels, num_passes - 1), backward
    end_step()                                          once per step, before the optimizer

With micro-batches, all passes run for each of them. METHODS in `methods/__init__.py` lists the methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """Where a step is in the run.

    Attributes:
        step: number of optimizer steps done.
        epoch: number of passes over the data done, fractional.
        epochs: length of the run in epochs.
        seed: seed of the run. What a step draws alike on all ranks is a function of `seed` and `step`.
    """

    step: int
    epoch: float
    epochs: float
    seed: int = 0

    @property
    def fraction(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        return self.epoch / self.epochs


class Method(nn.Module, ABC):
    """A way to train a backbone from several clips per video.

    Everything that must survive a checkpoint is a parameter or a buffer. Parameters that are not trained have
    requires_grad off. All others get a gradient from every backward pass of a step's last pass.

    Attributes:
        backbone: the network that is trained, which evaluation and export use.
        coupling: a clause that says how the loss couples the videos of a batch, so that it is not a sum over
            micro-batches; None if it does not. (Batch norm couples them too; the trainer checks that itself.)
    """

    backbone: nn.Module
    coupling: str | None = None

    @abstractmethod
    def num_passes(self, num_clips: int) -> int:
        """Return the number of forward and backward passes per step.

        Args:
            num_clips: number of clips per video.

        Raises:
            ValueError: if the method cannot use this number of clips.
        """

    def check(self, num_clips: int, batch_size: int) -> None:
        """Refuse batches that the method cannot use.

        Args:
            num_clips: number of clips per video.
            batch_size: number of videos in a batch of all ranks.

        Raises:
            ValueError: if the method cannot use them.
        """
        self.num_passes(num_clips)

    def begin_step(self, progress: TrainingProgress) -> None:
        """Prepare a step, before its first forward pass."""

    @abstractmethod
    def forward(self, pixels: Tensor, pass_index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one pass.

        Args:
            pixels: [B, P, C, T, H, W], the P clips of this rank's B videos.
            pass_index: number of the pass, 0 to num_passes - 1, in order.

        Returns:
            The loss of this pass, and metrics as detached scalars.
        """

    def end_step(self) -> None:
        """Finish a step, after its last backward pass: gradients that must not be applied become None."""
