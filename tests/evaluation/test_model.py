"""Options of a backbone for training are those of the training at hand, not those of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rhofast.checkpoint.checkpoint import Checkpoint, save_checkpoint
from rhofast.checkpoint.export import export_checkpoint
from rhofast.config.load import parse_config
from rhofast.errors import ConfigError
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.model import EvalModel, open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.vit import ViT
from rhofast.models.methods import build_method

SHAPE: dict[str, Any] = {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 4}
PRETRAINED = {**SHAPE, "keep": 0.25, "drop_path": 0.5, "freeze_patches": True}
PATCHES = {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def saved_run() -> Checkpoint:
    """A run on a quarter of the tokens, which has taken no step."""
    values = {"name": "x", "backbone": PRETRAINED, "method": {"name": "simclr", "hidden": 8, "out": 4}}
    values |= {"clips": {"num_frames": 4}, "augment": {"size": 16}}
    config = parse_config(values, where="test")
    backbone = build_backbone("vit", config.backbone.options)
    method = build_method("simclr", config.method.options, backbone)
    state = {"epoch": 0, "digest": "abc"}
    return Checkpoint(
        step=1, config=config, loader=state, method=method.state_dict(), optimizer={"state": {}, "param_groups": []}
    )


@pytest.fixture(params=["run", "export"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same weights as a checkpoint and as an exported file."""
    if request.param == "run":
        return save_checkpoint(tmp_path, saved_run(), keep=1)
    export_checkpoint(saved_run(), tmp_path / "x.safetensors", format="safetensors")
    return tmp_path / "x.safetensors"


def tokens_in_training(model: EvalModel, *, trained: bool) -> int:
    """The number of tokens that go through the last block in a step of training a classifier."""
    classifier = Classifier(model.backbone, 3, trained=trained, batch_stats=trained).train()
    seen: list[int] = []
    assert isinstance(model.backbone, ViT)
    last = model.backbone.blocks[-1]
    assert isinstance(last, nn.Module)
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    classifier(torch.zeros(2, 3, 4, 16, 16)).sum().backward()
    return seen[0]


@pytest.mark.parametrize("trained", [False, True])
def test_classifiers_are_trained_on_all_tokens_of_weights_that_saw_some(source: Path, trained: bool) -> None:
    model = open_model(source)
    assert isinstance(model.backbone, ViT)
    assert model.config.backbone.options == {key: value for key, value in SHAPE.items() if key != "name"}
    assert model.backbone.blocks[-1].drop_path == 0
    assert tokens_in_training(model, trained=trained) == 32
    moved = [name for name, value in model.backbone.named_parameters() if value.grad is not None]
    assert (set(moved) >= PATCHES) == trained


def test_weights_stay_the_same_whatever_the_options_for_training(source: Path) -> None:
    plain = open_model(source)
    chosen = open_model(source, overrides=["backbone.keep=0.5", "backbone.drop_path=0.1"])
    theirs = chosen.backbone.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.backbone.state_dict().items())
    assert chosen.config.backbone.options["keep"] == 0.5
    assert chosen.backbone.blocks[-1].drop_path == 0.1  # type: ignore[index, union-attr]
    x = torch.randn(2, 3, 4, 16, 16)
    with torch.inference_mode():  # evaluation sees all tokens
        assert torch.equal(plain.backbone(x), chosen.backbone(x))
    assert tokens_in_training(chosen, trained=True) == 16
    frozen = open_model(source, overrides=["backbone.freeze_patches=true"])
    assert tokens_in_training(frozen, trained=True) == 32
    assert {name for name, value in frozen.backbone.named_parameters() if value.grad is None} == PATCHES


def test_options_that_the_weights_belong_to_are_not_changed(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.patch=8: the weights belong to backbone\.patch=4"):
        open_model(source, overrides=["backbone.patch=8"])
    with pytest.raises(ConfigError, match=r"backbone: keep=2"):
        open_model(source, overrides=["backbone.keep=2.0"])
