"""What ranks tell each other: reductions, gathers, and batch normalization over all of them.

Everything works without a process group too, as rank 0 of 1. Gradients: a rank's backward gives the gradient of its own
loss with all ranks' contributions summed in; data-parallel averaging then makes it the gradient of the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def shared_permutation(count: int, device: torch.device) -> Tensor:
    """A random permutation i64[count], the same on all ranks: drawn from rank 0's global generator."""
    order = torch.randperm(count, device=device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    return order


def all_reduce_sum(value: Tensor) -> Tensor:
    """The elementwise sum over all ranks, without a gradient. `value` is not changed."""
    if world_size() == 1:
        return value
    out = value.detach().clone()
    dist.all_reduce(out)
    return out


def all_gather(value: Tensor) -> Tensor:
    """The ranks' [B, ...] as [W, B, ...], in rank order; every rank brings the same shape. Its gradient is the sum of
    all ranks' gradients."""
    if world_size() == 1:
        return value[None]
    out: Tensor = _AllGather.apply(value)
    return out


def reduce_max(value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks. `value` is not changed."""
    if world_size() == 1:
        return value
    out = value.clone()
    dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return out


class _AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        out = value.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        out = gradients[0].clone()
        dist.all_reduce(out)
        return out


class _AllGather(torch.autograd.Function):
    """See `all_gather`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous()
        out = value.new_empty((world_size(), *value.shape))
        dist.all_gather_into_tensor(out.flatten(0, 1), value)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        out = gradients[0].clone()
        dist.all_reduce(out)
        return out[rank()]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over the batches of all ranks, [N, C, ...], on any device and backend (torch's own needs
    CUDA). Exactly BatchNorm of the joint batch, gradients and running statistics included; at one rank, BatchNorm."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums: Tensor = _AllReduceSum.apply(torch.cat([x.sum(axes), x.square().sum(axes), count]))
        channels, total = self.num_features, sums[-1].detach()
        mean, square = sums[:channels] / total, sums[channels:-1] / total
        var = (square - mean.square()).clamp(min=0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (total / (total - 1)), momentum)
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        view = [1, -1, *[1] * (input.dim() - 2)]
        out: Tensor = (x * scale.view(view) + shift.view(view)).to(input.dtype)
        return out


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in `module`, in place, by one over all ranks with the same parameters and buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, SyncBatchNorm):
            synced = SyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            if child.running_mean is not None:
                synced.to(child.running_mean)  # its device and dtype
            synced.load_state_dict(child.state_dict())
            for mine, theirs in zip(synced.parameters(), child.parameters(), strict=True):
                mine.requires_grad_(theirs.requires_grad)
            setattr(module, name, synced.train(child.training))
        else:
            synchronize_batch_norm(child)
    return module
