"""What ranks tell each other: reductions, gathers, and batch normalization over all of them.

Everything works without a process group too, as rank 0 of 1. Gradients: a rank's backward gives the gradient of its own
loss with all ranks' contributions summed in; data-parallel averaging then makes it the gradient of the mean loss.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks, or of those of a group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's number, from 0, among all or in a group; 0 without a process group."""
    return dist.get_rank(group) if world_size() > 1 else 0


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


class _NormalizeTogether(torch.autograd.Function):
    """SyncBatchNorm's arithmetic. Backward needs the input alone, and two sums over the ranks, as in torch's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(normalized [N, C, ...], mean [C], biased variance [C], number of values a channel)"""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, ctx.view = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        # Ranks tell each other mean and variance, not sums of squares: the difference of these cancels in float32.
        own_var, own_mean = torch.var_mean(wide, axes, correction=0)
        count = wide.new_full((1,), x.numel() / x.shape[1])
        told = all_gather(torch.cat([own_mean, own_var, count]), group)  # [W, 2 C + 1]
        counts, channels = told[:, -1:], x.shape[1]
        total = counts.sum()
        mean = (told[:, :channels] * counts).sum(dim=0) / total
        var = ((told[:, channels:-1] + (told[:, :channels] - mean).square()) * counts).sum(dim=0) / total
        inverse = torch.rsqrt(var + eps)
        ctx.group = group
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.mark_non_differentiable(mean, var, total)
        out = (wide - mean.view(ctx.view)).mul_((inverse if weight is None else inverse * weight).view(ctx.view))
        if bias is not None:
            out += bias.view(ctx.view)
        return out.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        gradient = gradients[0].to(mean.dtype)
        unit = (x - mean.view(ctx.view)).mul_(inverse.view(ctx.view))
        own = torch.stack([gradient.sum(axes), (gradient * unit).sum(axes)])
        sums = own.clone()
        dist.all_reduce(sums, group=ctx.group)
        level, slope = sums / total
        scale = inverse if weight is None else inverse * weight
        back = (gradient - level.view(ctx.view)).sub_(unit.mul_(slope.view(ctx.view))).mul_(scale.view(ctx.view))
        affine = (None, None) if weight is None else (own[1].to(weight.dtype), own[0].to(weight.dtype))
        return back.to(x.dtype), *affine, None, None


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over the batches of all ranks or of a group, [N, C, ...], on any device and backend (torch's
    own needs CUDA). Exactly BatchNorm of the joint batch, gradients and running statistics included (in the release
    the running variance is the biased one); at one rank, BatchNorm.

    group: the ranks, or None for all.
    """

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size(self.group) == 1:
            return super().forward(input)
        out, mean, var, total = _NormalizeTogether.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (total / (total - 1)), momentum)
        normalized: Tensor = out
        return normalized


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
