"""What ranks tell each other: reductions, gathers, and batch normalization over all of them.

Everything works without a process group too, as rank 0 of 1. Gradients: a rank's backward gives the gradient of its own
loss with all ranks' contributions summed in; data-parallel averaging then makes it the gradient of the mean loss.
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
    """A random permutation i64[count], the same on all ranks: drawn from rank 0's global generator."""
    order = torch.randperm(count, device=device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    return order


def all_gather(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The ranks' [B, ...] as [W, B, ...], in rank order; every rank brings the same shape. Its gradient is the sum of
    all ranks' gradients."""
    if world_size(group) == 1:
        return value[None]
    out: Tensor = _AllGather.apply(value, group)
    return out


def reduce_max(value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks. `value` is not changed."""
    if world_size() == 1:
        return value
    out = value.clone()
    dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return out


def reduce_mean(value: Tensor) -> Tensor:
    """The elementwise mean over all ranks. `value` is not changed."""
    if world_size() == 1:
        return value
    out = value.clone()
    dist.all_reduce(out)
    return out / world_size()


def gather_objects(value: Any) -> list[Any]:
    """What each rank brings, in rank order: plain values that pickle."""
    gathered = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


class _AllGather(torch.autograd.Function):
    """See `all_gather`."""

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


_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out", "timeout", "gloo", "NCCL")


@contextlib.contextmanager
def told_of_lost_ranks() -> Iterator[None]:
    """An error of communication becomes a RankLostError, where there are other ranks."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(word in str(error) for word in _LOST):
            raise
        raise RankLostError(
            f"another process of this run ended or did not answer: {str(error).strip().splitlines()[0]}",
            hint="see what it said last; the same command with --resume continues from the newest checkpoint",
        ) from error
