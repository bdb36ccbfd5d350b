"""What the trainer asks of a method, how a step runs, and the key network that some methods share. The dict of methods
is in `methods/__init__.py`."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.config.schema import TrainSection
from rhofast.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where in the run a step is. step: optimizer steps done; epoch: passes over the data done, fractional; epochs:
    those of the whole run."""

    step: int
    epoch: float
    epochs: float

    @property
    def progress(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        return self.epoch / self.epochs


class Method(nn.Module, ABC):
    """A way to learn a backbone from several clips of each video.

    A step is what `run_step` does. Everything that must survive a checkpoint is a parameter or a buffer. Parameters
    that are not trained have requires_grad off; all others get a gradient from every backward of a step's last part.

    backbone: the network that is trained, as evaluation and export see it. coupling: how the loss ties the videos of a
    batch together, so that it is no sum over micro-batches; None where it does not. (Batch norm ties them too; the
    trainer looks for it.)
    """

    backbone: nn.Module
    coupling: str | None = None

    @abstractmethod
    def num_parts(self, num_clips: int) -> int:
        """Forward and backward passes a step takes for P clips a video. Raises ValueError for a P it cannot use."""

    def check(self, num_clips: int, batch_size: int) -> None:
        """Raise ValueError for P clips a video, or a batch of all ranks, that it cannot use."""
        self.num_parts(num_clips)

    def begin_step(self, moment: Moment) -> None:
        """What happens once a step, before its first forward."""

    @abstractmethod
    def forward(self, pixels: Tensor, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss of this part, metrics as detached scalars).

        pixels: [B, P, C, T, H, W]. part: 0 .. num_parts - 1, in order.
        """

    def end_step(self) -> None:
        """What happens once a step, after its last backward: gradients that must not be followed become None."""


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


def check_accumulation(method: Method, section: TrainSection, ranks: int) -> None:
    """Raise ConfigError where `section.accumulate` would change what a step computes.

    A sum over micro-batches is the whole batch's gradient if the loss is a mean over videos, each alone with what does
    not change within a step (`Method.coupling` is None), and if no layer looks across videos either: batch norm does,
    unless its statistics are frozen (evaluation mode). The section may accept the latter by name: micro-batches are
    then to batch norm what more ranks with smaller shares would be.
    """
    accumulate = section.accumulate
    if accumulate == 1:
        return
    if section.batch_size % (ranks * accumulate):
        raise ConfigError(
            f"train.accumulate: {section.batch_size} videos cannot be split over {ranks} ranks "
            f"and {accumulate} equal micro-batches each"
        )
    if method.coupling is not None:
        raise ConfigError(
            f"train.accumulate: {method.coupling}; a sum over micro-batches would be another loss",
            hint="for less memory take more ranks or a smaller train.batch_size",
        )
    batch_norm = nn.modules.batchnorm._BatchNorm
    norms = [name for name, module in method.named_modules() if isinstance(module, batch_norm) and module.training]
    if norms and not section.micro_batch_norm:
        raise ConfigError(
            f"train.accumulate: {len(norms)} batch norms ({norms[0]}, ...) take their statistics from the whole batch, "
            "and would take others from micro-batches",
            hint="train.micro_batch_norm=true accepts that: it is as if more ranks had a smaller share each",
        )
