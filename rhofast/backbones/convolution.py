"""3D convolutions, computed in two dimensions where one of the kernel's sides allows it.

Video networks are mostly made of kernels kt x 1 x 1 and 1 x kh x kw. As convolutions in two dimensions, over (T, H W)
or over the frames one by one, they are the same sums, and views of the same memory; but libraries have much better code
for them (benchmarks/convolution.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """nn.Conv3d, its weights and its state dict; [N, C_in, T, H, W] -> [N, C_out, T', H', W']."""

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or input.dim() != 5:
            return super().forward(input)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1) and self.padding[1:] == (0, 0):
            return self._along_time(input)
        # The frames lie one behind the other where channels are innermost; elsewhere that would be a copy.
        if (self.kernel_size[0], self.stride[0], self.padding[0]) == (1, 1, 0) and input.is_contiguous(
            memory_format=torch.channels_last_3d
        ):
            return self._frame_by_frame(input)
        return super().forward(input)

    def _along_time(self, input: Tensor) -> Tensor:
        stride, padding, dilation = ((value[0], start) for value, start in self._steps())
        out = F.conv2d(input.flatten(3), self.weight[..., 0], self.bias, stride, padding, dilation, self.groups)
        return torch.unflatten(out, 3, input.shape[3:])

    def _frame_by_frame(self, input: Tensor) -> Tensor:
        frames = input.transpose(1, 2).flatten(0, 1)
        stride, padding, dilation = (value[1:] for value, _ in self._steps())
        out = F.conv2d(frames, self.weight[:, :, 0], self.bias, stride, padding, dilation, self.groups)
        return torch.unflatten(out, 0, (input.shape[0], input.shape[2])).transpose(1, 2)

    def _steps(self) -> list[tuple[tuple[int, ...], int]]:
        """Stride, padding and dilation, each with what it is along a side of length 1."""
        assert not isinstance(self.padding, str)
        return [(self.stride, 1), (self.padding, 0), (self.dilation, 1)]


def replace_convolutions(network: nn.Module) -> None:
    """Put a Conv3d with the same parameters in the place of every plain 3D convolution of `network`, in place."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv3d) and type(child).forward is nn.Conv3d.forward:
            made = Conv3d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                child.padding,  # type: ignore[arg-type]
                child.dilation,  # type: ignore[arg-type]
                child.groups,
                child.bias is not None,
                child.padding_mode,
                device="meta",
            )
            made.weight, made.bias = child.weight, child.bias
            setattr(network, name, made.train(child.training))
        else:
            replace_convolutions(child)
