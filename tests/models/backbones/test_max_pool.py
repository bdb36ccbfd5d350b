"""Max pooling over time and space in two steps is the one in three dimensions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhofast.models.backbones.max_pool import max_pool

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])


def pooled(clip: Tensor, kernel: tuple[int, int], stride: tuple[int, int], *, own: bool) -> tuple[Tensor, Tensor]:
    """Maxima and the gradient of a random projection of them."""
    x = clip.clone().requires_grad_()
    if own:
        out = max_pool(x, kernel, stride)
    else:
        sides = (kernel[0], kernel[1], kernel[1])
        padding = [side // 2 if side % 2 else 0 for side in sides]
        out = F.max_pool3d(x, sides, (stride[0], stride[1], stride[1]), padding)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype))
    assert x.grad is not None
    return out, x.grad


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 4, 12, 16), (1, 4, 1, 7, 9), (3, 1, 2, 1, 5)])
def test_over_space_alone_it_is_the_same_where_values_are_equal_too(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()  # many zeros, as after the stem
    clip = clip.to(dtype).to(memory_format=layout)
    ours, gradient = pooled(clip, (1, 3), (1, 2), own=True)
    expected, expected_gradient = pooled(clip, (1, 3), (1, 2), own=False)
    assert torch.equal(ours, expected) and torch.equal(gradient, expected_gradient)
    assert shape[2] == 1 or ours.is_contiguous(memory_format=layout)


@LAYOUTS
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((2, 2), (2, 2))])
@pytest.mark.parametrize("shape", [(2, 3, 4, 12, 16), (1, 4, 3, 7, 9), (3, 2, 2, 2, 5)])
def test_over_time_and_space_it_is_the_same_where_values_differ(
    shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], layout: torch.memory_format
) -> None:
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    clip = (order.view(shape) / count).to(memory_format=layout)
    ours, gradient = pooled(clip, kernel, stride, own=True)
    expected, expected_gradient = pooled(clip, kernel, stride, own=False)
    assert torch.equal(ours, expected) and torch.allclose(gradient, expected_gradient, atol=1e-6)
    assert 1 in ours.shape[1:3] or ours.is_contiguous(memory_format=layout)


def test_torch_lists_the_pool_in_three_dimensions_as_nondeterministic_and_not_the_one_in_two() -> None:
    listed = torch.use_deterministic_algorithms.__doc__ or ""
    assert ":class:`torch.nn.MaxPool3d` when attempting to differentiate a CUDA tensor" in listed
    assert "torch.nn.MaxPool2d`" not in listed


@pytest.mark.needs_gpu
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3), (1, 2)), ((3, 3), (1, 1))])
def test_the_gradient_of_the_pool_is_the_same_each_time_on_a_gpu(
    kernel: tuple[int, int], stride: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    clip = torch.randn(4, 64, 8, 112, 112, device="cuda").relu().to(dtype).to(memory_format=layout)
    weights = torch.randn_like(max_pool(clip, kernel, stride))
    gradients = []
    for _ in range(10):
        x = clip.clone(memory_format=torch.preserve_format).requires_grad_()
        max_pool(x, kernel, stride).backward(weights)
        gradients.append(x.grad)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])
