"""Methods with a momentum network: a moving average of the trained network that makes the keys or targets."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.models.methods.method import Method, TrainingProgress


def ema_momentum(base: float, progress: float) -> float:
    """Momentum of the key network, from `base` at progress 0 to 1 at progress 1 along a cosine."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_ema(keys: list[Tensor], queries: list[Tensor], momentum: float) -> None:
    """keys <- momentum * keys + (1 - momentum) * queries, in place, a few kernels for all tensors."""
    torch._foreach_lerp_(keys, queries, 1 - momentum)


class MomentumMethod(Method):
    """A method whose keys come from a moving average of the trained backbone and projector.

    The average is over parameters; the key network's batch norms keep running statistics of their own. It moves once a
    step, before the keys are made. base: momentum at the start of the run; it rises to 1 along a cosine if `anneal`.
    held: move with the momentum that the step before left behind (`base` at first), as the release does where it takes
    one clip at a time; otherwise with the step's own.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, *, base: float, anneal: bool, held: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.momentum_backbone = copy.deepcopy(backbone).requires_grad_(requires_grad=False)
        self.momentum_projector = copy.deepcopy(projector).requires_grad_(requires_grad=False)
        self.register_buffer("momentum", torch.tensor(base, dtype=torch.float64))
        self._base, self._anneal, self._held = base, anneal, held
        self._momentum = base  # the same number where no device has to be asked for it
        self.register_load_state_dict_post_hook(_remember_momentum)  # type: ignore[no-untyped-call]

    def begin_step(self, progress: TrainingProgress) -> None:
        """Move the key network."""
        annealed = ema_momentum(self._base, progress.fraction) if self._anneal else self._base
        update_ema(
            [*self.momentum_backbone.parameters(), *self.momentum_projector.parameters()],
            [*self.backbone.parameters(), *self.projector.parameters()],
            self._momentum if self._held else annealed,
        )
        self._momentum = annealed
        self.get_buffer("momentum").fill_(annealed)


def _remember_momentum(module: nn.Module, _: Any) -> None:
    assert isinstance(module, MomentumMethod)
    module._momentum = float(module.get_buffer("momentum"))
