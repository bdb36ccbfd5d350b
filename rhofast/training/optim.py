"""Optimizers, parameter groups, and schedules as pure functions of the epoch.

There are two parameter groups, as in the released implementation: the affine parameters of normalizations (no weight
decay, no layer adaptation), and everything else, biases included. A module with `no_weight_decay()` (timm's convention)
names more parameters for the first group. With layer-wise decay of the rate (layer_decay.py) each group is split by
layer, and `lr_scale` of a part is its share of the rate. While the attribute `found_inf` of an optimizer, a scalar on
the device, is 1, its steps are skipped; `torch.amp.GradScaler` uses the same attribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from rhofast.config.schema import OptimConfig

_EPSILON = 1e-8


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive SGD (You et al., arXiv 1708.03888) with Nesterov momentum, as released.

    For each tensor p of an adapted group with more than one dimension and neither |p| = 0 nor |g| = 0:
    g <- (g + wd p) trust |p| / (|g| + wd |p| + 1e-8). All others keep their raw gradient, without decay. Then follows
    plain (Nesterov) momentum SGD at the full rate. A group with `adapt` off is plain SGD with its own weight decay.
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
        """Set the defaults of parameter groups.

        Args:
            params: Parameters or parameter groups.
            lr: Learning rate.
            momentum: Momentum, in [0, 1).
            nesterov: Whether momentum is Nesterov's.
            weight_decay: Weight decay, wd above.
            trust: Trust coefficient above.
            adapt: Whether gradients are adapted per tensor.
        """
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "trust": trust, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; `closure` is not used."""
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        decay = group["weight_decay"]
        if group["adapt"]:
            gradients, decay = _adapt(params, gradients, decay, group["trust"]), 0.0
        buffers = [self._momentum_of(p) if group["momentum"] else None for p in params]
        # Fused kernels go through memory and do not look at strides: all tensors must lie as their parameters do.
        gradients = [laid_out_as(p, gradient) for p, gradient in zip(params, gradients, strict=True)]
        sgd(
            params,
            gradients,
            buffers,
            fused=True,
            found_inf=getattr(self, "found_inf", None),
            weight_decay=decay,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )

    def _momentum_of(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"] = laid_out_as(p, state["momentum_buffer"])
        return buffer


def build_optimizer(
    model: nn.Module, section: OptimConfig, scales: Mapping[int, float] | None = None
) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters of a model.

    Args:
        model: The model; affine parameters of its normalizations, and those named by `no_weight_decay()` of a module,
            get neither weight decay nor adaptation.
        section: `optim` of the configuration. The learning rate is set anew before every step.
        scales: Share of the rate by the `id` of a parameter; 1 for all others.
    """
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm)
        for p in module.parameters(recurse=False)
    }
    for module in model.modules():
        without_decay = getattr(module, "no_weight_decay", None)
        names = without_decay() if callable(without_decay) else ()
        norms |= {id(p) for name, p in module.named_parameters() if name in names}
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain: dict[str, Any] = {"params": [p for p in trainable if id(p) in norms], "weight_decay": 0.0}
    other: dict[str, Any] = {
        "params": [p for p in trainable if id(p) not in norms],
        "weight_decay": section.weight_decay,
    }
    if section.name == "lars":
        plain, other = {**plain, "adapt": False}, {**other, "adapt": True}
    groups = [plain, other] if not scales else [*_by_scale(plain, scales), *_by_scale(other, scales)]
    lr, momentum, nesterov = section.base_lr, section.momentum, section.nesterov
    if section.name == "lars":
        return LARS(groups, lr, momentum=momentum, nesterov=nesterov, trust=section.trust)
    if section.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, fused=True)
        if momentum:  # torch would create the buffers in the first step, and leave them unset if that is skipped
            for p in trainable:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return torch.optim.AdamW(groups, lr, betas=section.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, of each group its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(section: OptimConfig, batch_size: int, epoch: float, epochs: float) -> float:
    """Return the learning rate at a fractional epoch.

    It follows the section's curve over all epochs; before `warmup_epochs` it is the straight line from the warm-up rate
    to where the curve is at their end. Both scale with the batch.

    Args:
        section: `optim` of the configuration.
        batch_size: Videos in the global batch.
        epoch: Epochs done, with their fraction.
        epochs: Epochs of the whole run.
    """
    scale = batch_size / section.base_batch
    if epoch >= section.warmup_epochs:
        return _curve(section, scale, epoch, epochs)
    start = section.warmup_lr * scale
    return start + epoch * (_curve(section, scale, section.warmup_epochs, epochs) - start) / section.warmup_epochs


def laid_out_as(p: Tensor, x: Tensor) -> Tensor:
    """Return x, or a copy of it, with the strides of p."""
    return x if _strides(x) == _strides(p) else torch.empty_like(p, dtype=x.dtype).copy_(x)


def _strides(x: Tensor) -> list[int]:
    """Return how x lies in memory: its strides, but for those of dimensions of length 1, which say nothing."""
    return [stride for length, stride in zip(x.shape, x.stride(), strict=True) if length > 1]


def _curve(section: OptimConfig, scale: float, epoch: float, epochs: float) -> float:
    """Return the rate without warm-up: a cosine from `base_lr` to `final_lr`, or steps."""
    peak, end = section.base_lr * scale, section.final_lr * scale
    if section.schedule == "cosine":
        return end + (peak - end) * ((1 + math.cos(math.pi * epoch / epochs)) / 2)
    return peak * section.decay ** sum(epoch >= decay_epoch for decay_epoch in section.decay_epochs)


def _by_scale(group: dict[str, Any], scales: Mapping[int, float]) -> list[dict[str, Any]]:
    """Split a parameter group by the share of the rate, the lowest first."""
    shares = [scales.get(id(p), 1.0) for p in group["params"]]
    return [
        {
            **group,
            "params": [p for p, share in zip(group["params"], shares, strict=True) if share == wanted],
            "lr_scale": wanted,
        }
        for wanted in sorted(set(shares))
    ]


def _adapt(params: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    adapted = [number for number, p in enumerate(params) if p.ndim > 1]
    if not adapted:
        return gradients
    weights, grads = [params[number] for number in adapted], [gradients[number] for number in adapted]
    p_norm, g_norm = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(grads))
    both = (p_norm > 0) & (g_norm > 0)
    ratio = torch.where(both, trust * p_norm / (g_norm + decay * p_norm + _EPSILON), 1.0)
    out = torch._foreach_mul(weights, (both * decay).to(ratio.dtype).unbind())
    torch._foreach_add_(out, grads)
    torch._foreach_mul_(out, ratio.unbind())
    values = dict(zip(adapted, out, strict=True))
    return [values.get(number, gradient) for number, gradient in enumerate(gradients)]
