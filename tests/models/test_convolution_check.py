"""Convolutions are compared with torch's own kernels before a run trusts them; wrong ones use contiguous format."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rhofast.config.load import parse_config
from rhofast.errors import ConfigError
from rhofast.models import convolution_check
from rhofast.models.backbones import build_backbone
from rhofast.models.convolution_check import (
    TOLERANCES,
    LayerError,
    check_convolutions,
    convolution_errors,
    mend_convolutions,
    mended_note,
)
from rhofast.models.memory_format import to_channels_last

SEES = {"clips": 4, "num_frames": 4, "size": 16}
LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_check, "LIMIT_S", math.inf)  # tests look at all layers, on any busy machine


class Gradient(torch.autograd.Function):
    """Do nothing, and give the gradient that `change` makes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Any) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradients[0]), None


class Faulty(nn.Conv3d):
    """A convolution that is wrong with channels last, and with `everywhere` in any memory format."""

    everywhere = False
    fault = "weight gradients"

    def forward(self, x: Tensor) -> Tensor:
        reference = not torch.backends.mkldnn.enabled  # type: ignore[truthy-bool]
        last = x.is_contiguous(memory_format=LAST) or self.weight.is_contiguous(memory_format=LAST)
        if reference or not (last or self.everywhere):
            return super().forward(x)
        weight = self.weight
        if self.fault == "weight gradients":
            weight = Gradient.apply(weight, lambda gradient: gradient * 1.5)
        if self.fault == "memory":  # what is there before anybody has set it
            weight = Gradient.apply(weight, torch.empty_like)
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y + 0.01 * y.detach() if self.fault == "outputs" else y


def faulty(fault: str = "weight gradients", *, everywhere: bool = False) -> type[Faulty]:
    return type("FaultyConv", (Faulty,), {"fault": fault, "everywhere": everywhere})


def wrong_in(module: nn.Module, precision: str = "fp32", *, gradients: bool = True) -> list[LayerError]:
    errors = convolution_errors(module, precision, gradients=gradients, **SEES)
    return [error for error in errors if error.error > TOLERANCES[precision]]


def network(layer: type[nn.Conv3d] = nn.Conv3d) -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv3d(3, 4, 3, padding=1), layer(4, 4, (7, 1, 1), stride=(2, 1, 1), padding=(3, 0, 0))
    return to_channels_last(nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool3d(1), nn.Flatten()))


def gradients_of(module: nn.Module) -> list[Tensor]:
    clips = torch.randn(2, 4, 16, 16, 3, generator=torch.Generator().manual_seed(1)).movedim(-1, 1)
    module.zero_grad()
    module(clips).square().sum().backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_only_rounding_is_left_where_kernels_are_right(precision: str, last: bool) -> None:
    backbone = build_backbone("slow_r18", {"width": 4}, num_frames=8, size=64)
    backbone = to_channels_last(backbone) if last else backbone
    errors = convolution_errors(backbone, precision, clips=2, num_frames=8, size=64)
    largest = {"fp32": 1e-5, "bf16": 0.01, "fp16": 0.01}[precision]
    assert len(errors) == 20 and 0 < max(one.error for one in errors) < largest


@pytest.mark.parametrize("fault", ["weight gradients", "memory", "outputs"])
def test_a_wrong_layer_is_found_and_computes_in_contiguous_format(fault: str) -> None:
    module = network(faulty(fault))
    (wrong,) = wrong_in(module)
    assert (wrong.name, wrong.kernel, wrong.map) == ("2", (7, 1, 1), (4, 16, 16)) and wrong.contiguous < 1e-5
    assert wrong.what == ("outputs" if fault == "outputs" else "weight gradients")
    mend_convolutions(module, [wrong], "fp32")
    assert not wrong_in(module)
    for mine, right in zip(gradients_of(module), gradients_of(network()), strict=True):
        torch.testing.assert_close(mine, right)
    note = mended_note(module)
    assert note is not None and "'2'" in note and mended_note(network()) is None


def test_of_features_only_outputs_are_looked_at() -> None:
    assert not wrong_in(network(faulty()), gradients=False)
    assert [one.what for one in wrong_in(network(faulty("outputs")), gradients=False)] == ["outputs"]


def test_a_layer_that_is_wrong_in_any_format_is_refused() -> None:
    module = network(faulty(everywhere=True))
    wrong = wrong_in(module, "bf16")
    with pytest.raises(ConfigError, match=r"train\.precision=bf16: .*'backbone\.2' \(kernel 7x1x1 on a map of 4x16x16"):
        mend_convolutions(module, wrong, "bf16")
    assert mended_note(module) is None


CONFIG = parse_config({"name": "x", "clips": {"num_frames": 4}, "augment": {"size": 16}}, where="test")


def test_a_network_is_mended_anew_where_its_memory_format_was_set_again() -> None:
    """A probe moves the backbone to its device, and then the classifier with the backbone in it."""
    module = network(faulty("outputs"))
    for _ in range(2):
        check_convolutions(to_channels_last(module), module, CONFIG, precision="fp32", clips=4, gradients=False)
        assert not wrong_in(module)


def test_what_one_rank_finds_all_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    (other,) = wrong_in(network(faulty("outputs")))
    monkeypatch.setattr(convolution_check, "gather_objects", lambda mine: [mine, [other]])
    module = network()
    check_convolutions(module, module, CONFIG, precision="fp32", clips=4, gradients=True)
    assert mended_note(module) is not None


def test_the_momentum_network_is_mended_as_the_trained_one() -> None:
    method = nn.ModuleDict({"backbone": network(), "momentum_backbone": network()})
    wrong = LayerError(name="2", what="outputs", error=1.0, contiguous=0.0, kernel=(7, 1, 1), map=(4, 16, 16))
    for _ in range(2):  # of two ranks, both name it
        mend_convolutions(method, [wrong, wrong], "fp32")
    for name in ("backbone.2", "momentum_backbone.2"):
        layer = method.get_submodule(name)
        assert isinstance(layer.weight, Tensor) and layer.weight.is_contiguous() and len(layer._forward_pre_hooks) == 1
    assert not method.get_submodule("backbone.0").weight.is_contiguous()  # type: ignore[operator]


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    backbone = to_channels_last(build_backbone("slow_r18", {"width": 4}, num_frames=4, size=32))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    convolution_errors(backbone, "bf16", clips=2, num_frames=4, size=32)
    assert torch.equal(state, torch.get_rng_state()) and backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(p.grad is None and not layer_hooks(backbone) for p in backbone.parameters())


def layer_hooks(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) for each in module.modules())


def test_a_network_without_convolutions_is_not_run() -> None:
    assert convolution_errors(nn.Identity(), "fp32", clips=1, num_frames=1, size=1) == []


def test_calls_are_what_the_network_makes_of_clips() -> None:
    """A network of 2D convolutions folds frames into the batch, and pads as it likes."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")

        def forward(self, clips: Tensor) -> Tensor:
            frames: Tensor = self.conv(clips.transpose(1, 2).flatten(0, 1))
            return self.conv(frames[:, :3]).mean(dim=(2, 3))

    errors = convolution_errors(Frames(), "fp32", **SEES)
    assert [(one.name, one.map) for one in errors] == [("conv", (16, 16))] * 2
    assert max(one.error for one in errors) < 1e-5


def test_what_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_check, "LIMIT_S", 0.0)
    assert convolution_errors(network(), "fp32", **SEES) == []


def test_a_network_in_double_precision_is_not_checked() -> None:
    assert convolution_errors(nn.Conv3d(3, 4, 3).double(), "fp32", clips=1, num_frames=4, size=8) == []
