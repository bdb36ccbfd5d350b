"""One training step: forward, backward, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.models.methods.method import Method, Moment


def run_step(
    model: nn.Module,
    method: Method,
    pixels: Tensor,
    moment: Moment,
    *,
    accumulate: int = 1,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    apart: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradients of one step, added to what is there: (the loss summed over parts, the last part's metrics).

    model: the method itself, or what wraps it for data parallelism. pixels: [B, P, C, T, H, W]. accumulate: micro-
    batches that B is split into, each with its own backward; they give the gradient of the mean over B exactly where
    videos do not meet, neither in the loss (`Method.coupling`) nor in a batch norm. backward: called with every loss.
    apart: a context in which a backward does not meet the other ranks; only the last one does. Raises ValueError for a
    B that does not divide.
    """
    if len(pixels) % accumulate:
        raise ValueError(f"a batch of {len(pixels)} videos cannot be split into {accumulate} equal micro-batches")
    parts = method.num_parts(pixels.shape[1])
    total = torch.zeros((), device=pixels.device)
    metrics: dict[str, Tensor] = {}
    method.begin_step(moment)
    for number, batch in enumerate(pixels.chunk(accumulate)):
        for part in range(parts):
            last = number == accumulate - 1 and part == parts - 1
            with contextlib.nullcontext() if last else apart():
                loss, metrics = model(batch, part)
                loss = loss / accumulate
                backward(loss)
            total = total + loss.detach()
    method.end_step()
    return total, metrics
