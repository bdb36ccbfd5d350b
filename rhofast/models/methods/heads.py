"""What stands on top of a backbone: projector and prediction MLPs, and what is done with their output."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear, (BN), ReLU, ..., Linear: [N, wide] -> [N, out], with `layers` Linear layers.

    With batch norm every Linear but the last has no bias; nothing comes after the last. Weights start uniform with
    bound sqrt(3 / fan_in), biases at 0, as released.
    """

    def __init__(self, wide: int, hidden: int, out: int, *, layers: int, batch_norm: bool) -> None:
        modules: list[nn.Module] = []
        for number in range(layers):
            last = number == layers - 1
            linear = nn.Linear(wide, out if last else hidden, bias=last or not batch_norm)
            nn.init.uniform_(linear.weight, -math.sqrt(3 / wide), math.sqrt(3 / wide))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            modules.append(linear)
            if not last:
                modules += [nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
            wide = hidden
        super().__init__(*modules)

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class ProjectorConfig(Protocol):
    """Those options of a method that say what its projector is."""

    @property
    def hidden(self) -> int: ...
    @property
    def out(self) -> int: ...
    @property
    def projector_layers(self) -> int: ...
    @property
    def projector_norm(self) -> bool: ...


def build_projector(backbone: nn.Module, options: ProjectorConfig) -> MLP:
    """The projector that goes on top of a backbone."""
    wide = int(backbone.num_features)  # type: ignore[arg-type]
    layers, batch_norm = options.projector_layers, options.projector_norm
    return MLP(wide, options.hidden, options.out, layers=layers, batch_norm=batch_norm)


def normalize(x: Tensor) -> Tensor:
    """Rows of unit length, [..., D], at least float32; without an epsilon, as the reference implementation does it."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of float16 end at 65504
    unit: Tensor = x / x.square().sum(dim=-1, keepdim=True).sqrt()
    return unit


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of `x`: similarities are divided by small temperatures."""
    return torch.autocast(x.device.type, enabled=False)


def embedding_spread(x: Tensor) -> Tensor:
    """sqrt(D) times the mean over D of the standard deviation over the batch, for unit rows [B, D]: near 1 for
    embeddings spread over the sphere, near 0 for collapsed ones. A detached scalar."""
    deviation: Tensor = F.normalize(x.detach().float(), dim=-1).std(dim=0, correction=0)
    return deviation.mean() * math.sqrt(x.shape[-1])
