"""Optimizers, parameter groups, and schedules as pure functions of the epoch.

Two groups, as in the released implementation: the affine parameters of batch normalization (no weight decay, no layer
adaptation), and everything else, biases included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.config import OptimSection

_EPSILON = 1e-8


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive SGD (You et al., arXiv 1708.03888) with Nesterov momentum, as released.

    For each tensor p of an adapted group with more than one dimension and neither |p| = 0 nor |g| = 0:
    g <- (g + wd p) trust |p| / (|g| + wd |p| + 1e-8). All others keep their raw gradient, without decay. Then plain
    (Nesterov) momentum SGD at the full rate. A group with `adapt` off is plain SGD with its own weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "trust": trust, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. `closure` is not used."""
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        decay = group["weight_decay"]
        if group["adapt"]:
            gradients = _adapted(params, gradients, decay, group["trust"])
        elif decay:
            gradients = list(torch._foreach_add(gradients, params, alpha=decay))
        if group["momentum"]:
            gradients = self._with_momentum(group, params, gradients)
        torch._foreach_add_(params, gradients, alpha=-group["lr"])

    def _with_momentum(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"])) if group["nesterov"] else buffers


def build_optimizer(model: nn.Module, section: OptimSection) -> torch.optim.Optimizer:
    """The optimizer of a section over the trainable parameters of a model; its rate is set anew before every step."""
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for p in module.parameters(recurse=False)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain = {"params": [p for p in trainable if id(p) in norms], "weight_decay": 0.0}
    other = {"params": [p for p in trainable if id(p) not in norms], "weight_decay": section.weight_decay}
    lr, momentum, nesterov = section.base_lr, section.momentum, section.nesterov
    if section.name == "lars":
        groups = [{**plain, "adapt": False}, {**other, "adapt": True}]
        return LARS(groups, lr, momentum=momentum, nesterov=nesterov, trust=section.trust)
    if section.name == "sgd":
        return torch.optim.SGD([plain, other], lr, momentum=momentum, nesterov=nesterov)
    return torch.optim.AdamW([plain, other], lr, betas=section.betas)


def learning_rate(section: OptimSection, batch_size: int, epoch: float, epochs: float) -> float:
    """The rate at a fractional epoch: the section's curve over all epochs; before `warmup_epochs` the straight line
    from the warm-up rate to where the curve is at its end. Both scale with the batch."""
    scale = batch_size / section.base_batch
    peak = section.base_lr * scale
    if epoch >= section.warmup_epochs:
        return peak * _curve(section, epoch, epochs)
    start = section.warmup_lr * scale
    return start + epoch * (peak * _curve(section, section.warmup_epochs, epochs) - start) / section.warmup_epochs


def ema_momentum(base: float, progress: float) -> float:
    """Momentum of the key network, from `base` at progress 0 to 1 at progress 1 along a cosine."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_ema(keys: list[Tensor], queries: list[Tensor], momentum: float) -> None:
    """keys <- momentum * keys + (1 - momentum) * queries, in place, a few kernels for all tensors."""
    torch._foreach_lerp_(keys, queries, 1 - momentum)


def _curve(section: OptimSection, epoch: float, epochs: float) -> float:
    """Share of the peak rate: a cosine from 1 to 0, or steps."""
    if section.schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    return section.decay ** sum(epoch >= at for at in section.decay_epochs)


def _adapted(params: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    adapted = [number for number, p in enumerate(params) if p.ndim > 1]
    if not adapted:
        return gradients
    weights, grads = [params[number] for number in adapted], [gradients[number] for number in adapted]
    p_norm, g_norm = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(grads))
    both = (p_norm > 0) & (g_norm > 0)
    ratio = torch.where(both, trust * p_norm / (g_norm + decay * p_norm + _EPSILON), 1.0)
    decays = (both * decay).to(ratio.dtype)
    decayed = torch._foreach_add(grads, torch._foreach_mul(weights, decays.unbind()))
    out = list(gradients)
    for number, value in zip(adapted, torch._foreach_mul(decayed, ratio.unbind()), strict=True):
        out[number] = value
    return out
