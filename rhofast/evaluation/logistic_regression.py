"""Logistic regression by L-BFGS, and a sweep of its penalty on a validation part of the training rows.

    one class per row        minimize over W, b:   mean over rows of -log softmax(W x + b)[y]   +   penalty / 2 |W|^2
    any number of classes    the same with the sum over classes of -log sigmoid(+-(W x + b)): each class by itself

The bias is not penalized. The result equals scikit-learn's LogisticRegression with C = 1 / (penalty * rows): the
multinomial one, or one binary one per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rhofast.evaluation.choice import Tried, best_of

PENALTIES = tuple(10.0 ** (-exponent / 2) for exponent in range(11))  # 1 to 1e-5, for standardized features
_ITERATIONS, _HISTORY, _GRADIENT = 400, 10, 1e-6
_DOUBLE = 1 << 26  # up to this many values, features are fitted in double precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear classifier: logits = weight x + bias.

    Attributes:
        weight: f[C, D].
        bias: f[C].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits f[N, C] of rows f[N, D]."""
        return x @ self.weight.T + self.bias


def fit_logistic(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    penalty: float,
    start: Linear | None = None,
    iterations: int = _ITERATIONS,
) -> Linear:
    """Fit a logistic regression on the device of `x`, in double precision where N x D is at most 2^26.

    Args:
        x: f[N, D]. Standardized features converge in tens of iterations.
        y: i64[N], class numbers; or bool[N, C], the classes of each row.
        num_classes: Number of classes.
        penalty: Weight of the L2 penalty.
        start: Initial classifier, such as the solution for the previous penalty. None means zeros.
        iterations: Maximum number of L-BFGS iterations.

    Returns:
        The classifier, in the dtype of `x`.
    """
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
        loss = mean_loss(wide @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return Linear(weight=weight.detach().to(x.dtype), bias=bias.detach().to(x.dtype))


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy: of the softmax, or summed over classes, each by itself.

    Args:
        logits: f[N, C].
        y: i64[N], class numbers; or bool[N, C], the classes of each row.
    """
    if y.ndim == 1:
        return F.cross_entropy(logits, y)
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="sum") / len(logits)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Return the share of the rows f[N, C] whose largest logit is that of their class i64[N]."""
    return float((logits.argmax(dim=1) == y).float().mean())


def standardize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean [D], scale [D]) with which `(x - mean) / scale` has unit variance; constant columns have scale 1."""
    mean = x.mean(dim=0)
    scale = (x - mean).square().mean(dim=0).sqrt()
    return mean, torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)


def unstandardize(linear: Linear, mean: Tensor, scale: Tensor) -> Linear:
    """Convert a classifier of standardized rows to one of the original rows.

    Args:
        linear: Classifier of `(x - mean) / scale`.
        mean: f[D].
        scale: f[D].

    Returns:
        The classifier with the same logits on `x`.
    """
    weight = linear.weight / scale
    return Linear(weight=weight, bias=linear.bias - weight @ mean)


def sweep(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    validation: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    measure: str = "top1",
    score: Callable[[Tensor, Tensor], float] = accuracy,
    on_fit: Callable[[int, int], None] | None = None,
) -> tuple[Linear, float, list[Tried]]:
    """Choose the penalty on validation rows, by a score and then by loss, and fit on all rows with it.

    Args:
        x: f[N, D], standardized features.
        y: i64[N], class numbers; or bool[N, C], the classes of each row.
        num_classes: Number of classes.
        validation: bool[N], the rows on which the penalties are compared.
        penalties: The penalties to compare.
        measure: Name of the score.
        score: Returns it for the logits f[M, C] of the validation rows and their y.
        on_fit: Called with (fits done, total fits).

    Returns:
        (classifier fitted on all rows, chosen penalty, score of each penalty).
    """
    fitting, total = ~validation, len(penalties) + 1
    tried: list[Tried] = []
    fits: list[Linear] = []
    for number, penalty in enumerate(sorted(penalties, reverse=True)):
        fits.append(
            fit_logistic(x[fitting], y[fitting], num_classes, penalty=penalty, start=fits[-1] if fits else None)
        )
        logits = fits[-1](x[validation])
        told, loss = score(logits, y[validation]), float(mean_loss(logits, y[validation]))
        tried.append(Tried(setting={"penalty": penalty}, measure=measure, score=told, loss=loss))
        if on_fit is not None:
            on_fit(number + 1, total)
    best = best_of(tried)
    penalty = tried[best].setting["penalty"]
    whole = fit_logistic(x, y, num_classes, penalty=penalty, start=fits[best])
    if on_fit is not None:
        on_fit(total, total)
    return whole, penalty, tried
