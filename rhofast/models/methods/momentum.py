"""Methods with a momentum network: a moving average of the trained network that makes the keys or targets."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.models.methods.method import Method, TrainingProgress


def ema_momentum(base: float, progress: float) -> float:
    """Return the momentum of the moving average: from `base` at progress 0 to 1 at progress 1 along a cosine.

    Args:
        base: momentum at the start of the run, in [0, 1].
        progress: share of the run that is over, in [0, 1].
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_ema(averages: list[Tensor], values: list[Tensor], momentum: float) -> None:
    """Set averages = momentum * averages + (1 - momentum) * values, in place, with a few kernels for all tensors.

    Args:
        averages: parameters of the momentum network.
        values: parameters of the trained network, in the same order.
        momentum: weight of the averages, in [0, 1].
    """
    torch._foreach_lerp_(averages, values, 1 - momentum)


class MomentumMethod(Method):
    """A method whose keys come from a moving average of the trained backbone and projector.

    The average is over parameters; the momentum network's batch norms keep running statistics of their own. It is
    updated once per step, before the keys are made.

    Args:
        backbone: the trained backbone.
        projector: the trained projector.
        base: momentum at the start of the run, in [0, 1].
        anneal: whether the momentum rises from `base` to 1 along a cosine.
        use_previous: whether a step's update uses the momentum of the step before it (`base` in the first step), as the
            released code does where it processes one clip at a time. False: it uses the step's own.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, *, base: float, anneal: bool, use_previous: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.momentum_backbone = copy.deepcopy(backbone).requires_grad_(requires_grad=False)
        self.momentum_projector = copy.deepcopy(projector).requires_grad_(requires_grad=False)
        self.register_buffer("momentum", torch.tensor(base, dtype=torch.float64))
        self._base, self._anneal, self._use_previous = base, anneal, use_previous
        self._momentum = base  # the same number as the buffer, on the host, so that no step waits for the device
        self.register_load_state_dict_post_hook(_restore_momentum)  # type: ignore[no-untyped-call]

    def begin_step(self, progress: TrainingProgress) -> None:
        """Update the momentum network."""
        annealed = ema_momentum(self._base, progress.fraction) if self._anneal else self._base
        update_ema(
            [*self.momentum_backbone.parameters(), *self.momentum_projector.parameters()],
            [*self.backbone.parameters(), *self.projector.parameters()],
            self._momentum if self._use_previous else annealed,
        )
        self._momentum = annealed
        self.get_buffer("momentum").fill_(annealed)


def _restore_momentum(module: nn.Module, _: Any) -> None:
    assert isinstance(module, MomentumMethod)
    module._momentum = float(module.get_buffer("momentum"))
