"""A training step, and what it takes: shards, accelerator, loader, model, one update.

    open_training_shards --> build_loader --> Views --.
    build_accelerator --> build_model --------------> train_step --> metrics

A method splits a step into passes (one query clip each, say), and `train.accumulate` splits the batch; gradients add
up, and only the last backward meets the other ranks. No method's name is known here. Pretraining (trainer.py),
fine-tuning
and benchmarks are made of these pieces, so what is measured is what runs.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.training.consensus import BAD_GRADIENT, BAD_LOSS, OK


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    method: Method,
    optimizer: AcceleratedOptimizer,
    pixels: Tensor,
    progress: TrainingProgress,
    *,
    rate: float,
    accumulate: int = 1,
    clip: float | None = None,
    log: bool = False,
    enter: Callable[[str], None] = lambda stage: None,
) -> dict[str, Tensor]:
    """One optimizer step: its metrics, as tensors. The host queues the work and does not wait for the device.

    model, optimizer: as `accelerator.prepare` gave them; method: the model without what wraps it. pixels:
    [B, P, C, T, H, W]. rate: the learning rate. accumulate, clip: as in the configuration. log: the norm of the
    gradients is wanted, and each pass's share of the loss. enter: called with a stage of the step where it begins.
    """
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        enter("backward")
        accelerator.backward(loss)
        enter("forward")

    enter("forward")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss, logs = forward_backward(
        model,
        method,
        pixels,
        progress,
        accumulate=accumulate,
        backward=backward,
        apart=lambda: accelerator.no_sync(model),
    )
    if log and (num_passes := len(losses) // accumulate) > 1:
        logs |= {
            f"loss_pass{pass_index}": torch.stack(losses[pass_index::num_passes]).sum().float()
            for pass_index in range(num_passes)
        }
    enter("optimizer")
    norm = torch.zeros((), device=loss.device)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    if gradients:  # none where a method holds back its first updates
        if clip is not None:
            norm = accelerator.clip_grad_norm_(method.parameters(), clip)
        else:
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.get_total_norm(gradients)
        if accelerator.scaler is None:
            # An update of gradients that are not finite is skipped in the kernel: the host need not know, and all ranks
            # do the same, since their gradients are the same. In fp16 the scaler of the loss sees to it likewise.
            optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
    flag = torch.where(torch.isfinite(loss), OK, BAD_LOSS)
    if accelerator.scaler is None:
        flag = torch.where(torch.isfinite(norm), flag, flag.clamp(min=BAD_GRADIENT))
    return logs | {"loss": loss.float(), "lr": torch.tensor(rate), "grad_norm": norm, "flag": flag}


@contextlib.contextmanager
def collected_by_hand() -> Iterator[None]:
    """No garbage collection at random moments of the hot loop: it would stall one rank, and so all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def forward_backward(
    model: nn.Module,
    method: Method,
    pixels: Tensor,
    progress: TrainingProgress,
    *,
    accumulate: int = 1,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    apart: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradients of one step, added to what is there: (the loss summed over passes, the last pass's metrics).

    model: the method itself, or what wraps it for data parallelism. pixels: [B, P, C, T, H, W]. accumulate: micro-
    batches that B is split into, each with its own backward; they give the gradient of the mean over B exactly where
    videos do not meet, neither in the loss (`Method.coupling`) nor in a batch norm. backward: called with every loss.
    apart: a context in which a backward does not meet the other ranks; only the last one does. Raises ValueError for a
    B that does not divide.
    """
    if len(pixels) % accumulate:
        raise ValueError(f"a batch of {len(pixels)} videos cannot be split into {accumulate} equal micro-batches")
    num_passes = method.num_passes(pixels.shape[1])
    total = torch.zeros((), device=pixels.device)
    metrics: dict[str, Tensor] = {}
    method.begin_step(progress)
    for number, batch in enumerate(pixels.chunk(accumulate)):
        for pass_index in range(num_passes):
            last = number == accumulate - 1 and pass_index == num_passes - 1
            with contextlib.nullcontext() if last else apart():
                loss, metrics = model(batch, pass_index)
                loss = loss / accumulate
                backward(loss)
            total = total + loss.detach()
    method.end_step()
    return total, metrics
