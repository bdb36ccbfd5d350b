"""A weight format is one row of a table: a family that is not built in is imported, exported and evaluated by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.checkpoint.export import export_checkpoint, import_weights, load_backbone
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import BACKBONES, build_backbone
from rhofast.models.methods import build_method
from rhofast.models.weight_conversion import KeyTable, WeightFormat, is_state
from rhofast.models.weight_formats import WEIGHT_FORMATS, backbone_in, format_for


class Toy(nn.Module):
    """The mean color of a clip through a linear layer: [N, 3, T, H, W] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.mean(dim=(2, 3, 4)))
        return out


def toy_keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    return KeyTable(
        names={"layer/w": "linear.weight", "layer/b": "linear.bias"},
        is_other=lambda key: key.startswith("head/"),
        hint="a toy",
    )


def write_toy(backbone: nn.Module, config: Config, epoch: int) -> dict[str, Any]:
    state = backbone.state_dict()
    return {"toy": {"layer/w": state["linear.weight"], "layer/b": state["linear.bias"]}, "epoch": epoch}


TOY = WeightFormat(
    title="toy file",
    backbones=("toy",),
    recognizes=lambda loaded: is_state(loaded.get("toy")),
    unwrap=lambda loaded: dict(loaded["toy"]),
    keys_in=toy_keys,
    expected_input=lambda name, loaded: {"size": 16, "num_frames": 3, "mean": [0.5] * 3, "std": [0.25] * 3},
    backbone_of=lambda file_name: "toy" if file_name.startswith("toy") else None,
    write=write_toy,
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHT_FORMATS, "toy", TOY)
    monkeypatch.setitem(BACKBONES, "toy", lambda options: Toy())


def toy_run() -> Checkpoint:
    config = parse_config(
        {"name": "x", "backbone": {"name": "toy"}, "method": {"name": "simclr", "hidden": 8, "out": 4}}, where="test"
    )
    method = build_method("simclr", config.method.options, build_backbone("toy", {}))
    state = {"epoch": 7, "digest": "abc"}
    return Checkpoint(step=1, config=config, loader=state, method=method.state_dict(), optimizer={})


def test_a_third_family_is_exported_imported_and_evaluated(tmp_path: Path) -> None:
    saved = toy_run()
    export_checkpoint(saved, tmp_path / "toy.pth", format="toy")
    content = torch.load(tmp_path / "toy.pth", weights_only=True)
    assert content["epoch"] == 7
    content["toy"]["head/w"] = torch.zeros(1)
    torch.save(content, tmp_path / "toy.pth")

    done = import_weights(tmp_path / "toy.pth", tmp_path / "b.safetensors", backbone="toy")
    assert (done.entries.matched, done.entries.dropped) == (["layer/w", "layer/b"], ["head/w"])
    loaded, opened = load_backbone(done.target), open_model(tmp_path / "toy.pth")
    for network in (loaded, opened.backbone):
        assert torch.equal(network.get_parameter("linear.weight"), saved.method["backbone.linear.weight"])
    assert loaded.card["input"]["num_frames"] == opened.config.clips.num_frames == 3  # type: ignore[index, union-attr]
    assert opened.origin == "toy file toy.pth"


def test_a_file_of_another_family_is_named(tmp_path: Path) -> None:
    export_checkpoint(toy_run(), tmp_path / "toy.pth", format="toy")
    with pytest.raises(ConfigError, match=r"not a PySlowFast checkpoint, .* 'slow_r50' needs .it is a toy file"):
        import_weights(tmp_path / "toy.pth", tmp_path / "b.safetensors", backbone="slow_r50")
    with pytest.raises(ConfigError, match=r"backbone\.name=toy cannot be written as a PySlowFast checkpoint"):
        export_checkpoint(toy_run(), tmp_path / "x.pyth", format="pyslowfast")
    with pytest.raises(ConfigError, match=r"not a file of a known format, which backbone 'own' needs"):
        format_for(tmp_path / "x", {}, "own")


def test_a_file_that_no_format_recognizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not a PySlowFast checkpoint or a torchvision state dict or a toy file"):
        backbone_in(Path("x.pth"), {"lr": 0.1})
    assert backbone_in(Path("x.pyth"), {"model_state": {}}) is None  # the config names it
