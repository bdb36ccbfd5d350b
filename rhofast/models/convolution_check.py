"""Check on a CPU, before a run believes it, that the convolutions of a network compute what they should.

Kernels for some processors are wrong for some shapes, and nothing fails: training runs, and learns noise. Known are
weight gradients in bf16 where a kernel is longer than the map in a dimension (AVX-512 with bf16, without AMX), and
weight gradients in float32 with channels last that read memory which nobody has set (a kernel of 7 on 6 frames).

So each convolution, on random values of the shape, memory format and precision that it has in the run, is compared with
torch's own kernels in contiguous float32, which do not use oneDNN. Before, memory is filled with NaN and freed, so that
values which nobody has set show. A layer that is wrong, but right in contiguous format, computes in that.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rhofast.config.schema import Config
from rhofast.distributed.collectives import gather_objects
from rhofast.errors import ConfigError

LIMIT_S = 5.0  # for all layers together, the cheapest first: wrong kernels have been found where maps are small
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest difference, in parts of the norm: rounding stays below a tenth of it, wrong kernels are at 0.5 and beyond.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}
_MULTIPLICATIONS = 1 << 25  # per layer: where the run's clips take more, fewer are looked at
_MAX_FILL = 1 << 22  # floats: larger blocks come fresh from the system, as zeros

_measured: dict[tuple[object, ...], tuple[float, str]] = {}  # errors by all that decides which kernel a layer gets


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """How much a layer differs from what it should compute.

    Attributes:
        name: Name of the layer in the network.
        what: What differs most: "outputs", "input gradients" or "weight gradients".
        error: Norm of the difference divided by the norm that it should have; infinite where a value is not finite.
        contiguous: The same in contiguous format, if `error` is above the tolerance; otherwise 0.
        kernel: Sides of the kernel, such as (3, 1, 1).
        map: Sides of the layer's input, such as (2, 4, 4).
    """

    name: str
    what: str
    error: float
    contiguous: float
    kernel: tuple[int, ...]
    map: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A call of a layer in a forward pass: input and output, without their gradients."""

    name: str
    layer: _ConvNd
    x: Tensor
    y: Tensor


def check_convolutions(
    network: nn.Module, backbone: nn.Module, config: Config, *, precision: str, clips: int, gradients: bool
) -> None:
    """On a CPU, see that convolutions compute what they should, or let them use another memory format.

    Call it on every rank, before an optimizer is built: the ranks agree on memory formats, since one that is slower
    finds fewer errors in `LIMIT_S`.

    Args:
        network: What is trained or evaluated.
        backbone: The part of it that takes clips, which may be the whole.
        config: Configuration with the shape of clips.
        precision: "fp32", "bf16" or "fp16": the precision of forward passes.
        clips: Clips in a forward pass of this rank.
        gradients: Whether the backbone is trained.

    Raises:
        ConfigError: A convolution is wrong in any memory format; on every rank.
    """
    errors = convolution_errors(
        backbone,
        precision,
        clips=clips,
        num_frames=config.clips.num_frames,
        size=config.augment.size,
        gradients=gradients,
    )
    mend_convolutions(network, itertools.chain(*gather_objects(errors)), precision)


def convolution_errors(
    network: nn.Module, precision: str, *, clips: int, num_frames: int, size: int, gradients: bool = True
) -> list[LayerError]:
    """Compare every convolution of a network with torch's own kernels in contiguous float32.

    Args:
        network: Network that takes clips, [N, 3, T, H, W]. It is not changed.
        precision: "fp32", "bf16" or "fp16": the precision of its forward passes.
        clips: Clips in a forward pass.
        num_frames: Frames per clip, T.
        size: Pixels per side of a clip, H = W.
        gradients: Whether it is trained. If not, only outputs are compared.

    Returns:
        One entry per call of a convolution in a forward pass; none on a GPU, or for weights that are not float32.
        Layers for which `LIMIT_S` is too short have none.
    """
    weight = next(network.parameters(), torch.empty(0))
    if weight.device.type != "cpu" or weight.dtype != torch.float32:  # oneDNN has no kernels in double precision
        return []
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    calls = _calls(network, DTYPES[precision], num_frames=num_frames, size=size, gradients=gradients)
    errors, end = [], time.monotonic() + LIMIT_S
    for call in sorted(calls, key=lambda call: (_multiplications(call), call.name)):
        if time.monotonic() < end:
            errors.append(_error(call, precision, clips, gradients=gradients))
    return errors


