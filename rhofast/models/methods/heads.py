"""The networks on top of a backbone (projector and predictor MLPs), and operations on their outputs."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Sequential):
    """A multilayer perceptron: Linear, (batch norm), ReLU, ..., Linear; [N, wide] -> [N, out].

    With batch norm, only the last Linear has a bias. Nothing follows the last Linear, except with `output_norm`.
    Weights start uniform with bound sqrt(3 / fan_in) and biases at 0, as in the released code.

    Args:
        wide: number of inputs.
        hidden: width of the hidden layers.
        out: number of outputs.
        layers: number of Linear layers.
        batch_norm: whether batch norm follows every Linear but the last.
        output_norm: whether batch norm without scale and shift follows the last Linear, which then has no bias.
    """

    def __init__(
        self, wide: int, hidden: int, out: int, *, layers: int, batch_norm: bool, output_norm: bool = False
    ) -> None:
        modules: list[nn.Module] = []
        for number in range(layers):
            last = number == layers - 1
            normalized = output_norm if last else batch_norm
            linear = nn.Linear(wide, out if last else hidden, bias=not normalized)
            nn.init.uniform_(linear.weight, -math.sqrt(3 / wide), math.sqrt(3 / wide))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            modules.append(linear)
            if not last:
                modules += [nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
            wide = hidden
        if output_norm:
            modules.append(nn.BatchNorm1d(out, affine=False))
        super().__init__(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, wide] to [N, out]."""
        for module in self:
            x = module(x)
        return x


class ProjectorConfig(Protocol):
    """The options of a method that define its projector."""

    @property
    def hidden(self) -> int:
        """Width of the hidden layers."""

    @property
    def out(self) -> int:
        """Dimension of the embeddings."""

    @property
    def projector_layers(self) -> int:
        """Number of Linear layers."""

    @property
    def projector_norm(self) -> bool:
        """Whether the projector has batch norm."""


def build_projector(backbone: nn.Module, options: ProjectorConfig, *, output_norm: bool = False) -> MLP:
    """Build the projector of a method.

    Args:
        backbone: the backbone on which it stands.
        options: the options of the method.
        output_norm: whether batch norm without scale and shift follows its last layer.

    Returns:
        The projector: [N, num_features] -> [N, out].
    """
    wide = int(backbone.num_features)  # type: ignore[arg-type]
    layers, batch_norm = options.projector_layers, options.projector_norm
    return MLP(wide, options.hidden, options.out, layers=layers, batch_norm=batch_norm, output_norm=output_norm)


def normalize(x: Tensor) -> Tensor:
    """Scale the rows of [..., D] to unit length, in float32 or wider.

    There is no epsilon, as in the reference implementation.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # squares overflow in float16 above 65504
    unit: Tensor = x / x.square().sum(dim=-1, keepdim=True).sqrt()
    return unit


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of `x`, for similarities that a small temperature divides."""
    return torch.autocast(x.device.type, enabled=False)


def embedding_spread(x: Tensor) -> Tensor:
    """Measure the collapse of embeddings [B, D], whose rows are normalized first.

    Returns:
        sqrt(D) times the mean over D of the standard deviation over the batch, a detached scalar: near 1 for embeddings
        spread over the sphere, near 0 for collapsed ones.
    """
    deviation: Tensor = F.normalize(x.detach().float(), dim=-1).std(dim=0, correction=0)
    return deviation.mean() * math.sqrt(x.shape[-1])


def embedding_scale(x: Tensor) -> Tensor:
    """Measure the collapse of embeddings [B, D] that a loss or a batch norm gives unit variance.

    Returns:
        The mean over D of the standard deviation over the batch, a detached scalar: 1 for a standard Gaussian.
    """
    return x.detach().float().std(dim=0, correction=0).mean()
