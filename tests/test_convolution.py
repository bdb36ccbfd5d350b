"""Convolutions computed in two dimensions are those in three."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from rhofast.backbones.convolution import Conv3d, replace_convolutions

KERNELS = [(1, 1, 1), (3, 1, 1), (5, 1, 1), (1, 3, 3), (1, 7, 7), (1, 1, 3), (3, 3, 3)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)]


def both(made: nn.Conv3d) -> tuple[Conv3d, nn.Conv3d]:
    """The same weights in a folding convolution and in torch's."""
    network = nn.Sequential(made)
    replace_convolutions(network)
    assert isinstance(network[0], Conv3d) and network[0].weight is made.weight
    return network[0], made


def results(conv: nn.Conv3d, x: Tensor) -> list[Tensor]:
    """Output, and gradients of input and parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    conv.zero_grad()
    out = conv(x)
    (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return [out, *(value.grad.clone() for value in (x, *conv.parameters()) if value.grad is not None)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product(KERNELS, STRIDES)))
def test_output_and_gradients_are_those_of_torch(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], layout: torch.memory_format
) -> None:
    for padding, dilation, groups in itertools.product(((0, 0, 0), tuple(k // 2 for k in kernel)), (1, 2), (1, 2)):
        theirs = nn.Conv3d(4, 6, kernel, stride, padding, dilation, groups, dtype=torch.float64)
        ours, theirs = both(theirs.to(memory_format=layout))  # type: ignore[call-overload]
        x = torch.randn(2, 4, 11, 16, 15, dtype=torch.float64).to(memory_format=layout)
        for mine, expected in zip(results(ours, x), results(theirs, x), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_layout_stays(kernel: tuple[int, int, int]) -> None:
    conv = Conv3d(4, 6, kernel, padding=tuple(k // 2 for k in kernel)).to(memory_format=torch.channels_last_3d)  # type: ignore[arg-type, call-overload]
    x = torch.randn(2, 4, 5, 8, 8).to(memory_format=torch.channels_last_3d)
    assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_only_plain_convolutions_are_replaced() -> None:
    class Own(nn.Conv3d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    network = nn.Sequential(Own(3, 3, 1), nn.Sequential(nn.Conv3d(3, 3, 1), nn.Conv2d(3, 3, 1)))
    names = list(network.state_dict())
    replace_convolutions(network)
    kinds = [type(module) for module in network.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == [Own, Conv3d, nn.Conv2d] and list(network.state_dict()) == names


@pytest.mark.parametrize("padding_mode", ["circular", "replicate"])
def test_other_paddings_are_left_to_torch(padding_mode: str) -> None:
    ours, theirs = both(nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0), padding_mode=padding_mode))  # type: ignore[arg-type]
    x = torch.randn(1, 3, 5, 4, 4)
    assert torch.equal(ours(x), theirs(x))
