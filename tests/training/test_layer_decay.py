"""Layer-wise decay of the rate: the published formula, and parameter groups that hold every parameter once."""

from typing import Any

import pytest
import torch
from torch import nn

from rhofast.config.schema import OptimConfig
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.training.layer_decay import layer_scales
from rhofast.training.optim import build_optimizer, learning_rate, set_learning_rate

DEPTH = 4
TINY_VIT = {"width": 24, "depth": DEPTH, "heads": 2, "patch": 8}


def published(name: str, decay: float) -> float:
    """Return the share that BEiT's and VideoMAE's code gives a parameter of a ViT with `DEPTH` blocks."""
    layers = DEPTH + 2
    if name.startswith(("patch_embed", "cls_token", "pos_embed")):
        layer = 0
    elif name.startswith("blocks."):
        layer = int(name.split(".")[1]) + 1
    else:
        layer = layers - 1
    return decay ** (layers - 1 - layer)


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "position": "learned"}, {"norm": "pooled"}])
def test_a_vit_has_the_published_rates(options: dict[str, Any]) -> None:
    backbone = build_backbone("vit", {**TINY_VIT, **options})
    scales = layer_scales(backbone, 0.75, "vit")
    for name, p in backbone.named_parameters():
        assert scales.get(id(p), 1.0) == pytest.approx(published(name, 0.75), rel=1e-12), name


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [("slow_r18", {"width": 4}, 1 + 8), ("slow_r50", {"width": 4}, 1 + 16), ("s3dg", {"width": 8}, 3 + 9)],
)
def test_layers_of_other_networks_hold_every_parameter_in_the_order_of_the_data(
    name: str, options: dict[str, Any], layers: int
) -> None:
    backbone = build_backbone(name, options)
    scales = layer_scales(backbone, 0.5, name)
    found = [scales[id(p)] for p in backbone.parameters()]
    assert sorted(set(found)) == [0.5 ** (layers - number) for number in range(layers)]
    if name != "s3dg":  # whose modules are not all declared in the order of the data
        assert found == sorted(found)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_groups_hold_every_parameter_once_with_its_rate_and_decay(optimizer: str) -> None:
    backbone = build_backbone("vit", TINY_VIT)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(24, 3)})
    section = OptimConfig(name=optimizer, base_lr=0.1, base_batch=8, weight_decay=0.05, warmup_epochs=0)  # type: ignore[arg-type]
    built = build_optimizer(model, section, layer_scales(backbone, 0.75, "vit"))
    set_learning_rate(built, learning_rate(section, 16, 0, 10))
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [id(p) for group in built.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(names)
    for group in built.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            share = 1.0 if name.startswith("head") else published(name.removeprefix("backbone."), 0.75)
            assert group["lr"] == pytest.approx(0.2 * share, rel=1e-12)
            plain = name.startswith("backbone") and p.ndim == 1
            assert group["weight_decay"] == (0.0 if plain else 0.05), name


def test_a_decay_of_1_changes_nothing() -> None:
    backbone = build_backbone("vit", TINY_VIT)
    assert layer_scales(backbone, 1.0, "vit") == {}
    assert len(build_optimizer(backbone, OptimConfig(name="adamw"), {}).param_groups) == 2


def test_steps_with_a_decay_move_layers_by_their_share() -> None:
    backbone = build_backbone("vit", TINY_VIT)
    before = [p.detach().clone() for p in backbone.parameters()]
    section = OptimConfig(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.0)
    scales = layer_scales(backbone, 0.5, "vit")
    built = build_optimizer(backbone, section, scales)
    for p in backbone.parameters():
        p.grad = torch.ones_like(p)
    set_learning_rate(built, 0.5)
    built.step()
    for p, old in zip(backbone.parameters(), before, strict=True):
        assert torch.allclose(old - p, torch.full_like(p, 0.5 * scales.get(id(p), 1.0)), atol=1e-6)


class Nameless(nn.Module):
    """A network whose layers are not what they should be."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.first, self._layers = nn.Linear(2, 2), layers

    def layers(self) -> Any:
        return self._layers


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(2, 2), r"optim\.layer_decay=0\.5: backbone\.name=mine does not say what its layers are"),
        (Nameless(["first"]), r"backbone\.name=mine: layers\(\) must return a list of lists of names"),
        (Nameless(7), r"must return a list of lists"),
        (Nameless([["first"], ["firs"]]), r"layers\(\) names 'firs', of which there are no parameters"),
    ],
)
def test_a_network_without_layers_is_refused_in_one_line(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_scales(network, 0.5, "mine")


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_a_decay_outside_its_interval_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"optim: layer_decay="):
        parse_section(OptimConfig, {"layer_decay": value}, "optim")


def test_the_cosine_ends_at_the_final_rate() -> None:
    section = OptimConfig(base_lr=1e-3, base_batch=256, final_lr=1e-5, warmup_epochs=0)
    assert learning_rate(section, 512, 0, 90) == pytest.approx(2e-3)
    assert learning_rate(section, 512, 45, 90) == pytest.approx(1e-3 + 1e-5)
    assert learning_rate(section, 512, 90, 90) == pytest.approx(2e-5)
    with pytest.raises(ConfigError, match=r"optim\.final_lr=0\.1 requires"):
        parse_section(OptimConfig, {"final_lr": 0.1, "schedule": "steps", "decay_epochs": [3]}, "optim")
