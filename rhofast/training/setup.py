"""Build what a training step needs: shards, accelerator, loader, model, optimizer."""

from __future__ import annotations

from torch import nn

from rhofast.config.schema import TrainSection
from rhofast.errors import ConfigError
from rhofast.models.methods.method import Method


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
