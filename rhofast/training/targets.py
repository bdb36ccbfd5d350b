"""What a classifier is trained towards, and its loss: one function of logits and soft targets, whatever made them.

    labels --smoothed--> targets --mixed with those of the partner--> [N, C], rows sum to 1, or to 0 without a label
    several labels --those that hold while the clip is shown--> [N, C], any number of ones

Smoothing and mixing are linear, so their order does not matter. timm's Mixup makes the same targets.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_targets(
    label: Tensor,
    num_classes: int,
    *,
    smoothing: float = 0.0,
    partner: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """Return the distribution over classes that each clip is trained towards.

    A label is 1 - smoothing, plus smoothing / C on every class (arXiv 1512.00567, section 7).

    Args:
        label: Classes i64[N]; negative for none.
        num_classes: Number of classes C.
        smoothing: Share of the target in [0, 1) that is spread evenly over all classes.
        partner: Classes of the clips that were mixed in, i64[N]; None if nothing was.
        share: Share of each clip's own label in its mixture, f32[N] in [0, 1]; the rest is the partner's.

    Returns:
        f32[N, C]; the row of a clip without a label is 0.
    """
    target = _one_hot(label, num_classes, smoothing)
    if partner is None or share is None:
        return target
    return target * share[:, None] + _one_hot(partner, num_classes, smoothing) * (1 - share[:, None])


def multi_hot_targets(labels: Tensor, share: Tensor | None = None) -> Tensor:
    """Return how much each clip is of each class, where it may be of several.

    Args:
        labels: The classes that hold in each clip, bool[B, P, C].
        share: Share of each clip in its mixture with that of sample b XOR 1, f32[B, P]; None if nothing was mixed.

    Returns:
        f32[B * P, C] in [0, 1].
    """
    target = labels.float()
    if share is not None:
        partner = target.view(-1, 2, *target.shape[1:]).flip(1).flatten(0, 1)
        target = target * share[..., None] + partner * (1 - share[..., None])
    return target.flatten(0, 1)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of the clips that have a target; 0, with gradient 0, if none has.

    With one-hot targets it has the gradient of torch's cross-entropy of class numbers, bit for bit.

    Args:
        logits: Class scores f32[N, C].
        target: Distributions over classes f32[N, C]; rows of zeros count for nothing.
    """
    losses = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return losses.sum() / (target.sum(dim=1) > 0).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over clips and classes of the cross-entropy of each class by itself.

    Args:
        logits: Class scores f32[N, C].
        target: How much each clip is of each class, f32[N, C] in [0, 1]; a row of zeros is of none.
    """
    return functional.binary_cross_entropy_with_logits(logits, target)


def _one_hot(label: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return the smoothed targets of class numbers, f32[N, C]."""
    known = (label >= 0)[:, None]
    off = smoothing / num_classes
    target = torch.full((len(label), num_classes), off, device=label.device)
    target.scatter_(1, label.clamp(min=0)[:, None], 1 - smoothing + off)
    return target * known
