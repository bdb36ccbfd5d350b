"""Reduced precision on a CPU is compared with float32 before a run trusts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.training import precision_check
from rhofast.training.precision_check import TOLERANCE, check_reduced_precision, layer_errors


def network() -> nn.Module:
    return build_backbone("slow_r18", {"width": 4}, num_frames=4, size=128)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["plain", "channels last"])
def test_where_kernels_are_right_only_rounding_is_left(layout: torch.memory_format) -> None:
    errors = layer_errors(network().to(memory_format=layout), torch.bfloat16, num_frames=4, size=128)
    assert len(errors) == 20 and 0 < max(one.error for one in errors) < 0.01


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_wrong_gradient_is_named_with_its_layer_and_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = network()
    shape = backbone.get_submodule("stages.3.0.shortcut").weight.shape
    real = precision_check.CONVOLUTIONS[nn.Conv3d]

    def disagree(x: torch.Tensor, wanted: torch.Size, *given: object) -> torch.Tensor:
        gradient: torch.Tensor = real(x, wanted, *given)
        return gradient * factor if wanted == shape else gradient

    monkeypatch.setitem(precision_check.CONVOLUTIONS, nn.Conv3d, disagree)
    errors = layer_errors(backbone, torch.bfloat16, num_frames=4, size=128)
    assert [one.name for one in errors if not one.error < TOLERANCE] == ["stages.3.0.shortcut"]
    said = r"train\.precision=bf16: .*'backbone\.stages\.3\.0\.shortcut' \(kernel 1x1x1 on a map of 4x8x8"
    with pytest.raises(ConfigError, match=said) as caught:
        check_reduced_precision(backbone, "bf16", num_frames=4, size=128)
    assert caught.value.hint is not None and "train.precision=fp32" in caught.value.hint


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    backbone = network()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    check_reduced_precision(backbone, "bf16", num_frames=4, size=32)
    assert torch.equal(state, torch.get_rng_state()) and backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())


def test_full_precision_needs_no_check() -> None:
    check_reduced_precision(nn.Identity(), "fp32", num_frames=1, size=1)
