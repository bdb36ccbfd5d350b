"""Exchange values between ranks: reductions, gathers, and an autograd gather for losses over all ranks.

Every function also works without a process group, as rank 0 of 1. In the backward pass a rank computes the gradient of
its own loss, with the contributions of all ranks summed in. Data-parallel averaging then makes it the gradient of the
mean loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rhofast.distributed.process_group import rank, world_size
from rhofast.errors import RankLostError


def shared_permutation(count: int, device: torch.device) -> Tensor:
    """Return a random permutation that is the same on all ranks.

    It is drawn from the global generator of rank 0.

    Args:
        count: Number of elements to permute.
        device: Device on which the permutation is drawn and returned.

    Returns:
        i64[count], a permutation of [0, count).
    """
    order = torch.randperm(count, device=device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    return order


def all_gather(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Gather a tensor from all ranks, with gradients.

    The gradient of the input is the sum of the gradients on all ranks.

    Args:
        value: [B, ...], of the same shape on every rank.
        group: Ranks that take part; None for all ranks.

    Returns:
        [W, B, ...], in rank order.
    """
    if world_size(group) == 1:
        return value[None]
    out: Tensor = _AllGather.apply(value, group)
    return out


def all_reduce(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, with gradients.

    The gradient of the input is the sum of the gradients on all ranks.

    Args:
        value: [...], of the same shape on every rank.

    Returns:
        The sum, of the same shape.
    """
    if world_size() == 1:
        return value
    out: Tensor = _AllReduce.apply(value)
    return out


def reduce_max(value: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks, without changing `value`."""
    if world_size() == 1:
        return value
    out = value.clone()
    dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return out


def reduce_mean(value: Tensor) -> Tensor:
    """Return the elementwise mean over all ranks, without changing `value`."""
    if world_size() == 1:
        return value
    out = value.clone()
    dist.all_reduce(out)
    return out / world_size()


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks in rank order; they must be plain values that can be pickled."""
    gathered = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


class _AllGather(torch.autograd.Function):
    """The autograd function behind `all_gather`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        value = value.contiguous()
        out = value.new_empty((world_size(group), *value.shape))
        dist.all_gather_into_tensor(out.flatten(0, 1), value, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        out = gradients[0].clone()
        dist.all_reduce(out, group=ctx.group)
        return out[rank(ctx.group)], None


class _AllReduce(torch.autograd.Function):
    """The autograd function behind `all_reduce`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        out = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        out = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out


# Parts of the messages with which gloo and NCCL report a peer that is gone or does not answer.
_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out", "timeout", "gloo", "NCCL")


@contextlib.contextmanager
def raise_on_lost_ranks() -> Iterator[None]:
    """Raise communication errors of the block as RankLostError, if the run has other ranks.

    Raises:
        RankLostError: Another rank ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(word in str(error) for word in _LOST):
            raise
        raise RankLostError(
            f"another process of this run ended or did not answer: {str(error).strip().splitlines()[0]}",
            hint="read its last message; the same command with --resume continues from the newest checkpoint",
        ) from error
