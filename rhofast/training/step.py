"""One training step: forward and backward passes, the exchange of gradients, the update.

A method splits a step into passes (one query clip each, for example), and `train.accumulate` splits the batch;
gradients add up, and only the last backward pass exchanges them with the other ranks. No method's name is known here.
Pretraining and benchmarks use these functions, so what is measured is what runs.
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
from rhofast.training.optim import set_learning_rate


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
    enter: Callable[[str], None] = lambda phase: None,
) -> dict[str, Tensor]:
    """Take one optimizer step. The host queues the work and does not wait for the device.

    Args:
        accelerator: Accelerate's.
        model: The method as `accelerator.prepare` wraps it.
        method: The method itself.
        optimizer: As `accelerator.prepare` gives it.
        pixels: Clips [B, P, C, T, H, W] of this rank.
        progress: Where in the run the step is.
        rate: The learning rate.
        accumulate: Micro-batches that B is split into.
        clip: The largest norm of all gradients together, or None: not clipped.
        log: Whether each pass's share of the loss is wanted, too.
        enter: Called with each of the `STEP_PHASES` where it begins.

    Returns:
        Metrics as scalars on the device: loss, lr, grad_norm, those of the method, and `flag` (consensus.py).
    """
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        enter("backward")
        accelerator.backward(loss)
        enter("forward")

    enter("forward")
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss, logs = forward_backward(
        model,
        method,
        pixels,
        progress,
        accumulate=accumulate,
        backward=backward,
        no_sync=lambda: accelerator.no_sync(model),
    )
    if log and (num_passes := len(losses) // accumulate) > 1:
        logs |= {
            f"loss_pass{pass_index}": torch.stack(losses[pass_index::num_passes]).sum().float()
            for pass_index in range(num_passes)
        }
    enter("optimizer")
    norm = torch.zeros((), device=loss.device)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    if gradients:  # there are none while a method holds back its first updates
        if clip is not None:
            norm = accelerator.clip_grad_norm_(method.parameters(), clip)
        else:
            accelerator.unscale_gradients(optimizer)
            norm = nn.utils.get_total_norm(gradients)
        if accelerator.scaler is None:
            # An update with gradients that are not finite is skipped in the kernel: the host need not know, and all
            # ranks do the same, since their gradients are the same. In fp16 the loss scaler skips it likewise.
            optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
    flag = torch.where(torch.isfinite(loss), OK, BAD_LOSS)
    if accelerator.scaler is None:
        flag = torch.where(torch.isfinite(norm), flag, flag.clamp(min=BAD_GRADIENT))
    return logs | {"loss": loss.float(), "lr": torch.tensor(rate), "grad_norm": norm, "flag": flag}


def forward_backward(
    model: nn.Module,
    method: Method,
    pixels: Tensor,
    progress: TrainingProgress,
    *,
    accumulate: int = 1,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of one step to those that are there.

    Args:
        model: The method itself, or what wraps it for data parallelism.
        method: The method itself.
        pixels: Clips [B, P, C, T, H, W].
        progress: Where in the run the step is.
        accumulate: Micro-batches that B is split into, each with its own backward pass. They give the gradient of the
            mean over B exactly if videos do not meet, neither in the loss (`Method.coupling`) nor in a batch norm.
        backward: Called with every loss.
        no_sync: Makes a context in which a backward pass exchanges no gradients; only the last one does.

    Returns:
        The loss summed over passes, and the metrics of the last pass.

    Raises:
        ValueError: B is no multiple of `accumulate`.
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
            with contextlib.nullcontext() if last else no_sync():
                loss, metrics = model(batch, pass_index)
                loss = loss / accumulate
                backward(loss)
            total = total + loss.detach()
    method.end_step()
    return total, metrics


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn Python's garbage collection off: at a random moment it would stall one rank, and so all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
