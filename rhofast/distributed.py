"""What ranks tell each other: reductions, gathers, and batch normalization over all of them.

Everything works without a process group too, as rank 0 of 1. Gradients: a rank's backward gives the gradient of its own
loss with all ranks' contributions summed in; data-parallel averaging then makes it the gradient of the mean loss.
"""

from __future__ import annotations

import datetime
import os
import weakref
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from rhofast.board import Board, open_board


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks, or of those of a group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's number, from 0, among all or in a group; 0 without a process group."""
    return dist.get_rank(group) if world_size() > 1 else 0


def launched() -> tuple[int, int]:
    """Processes in all and on this machine, as the launcher says, also before they know each other; (1, 1) without."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join_again(timeout: float) -> None:
    """Where a launcher has started the ranks again after a failure (`--max_restarts`), make the process group apart
    from what the processes before them left in the launcher's store: with `accelerate launch` and torchrun's static
    rendezvous it lives on, and new processes would call at the old ones' addresses. Otherwise do nothing. timeout:
    seconds that a rank waits for another."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or launched()[0] == 1 or dist.is_initialized():
        return
    wait = datetime.timedelta(seconds=timeout)
    store, number, size = next(rendezvous("env://", timeout=wait))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=number,
        world_size=size,
        timeout=wait,
    )


def node_group() -> dist.ProcessGroup | None:
    """The ranks of this machine as a group, or None where they are all there are. Every rank calls it at the same time.

    The launcher says in LOCAL_WORLD_SIZE how many they are, the same on all machines. Raises ValueError if that does
    not divide the number of all ranks.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if local >= world_size():
        return None
    group, _ = dist.new_subgroups(local)
    return group


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


def cores_of_rank() -> int:
    """The cores that this rank may use: its share of those that the machine's ranks have."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // launched()[1])


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


_boards: weakref.WeakKeyDictionary[dist.ProcessGroup, Board | None] = weakref.WeakKeyDictionary()


def _board(message: Tensor, group: dist.ProcessGroup | None) -> Board | None:
    """The board that can carry a small message within a group, where there is one; opened when first asked for."""
    if message.device.type != "cpu":
        return None
    key = dist.group.WORLD if group is None else group
    assert key is not None, "only where there are several ranks"
    if key not in _boards:
        _boards[key] = open_board(key)
    board = _boards[key]
    return board if board is not None and board.holds(message) else None


@torch.no_grad()
def _joint_statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...] over the ranks' values, one collective."""
    # Ranks tell each other mean and variance, not sums of squares: the difference of these cancels in float32.
    own = torch.cat(torch.batch_norm_update_stats(x, None, None, 0.0))
    board = _board(own, group)
    if board is not None:
        told = board.exchange(own)
    else:
        told = own.new_empty((world_size(group), len(own)))
        dist.all_gather_into_tensor(told.view(-1), own, group=group)
    means, variances = told.tensor_split(2, dim=1)
    mean = means.mean(0)
    return mean, variances.add_((means - mean).square_()).mean(0)


class _NormalizeTogether(torch.autograd.Function):
    """Batch norm with given statistics, which are of all ranks' values and depend on them. Made of ordinary batch
    norm's kernels, which on a CPU are several times as fast as written sums and products; backward needs the input
    alone (in its own type; wide: the same in that of the statistics), and one collective."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        wide: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.group, ctx.eps = group, eps
        ctx.save_for_backward(x, mean, var, weight)
        return F.batch_norm(wide, mean, var, weight, bias, eps=eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight = ctx.saved_tensors
        wide, gradient = x.to(mean.dtype), gradients[0].to(mean.dtype)
        inverse = torch.rsqrt(var + ctx.eps)
        # With unit = (x - mean) * inverse: the sums of gradient * unit and of gradient over this rank's values.
        _, *own = torch.ops.aten.native_batch_norm_backward(
            gradient, wide, None, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        sums = torch.cat(own)
        board = _board(sums, ctx.group)
        if board is not None:
            sums = board.exchange(sums).sum(0)
        else:
            dist.all_reduce(sums, group=ctx.group)
        scale = inverse if weight is None else inverse * weight
        # scale * (gradient - unit * mean of gradient * unit - mean of gradient), the means over all ranks
        slope, level = sums.view(2, -1) * (scale / -_values(x, ctx.group))
        back = F.batch_norm(wide, mean, var, slope, level, eps=ctx.eps)
        back.addcmul_(gradient, scale.view(1, -1, *[1] * (x.dim() - 2)))
        return back.to(x.dtype), None, None, None, *((None, None) if weight is None else own), None, None


def _values(x: Tensor, group: dist.ProcessGroup | None) -> int:
    """Of each channel of [N, C, ...], on all ranks."""
    return world_size(group) * (x.numel() // x.shape[1])


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over the batches of all ranks or of a group, [N, C, ...], on any device and backend (torch's
    own refuses the CPU, and has the host wait for the GPU in every layer); every rank brings the same shape. Exactly
    BatchNorm of the joint batch, gradients and running statistics included (in the release the running variance is the
    biased one); at one rank, BatchNorm.

    group: the ranks, or None for all.
    """

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size(self.group) == 1:
            return super().forward(input)
        wide = input.detach().to(torch.promote_types(input.dtype, torch.float32))
        mean, var = _joint_statistics(wide, self.group)
        weight, bias = (None if value is None else value.to(wide.dtype) for value in (self.weight, self.bias))
        if torch.is_grad_enabled():
            out: Tensor = _NormalizeTogether.apply(input, wide, mean, var, weight, bias, self.eps, self.group)
        else:
            out = F.batch_norm(wide, mean, var, weight, bias, eps=self.eps).to(input.dtype)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 0.1 if self.momentum is None else self.momentum
                values = _values(input, self.group)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (values / (values - 1)), momentum)
        return out


def synchronize_batch_norm(module: nn.Module, over: Literal["sync", "node", "local"] = "sync") -> nn.Module:
    """Replace every BatchNorm in `module`, in place, by one with the same parameters and buffers over all ranks
    ("sync") or those of each machine ("node"); with "local", leave it as it is."""
    if over != "local":
        _replace_batch_norm(module, node_group() if over == "node" else None)
    return module


def _replace_batch_norm(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, SyncBatchNorm):
            synced = SyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synced.group = group
            if child.running_mean is not None:
                synced.to(child.running_mean)  # its device and dtype
            synced.load_state_dict(child.state_dict())
            for mine, theirs in zip(synced.parameters(), child.parameters(), strict=True):
                mine.requires_grad_(theirs.requires_grad)
            setattr(module, name, synced.train(child.training))
        else:
            _replace_batch_norm(child, group)
