"""S3D against torchvision's, its gates against closed forms, and what training needs of both."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import video

from rhofast.checkpoint.backbone_file import load_backbone
from rhofast.checkpoint.export import import_weights
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.s3d import S3D, Gate, Inception
from rhofast.models.memory_format import to_channels_last
from rhofast.models.methods import METHODS, build_method
from tests.helpers.reference import forward_backward


def small(**options: Any) -> S3D:
    torch.manual_seed(0)
    network = build_backbone("s3dg", {"width": 8, **options})
    assert isinstance(network, S3D)
    return network


def clips(count: int = 2, frames: int = 8, height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def gates(network: nn.Module) -> list[Gate]:
    return [module for module in network.modules() if isinstance(module, Gate)]


def official_s3d() -> Any:
    """torchvision's network with random weights and statistics."""
    torch.manual_seed(0)
    official = video.s3d(weights=None).eval()
    for module in official.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return official


def test_torchvision_s_weights_give_torchvision_s_features(tmp_path: Path) -> None:
    official = official_s3d()
    torch.save(official.state_dict(), tmp_path / "s3d-0123abcd.pth")
    done = import_weights(tmp_path / "s3d-0123abcd.pth", tmp_path / "b.safetensors", backbone="s3d")
    assert done.entries.dropped == ["classifier.1.weight", "classifier.1.bias"] and done.entries.missing == []
    network = load_backbone(done.target)
    assert network.card["input"]["size"] == 224 and network.num_features == 1024  # type: ignore[index]
    with torch.no_grad():
        for shape in ((6, 17, 17), (17, 50, 33)):
            last = official.features(clips(1, *shape))
            assert torch.allclose(network.feature_maps(clips(1, *shape))[-1], last, atol=1e-5)  # type: ignore[operator]
            # Its window of 2 x 7 x 7 places is the whole map for 16 frames of 224 pixels.
            assert torch.allclose(network(clips(1, *shape)), last.mean(dim=(2, 3, 4)), atol=1e-5)


def test_torchvision_s_weights_have_no_gates(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = video.s3d(weights=None).state_dict()
    torch.save(
        {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}, tmp_path / "x.pth"
    )
    with pytest.raises(ConfigError, match="which backbone 's3dg' needs") as caught:
        import_weights(tmp_path / "x.pth", tmp_path / "b.safetensors", backbone="s3dg")
    assert "\n" not in str(caught.value)


def test_parameters_are_as_many_as_torchvision_s_and_those_of_the_gates() -> None:
    """8.32 M with a classifier of 400 classes; a gate of c channels has c (c + 1)."""
    with torch.device("meta"):
        plain, gated = (build_backbone(name, {}) for name in ("s3d", "s3dg"))
    count = [sum(p.numel() for p in network.parameters()) for network in (plain, gated)]
    assert count[0] == 8_320_048 - 400 * (1024 + 1)
    channels = [gate.linear.in_features for gate in gates(gated)]
    assert len(channels) == 1 + 9 * 4 and channels[:5] == [192, 64, 128, 32, 32]
    assert count[1] - count[0] == sum(c * (c + 1) for c in channels)
    assert gates(plain) == []


def test_a_gate_is_its_formula() -> None:
    gate = Gate(2)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        gate.linear.bias.copy_(torch.tensor([0.5, 1.0]))
    x = torch.stack([torch.full((2, 3, 4), 1.0), torch.arange(24.0).view(2, 3, 4)])[None]  # means 1 and 11.5
    out = gate(x)
    for channel, score in enumerate((1 * 1 + 2 * 11.5 + 0.5, -11.5 + 1)):
        assert torch.allclose(out[0, channel], x[0, channel] * torch.tensor(score).sigmoid())


def test_every_branch_has_its_own_gate() -> None:
    torch.manual_seed(0)
    plain = Inception(6, (3, 2, 4, 2, 5, 2), gating=False).eval()
    gated = Inception(6, (3, 2, 4, 2, 5, 2), gating=True).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    for gate in gates(gated):
        nn.init.normal_(gate.linear.weight)
        nn.init.normal_(gate.linear.bias)
    x = torch.randn(2, 6, 3, 5, 4)
    with torch.no_grad():
        expected = []
        for branch, gate in zip(plain(x).split((3, 4, 5, 2), dim=1), gates(gated), strict=True):
            weight = 1 / (1 + torch.exp(-(branch.mean(dim=(2, 3, 4)) @ gate.linear.weight.t() + gate.linear.bias)))
            expected.append(torch.einsum("ncthw,nc->ncthw", branch, weight))
        assert torch.allclose(gated(x), torch.cat(expected, dim=1), atol=1e-6)


def test_open_gates_are_none_and_gates_start_half_open() -> None:
    gated, plain = small().eval(), small(gating=False).eval()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gate" not in name})
    for gate in gates(gated):
        assert torch.sigmoid(gate.linear(torch.ones(1, gate.linear.in_features))).sub(0.5).abs().max() < 0.1
        nn.init.constant_(gate.linear.bias, 60.0)
    with torch.no_grad():
        assert torch.allclose(gated(clips()), plain(clips()), atol=1e-6)


@pytest.mark.parametrize(("frames", "height", "width"), [(6, 17, 17), (7, 40, 23), (16, 33, 17)])
def test_any_clip_that_fits_goes_in_and_has_a_gradient(frames: int, height: int, width: int) -> None:
    network = small()
    x = clips(2, frames, height, width)
    features = network(x)
    tokens = network.tokens(x)
    assert tokens.shape == (2, max(1, -(-frames // 4) // 2) * (-(-height // 16) // 2) * (-(-width // 16) // 2), 128)
    assert torch.allclose(tokens.mean(dim=1), features, atol=1e-5) and network.num_features == 128
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["s3d", "s3dg"])
def test_a_clip_that_does_not_fit_is_one_line(name: str) -> None:
    said = f"backbone {name} takes clips of 6 frames of 17 x 17 pixels or more, not"
    for frames, size in ((5, 224), (8, 16)):
        with torch.device("meta"), pytest.raises(ConfigError, match=f"{said} {frames} frames of {size} x {size}"):
            build_backbone(name, {}, num_frames=frames, size=size)
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{said} 6 frames of 17 x 12") as caught:
        build_backbone(name, {})(torch.zeros(1, 3, 6, 17, 12))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_every_weight(method: str) -> None:
    options = {"hidden": 16, "out": 8, **({"queue": 16, "fill_first": False} if method == "moco" else {})}
    trained = build_method(method, options, small(width=4))
    forward_backward(trained, clips(8, 6, 17, 17).unflatten(0, (4, 2)), step=9)
    for name, p in trained.backbone.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_the_layout_changes_nothing() -> None:
    plain = small().eval()
    other = to_channels_last(copy.deepcopy(plain))
    x = clips().to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert torch.allclose(other(x), plain(clips()), atol=1e-5)


def test_bf16_leaves_only_rounding() -> None:
    network = small(width=16).eval()
    with torch.no_grad():
        expected = network(clips())
        with torch.autocast("cpu", torch.bfloat16):
            found = network(clips())
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02


def test_operations_are_counted_on_shapes_alone() -> None:
    """Gates cost what their matrices do: 2 c^2 operations per clip."""
    told = []
    for name in ("s3d", "s3dg"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network = build_backbone(name, {})
            network(torch.empty(1, 3, 16, 224, 224))
        told.append(counter.get_total_flops())
    assert told[1] - told[0] == sum(2 * gate.linear.in_features**2 for gate in gates(network))
    assert told[0] / 2e9 == pytest.approx(17.979, abs=0.002)  # as torchvision publishes, without its classifier
