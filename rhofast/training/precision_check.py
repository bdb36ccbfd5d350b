"""Check reduced precision on a CPU before a run believes it.

On some processors (AVX-512 with bf16, without AMX) the weight gradients of bf16 convolutions are garbage wherever a
kernel is longer than the map in a dimension, while outputs and input gradients are right: training runs, and learns
noise. So before the first step on a CPU, one small backward of the run's own network, on clips of the run's own shape,
is compared layer by layer with the same layer in float32. Accumulated rounding does not matter to that comparison: each
layer is recomputed from the very inputs and output gradients that it had.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import grad as weight_gradients

from rhofast.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 0.1  # of the gradient's norm; rounding stays below 0.01, broken kernels are at 0.5 and beyond
CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: weight_gradients.conv1d_weight,
    nn.Conv2d: weight_gradients.conv2d_weight,
    nn.Conv3d: weight_gradients.conv3d_weight,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """A layer whose weight gradient in reduced precision differs from the one in float32.

    Attributes:
        name: Name of the layer in the network.
        error: Norm of the difference divided by the norm of the float32 gradient; infinite where a value is not finite.
        kernel: Sides of the kernel, such as (3, 1, 1).
        map: Sides of the layer's input, such as (2, 4, 4).
    """

    name: str
    error: float
    kernel: tuple[int, ...]
    map: tuple[int, ...]


def check_reduced_precision(backbone: nn.Module, precision: str, *, num_frames: int, size: int) -> None:
    """Raise if this processor computes wrong weight gradients in the precision of the run.

    Args:
        backbone: Network on the CPU, as it will be trained, [N, 3, T, H, W] -> [N, D]. It is not changed.
        precision: `train.precision`: "fp32" (nothing to check), "bf16" or "fp16".
        num_frames: Frames per clip, T.
        size: Pixels per side of a clip, H = W.

    Raises:
        ConfigError: A layer's gradient is wrong by more than `TOLERANCE`; the message names the worst one.
    """
    if precision not in DTYPES:
        return
    worst = max(layer_errors(backbone, DTYPES[precision], num_frames=num_frames, size=size), key=lambda one: one.error)
    if worst.error > TOLERANCE:
        kernel, sides = ("x".join(map(str, shape)) for shape in (worst.kernel, worst.map))
        raise ConfigError(
            f"train.precision={precision}: this processor computes wrong weight gradients for 'backbone.{worst.name}' "
            f"(kernel {kernel} on a map of {sides}: off by {worst.error:.0%}, limit {TOLERANCE:.0%})",
            hint="--set train.precision=fp32, or clips with more frames or pixels",
        )


def layer_errors(backbone: nn.Module, dtype: torch.dtype, *, num_frames: int, size: int) -> list[LayerError]:
    """Compare the weight gradient of every convolution of a network with float32.

    Args:
        backbone: Network on the CPU. It is not changed.
        dtype: torch.bfloat16 or torch.float16, for autocast.
        num_frames: Frames per clip.
        size: Pixels per side of a clip.

    Returns:
        One entry per convolution with a trained weight; one entry without error for a network that has none.
    """
    network = copy.deepcopy(backbone).eval()  # batch norm of two random clips would say nothing
    inputs: dict[str, Tensor] = {}
    output_gradients: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def keep(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = given[0].detach()

            def keep_gradient(gradient: Tensor) -> None:
                output_gradients[name] = gradient.detach()

            output.register_hook(keep_gradient)  # type: ignore[no-untyped-call]

        layer.register_forward_hook(keep)

    layers = {
        name: layer for name, layer in network.named_modules() if type(layer) in CONVOLUTIONS and _is_trained(layer)
    }
    for name, layer in layers.items():
        watch(name, layer)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(2, 3, num_frames, size, size, generator=generator)
    with torch.autocast("cpu", dtype):
        features = network(clips)
    (features.float() * torch.randn(features.shape, generator=generator)).sum().backward()
    found = [
        _compare(name, layer, inputs[name], output_gradients[name], dtype)
        for name, layer in layers.items()
        if name in output_gradients
    ]
    return found or [LayerError(name="", error=0.0, kernel=(), map=())]


def _is_trained(layer: nn.Module) -> bool:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.requires_grad


def _compare(name: str, layer: nn.Module, x: Tensor, gradient: Tensor, dtype: torch.dtype) -> LayerError:
    """Compare a layer's gradient with float32, both from the input and the output gradient as `dtype` rounds them."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.weight.grad is not None
    expected = CONVOLUTIONS[type(layer)](
        x.to(dtype).float(),
        layer.weight.shape,
        gradient.to(dtype).float(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    norm = float(expected.norm())
    error = float((layer.weight.grad.float() - expected).norm()) / norm if norm != 0 else 0.0
    return LayerError(
        name=name,
        error=error if error == error else float("inf"),  # NaN compares with nothing
        kernel=tuple(layer.kernel_size),
        map=tuple(x.shape[2:]),
    )
