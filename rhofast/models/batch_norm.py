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
    """Return mean and biased variance of each channel of [N, C, ...] over all ranks' values, with one collective."""
    # Ranks exchange mean and variance rather than sums of squares, whose difference cancels in float32.
    local = torch.cat(torch.batch_norm_update_stats(x, None, None, 0.0))
    gathered = local.new_empty((world_size(group), len(local)))
    dist.all_gather_into_tensor(gathered.view(-1), local, group=group)
    means, variances = gathered.tensor_split(2, dim=1)
    mean = means.mean(0)
    return mean, variances.add_((means - mean).square_()).mean(0)


class _SyncedNormalization(torch.autograd.Function):
    """Batch norm with given statistics that depend on the values of all ranks.

    It is made of the kernels of ordinary batch norm, which on a CPU are several times as fast as sums and products.
    Backward needs only the input and one collective. `wide` is the input in the dtype of the statistics.
    """

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
        _, *local = torch.ops.aten.native_batch_norm_backward(
            gradient, wide, None, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        sums = torch.cat(local)
        dist.all_reduce(sums, group=ctx.group)
        scale = inverse if weight is None else inverse * weight
        # scale * (gradient - unit * mean of gradient * unit - mean of gradient), with means over all ranks
        slope, level = sums.view(2, -1) * (scale / -_num_values(x, ctx.group))
        result = F.batch_norm(wide, mean, var, slope, level, eps=ctx.eps)
        result.addcmul_(gradient, scale.view(1, -1, *[1] * (x.dim() - 2)))
        return result.to(x.dtype), None, None, None, *((None, None) if weight is None else local), None, None


def _num_values(x: Tensor, group: dist.ProcessGroup | None) -> int:
    """Return the number of values per channel of [N, C, ...] on all ranks together."""
    return world_size(group) * (x.numel() // x.shape[1])


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization of [N, C, ...] over the batches of all ranks or of a group, on any device and backend.

    (torch's own does not support CPUs, and makes the host wait for the GPU in every layer.) Every rank must bring the
    same shape. The result is exactly that of BatchNorm on the joint batch, including gradients and running statistics
    (in the released code the running variance is the biased one). On one rank it is BatchNorm.

    Attributes:
        group: the ranks, or None for all.
    """

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, ...]; in training mode, this is a collective operation."""
        if not self.training or world_size(self.group) == 1:
            return super().forward(input)
        wide = input.detach().to(torch.promote_types(input.dtype, torch.float32))
        mean, var = _joint_statistics(wide, self.group)
        weight, bias = (None if value is None else value.to(wide.dtype) for value in (self.weight, self.bias))
        if torch.is_grad_enabled():
            out: Tensor = _SyncedNormalization.apply(input, wide, mean, var, weight, bias, self.eps, self.group)
        else:
            out = F.batch_norm(wide, mean, var, weight, bias, eps=self.eps).to(input.dtype)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 0.1 if self.momentum is None else self.momentum
                values = _num_values(input, self.group)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (values / (values - 1)), momentum)
        return out


def synchronize_batch_norm(module: nn.Module, over: Literal["sync", "node", "local"] = "sync") -> nn.Module:
    """Replace every BatchNorm in a module by a SyncBatchNorm with the same parameters and buffers, in place.

    Args:
        module: the module.
        over: the ranks that share statistics: all ("sync") or those of each machine ("node"). "local" changes nothing.

    Returns:
        The same module.
    """
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
            for new, old in zip(synced.parameters(), child.parameters(), strict=True):
                new.requires_grad_(old.requires_grad)
            setattr(module, name, synced.train(child.training))
        else:
            _replace_batch_norm(child, group)
