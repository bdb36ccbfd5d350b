"""Multinomial logistic regression by L-BFGS, and a sweep of its penalty on a held-out part of the training rows.

    minimize over W, b:   mean over rows of -log softmax(W x + b)[y]   +   penalty / 2 |W|^2

The bias is not penalized. This is scikit-learn's LogisticRegression with C = 1 / (penalty * rows). What it is not: it
knows no videos (linear.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = tuple(10.0 ** (-exponent / 2) for exponent in range(11))  # 1 to 1e-5, for standardized features
_ITERATIONS, _HISTORY, _GRADIENT = 400, 10, 1e-6
_DOUBLE = 1 << 26  # features of so many numbers are fitted in double precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """weight [C, D], bias [C]: logits = weight x + bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A penalty of a sweep: accuracy and mean loss on the held-out rows."""

    penalty: float
    top1: float
    loss: float


def fit_logistic(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    penalty: float,
    start: Linear | None = None,
    iterations: int = _ITERATIONS,
) -> Linear:
    """x f[N, D] (standardized features converge in tens of steps), y i64[N]; on x's device, in double precision where N
    x D is not too large. start: where to begin, such as the solution of the penalty before; None: at 0."""
    wide = x.double() if x.numel() <= _DOUBLE else x.float()
    weight = torch.zeros(num_classes, x.shape[1], dtype=wide.dtype, device=x.device)
    bias = torch.zeros(num_classes, dtype=wide.dtype, device=x.device)
    if start is not None:
        weight.copy_(start.weight)
        bias.copy_(start.bias)
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=_HISTORY,
        tolerance_grad=_GRADIENT,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(wide @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return Linear(weight=weight.detach().to(x.dtype), bias=bias.detach().to(x.dtype))


def standardize(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [D], scale [D]) of rows [N, D]: what `(x - mean) / scale` needs to have unit variance; a column that does
    not vary has scale 1."""
    mean = x.mean(dim=0)
    scale = (x - mean).square().mean(dim=0).sqrt()
    return mean, torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)


def folded(linear: Linear, mean: Tensor, scale: Tensor) -> Linear:
    """The same of rows that were not standardized."""
    weight = linear.weight / scale
    return Linear(weight=weight, bias=linear.bias - weight @ mean)


def sweep(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    held: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    on_fit: Callable[[int, int], None] | None = None,
) -> tuple[Linear, float, list[Tried]]:
    """(fit on all rows with the best penalty, that penalty, all that were tried). held bool[N]: the rows on which the
    penalties are compared, by accuracy, then by loss. on_fit: called with (fits done, fits in all)."""
    fitting, total = ~held, len(penalties) + 1
    tried: list[Tried] = []
    fits: list[Linear] = []
    for number, penalty in enumerate(sorted(penalties, reverse=True)):
        fits.append(
            fit_logistic(x[fitting], y[fitting], num_classes, penalty=penalty, start=fits[-1] if fits else None)
        )
        logits = fits[-1](x[held])
        top1 = (logits.argmax(dim=1) == y[held]).float().mean()
        tried.append(Tried(penalty=penalty, top1=float(top1), loss=float(F.cross_entropy(logits, y[held]))))
        if on_fit is not None:
            on_fit(number + 1, total)
    best = max(range(len(tried)), key=lambda number: (tried[number].top1, -tried[number].loss))
    whole = fit_logistic(x, y, num_classes, penalty=tried[best].penalty, start=fits[best])
    if on_fit is not None:
        on_fit(total, total)
    return whole, tried[best].penalty, tried