def mend_convolutions(network: nn.Module, errors: Iterable[LayerError], precision: str) -> None:
    """Let layers that differ by more than rounding compute in contiguous format.

    Args:
        network: All layers of it with the names of wrong ones change, whatever stands before the names: a method has a
            second backbone, whose momentum network has the same shapes.
        errors: What `convolution_errors` has found.
        precision: `train.precision`.

    Raises:
        ConfigError: A layer is wrong in contiguous format, too. The message names the worst one.
    """
    wrong = [error for error in errors if error.error > TOLERANCES[precision]]
    hopeless = [error for error in wrong if error.contiguous > TOLERANCES[precision]]
    if hopeless:
        worst = max(hopeless, key=lambda error: error.error)
        kernel, sides = ("x".join(map(str, shape)) for shape in (worst.kernel, worst.map))
        off = f"off by {worst.error:.0%}" if math.isfinite(worst.error) else "not finite"
        raise ConfigError(
            f"train.precision={precision}: this processor computes wrong {worst.what} for "
            f"'backbone.{_within_backbone(worst.name)}' "
            f"(kernel {kernel} on a map of {sides}: {off}, limit {TOLERANCES[precision]:.1%})",
            hint=("" if precision == "fp32" else "--set train.precision=fp32, or ")
            + "clips with more frames or pixels: clips.num_frames, augment.size",
        )
    endings = tuple(f".{error.name}" for error in wrong)
    for name, layer in network.named_modules():
        if isinstance(layer, _ConvNd) and f".{name}".endswith(endings):
            if not _is_mended(layer):
                layer.register_forward_pre_hook(_give_contiguous)
            for parameter in layer.parameters():  # again: `to_channels_last` may have been called since
                parameter.data = parameter.data.contiguous()


def mended_note(network: nn.Module) -> str | None:
    """Say which layers of a network compute in contiguous format because they are wrong otherwise, if there are any."""
    wrong = [name for name, layer in network.named_modules() if _is_mended(layer)]
    names = list(dict.fromkeys(map(_within_backbone, wrong)))  # a method has two backbones
    if not names:
        return None
    which = repr(names[0]) + (f" and {len(names) - 1} other layers" if len(names) > 1 else "")
    return f"this processor computes wrong values with channels last for {which}: contiguous format is used instead"


def _within_backbone(name: str) -> str:
    return name.rpartition("backbone.")[2]


def _is_mended(layer: nn.Module) -> bool:
    return _give_contiguous in layer._forward_pre_hooks.values()


def _give_contiguous(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in given)


def _calls(network: nn.Module, precision: torch.dtype, *, num_frames: int, size: int, gradients: bool) -> list[_Call]:
    """Return the calls of convolutions in a forward pass of one clip."""
    network = copy.deepcopy(network).eval()  # batch norm of one random clip would say nothing
    calls: list[_Call] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor, *, name: str) -> None:
        assert isinstance(layer, _ConvNd)
        x = given[0].detach().requires_grad_(given[0].requires_grad)
        calls.append(_Call(name=name, layer=layer, x=x, y=output.detach()))

    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _ConvNd)}
    hooks = [layer.register_forward_hook(functools.partial(keep, name=name)) for name, layer in layers.items()]
    if layers:
        # Channels last, as the loader's clips are.
        clip = torch.randn(1, num_frames, size, size, 3, generator=torch.Generator().manual_seed(0)).movedim(-1, 1)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradients), _autocast(precision):
            network(clip)
    for hook in hooks:
        hook.remove()
    return calls


