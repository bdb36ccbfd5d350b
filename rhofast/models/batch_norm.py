"""Batch normalization over the batches of several ranks, on any device and backend."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.distributed.process_group import node_group, world_size


@torch.no_grad()
def _joint_statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of [N, C, ...] over the ranks' values, one collective."""
    # Ranks tell each other mean and variance, not sums of squares: the difference of these cancels in float32.
    own = torch.cat(torch.batch_norm_update_stats(x, None, None, 0.0))
    every = own.new_empty((world_size(group), len(own)))
    dist.all_gather_into_tensor(every.view(-1), own, group=group)
    means, variances = every.tensor_split(2, dim=1)
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
