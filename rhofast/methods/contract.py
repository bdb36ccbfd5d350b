"""What the trainer asks of a method, and the key network that some share. The dict is in `methods/__init__.py`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.optim import ema_momentum, update_ema


class Method(nn.Module, ABC):
    """A way to learn a backbone from several clips of each video.

    A step is `num_parts(P)` calls of `forward`, each followed by a backward; gradients add up. Everything that must
    survive a checkpoint is a parameter or a buffer. Parameters that are not trained have requires_grad off; all others
    get a gradient in every step.

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


class MomentumMethod(Method):
    """A method whose keys come from a moving average of the trained backbone and projection.

    The average is over parameters; the key network's batch norms keep running statistics of their own. base: momentum
    at the start of the run; it rises to 1 along a cosine if `anneal`.
    """

    def __init__(self, backbone: nn.Module, projection: nn.Module, *, base: float, anneal: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.key_backbone = copy.deepcopy(backbone).requires_grad_(requires_grad=False)
        self.key_projection = copy.deepcopy(projection).requires_grad_(requires_grad=False)
        self.register_buffer("momentum", torch.tensor(base, dtype=torch.float64))
        self._base, self._anneal = base, anneal
        self._momentum = base  # the same number where no device has to be asked for it
        self.register_load_state_dict_post_hook(_remember_momentum)  # type: ignore[no-untyped-call]

    def move_keys(self, progress: float, *, held: bool) -> None:
        """Update the key network; call it once a step, before the keys are made. held: with the momentum that the step
        before left behind, as the release does where it takes one clip at a time; otherwise with this step's own."""
        annealed = ema_momentum(self._base, progress) if self._anneal else self._momentum
        update_ema(
            [*self.key_backbone.parameters(), *self.key_projection.parameters()],
            [*self.backbone.parameters(), *self.projection.parameters()],
            self._momentum if held else annealed,
        )
        self._momentum = annealed
        self.get_buffer("momentum").fill_(annealed)


def _remember_momentum(module: nn.Module, _: Any) -> None:
    assert isinstance(module, MomentumMethod)
    module._momentum = float(module.get_buffer("momentum"))