def _error(call: _Call, precision: str, clips: int, *, gradients: bool) -> LayerError:
    error, what = _measure(call, precision, clips, gradients=gradients, contiguous=False)
    contiguous = 0.0
    if error > TOLERANCES[precision]:
        contiguous, _ = _measure(call, precision, clips, gradients=gradients, contiguous=True)
    return LayerError(
        name=call.name,
        what=what,
        error=error,
        contiguous=contiguous,
        kernel=tuple(call.layer.kernel_size),
        map=tuple(call.x.shape[2:]),
    )


def _measure(call: _Call, precision: str, clips: int, *, gradients: bool, contiguous: bool) -> tuple[float, str]:
    """Return the largest error of a layer, in the run's memory format or in contiguous format, and what is wrong."""
    generator, dtype = torch.Generator().manual_seed(0), DTYPES[precision]
    layer, reference = copy.deepcopy(call.layer), copy.deepcopy(call.layer)
    count = min(max(1, clips), max(2, _MULTIPLICATIONS // _multiplications(call)))
    x = torch.cat([call.x.detach()] * count)
    if contiguous:
        x = x.contiguous()
        for parameter in layer.parameters():
            parameter.data = parameter.data.contiguous()
    shapes = (x.shape, x.stride(), layer.weight.stride(), x.dtype, call.x.requires_grad, layer.weight.requires_grad)
    key = (type(layer), str(layer), precision, gradients, torch.get_num_threads(), *shapes)
    if key in _measured:
        return _measured[key]
    x.normal_(generator=generator)
    for parameter in reference.parameters():  # what the reduced precision makes of the weights
        parameter.data = parameter.data.to(dtype).float().contiguous()
    given = x.to(dtype).float().contiguous().requires_grad_(call.x.requires_grad)
    with torch.set_grad_enabled(gradients):
        with _without_onednn():
            expected = reference(given)
            output_gradient = torch.randn(expected.shape, generator=generator).to(dtype)
            if expected.requires_grad:
                expected.backward(output_gradient.float())
        x.requires_grad_(call.x.requires_grad)
        _fill_free_memory(x.numel(), expected.numel(), layer.weight.numel())
        with _autocast(dtype):
            y = layer(x)
        _fill_free_memory(x.numel(), expected.numel(), layer.weight.numel())
        if y.requires_grad:
            y.backward(torch.empty_like(y).copy_(output_gradient))
    pairs = [(y, expected, "outputs"), (x.grad, given.grad, "input gradients")]
    for mine, right in zip(layer.parameters(), reference.parameters(), strict=True):
        pairs.append((mine.grad, right.grad, "weight gradients"))
    _measured[key] = max((_relative(mine, right), what) for mine, right, what in pairs)
    return _measured[key]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    switch: Any = torch.backends.mkldnn  # its own context manager warns of GPUs
    enabled, switch.enabled = switch.enabled, False
    try:
        yield
    finally:
        switch.enabled = enabled


def _relative(value: Tensor | None, expected: Tensor | None) -> float:
    """Return the norm of a difference in parts of the norm that is expected."""
    if value is None or expected is None:
        return 0.0
    norm = float(expected.detach().norm())
    if norm == 0 or not math.isfinite(norm):  # values beyond the range of fp16, for example
        return 0.0
    error = float((value.detach().float() - expected.detach()).norm()) / norm
    return error if math.isfinite(error) else math.inf


def _fill_free_memory(*sizes: int) -> None:
    """Leave NaN where the next tensors are allocated, of these numbers of floats or others of that order."""
    largest = min(_MAX_FILL, max(sizes))
    powers = [1 << power for power in range(4, largest.bit_length() + 1)]
    blocks = [torch.full((min(size, largest),), math.nan) for size in (*powers, *sizes, *sizes)]
    del blocks  # all at once, so that each was of other memory


def _multiplications(call: _Call) -> int:
    """Return the multiplications of a call with one clip."""
    return max(1, call.y.numel() * call.layer.weight[0].numel())


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32)
