"""A weight format is one row of a table: a family that is not built in is imported, exported and evaluated by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rhofast.checkpoint.backbone_file import load_backbone
from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.checkpoint.export import export_checkpoint, import_weights
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import BACKBONES, build_backbone
from rhofast.models.methods import build_method
from rhofast.models.weight_conversion import Computed, KeyTable, WeightFormat, fill_backbone, is_state
from rhofast.models.weight_file import WeightFile
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
    part=lambda content: "toy" if is_state(content.get("toy")) else None,
    keys_in=toy_keys,
    expected_input=lambda name, file: {"size": 16, "num_frames": 3, "mean": [0.5] * 3, "std": [0.25] * 3},
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
    content["teacher"] = {"layer/w": torch.zeros(1)}
    torch.save(content, tmp_path / "toy.pth")

    done = import_weights(tmp_path / "toy.pth", tmp_path / "b.safetensors", backbone="toy")
    assert (done.entries.matched, done.entries.dropped) == (["layer/w", "layer/b"], ["head/w", "teacher.*"])
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
        format_for(WeightFile(path=tmp_path / "x", content={}), "own")


def test_a_file_that_no_format_recognizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not a PySlowFast checkpoint or .* or a torchvision state dict or a toy"):
        backbone_in(WeightFile(path=Path("x.pth"), content={"lr": 0.1}))
    named_by_config = WeightFile(path=Path("x.pyth"), content={"model_state": {}})
    assert backbone_in(named_by_config) is None


def test_entries_that_are_computed_are_accounted_for_and_checked() -> None:
    """Rows of two entries are joined to one; a bias that the other network lacks keeps its initial values."""
    rows = Computed(names=("upper", "lower"), compute=lambda upper, lower: torch.cat((upper, lower)))
    table = KeyTable(
        names={},
        computed={"linear.weight": rows, "linear.bias": Computed(names=(), compute=torch.empty)},
        is_other=lambda key: False,
        hint="a toy",
    )
    halves = {"upper": torch.ones(1, 3), "lower": torch.zeros(3, 3)}
    network = Toy()
    bias = network.linear.bias.detach().clone()
    done = fill_backbone(network, halves, table)
    assert (done.matched, done.dropped, done.missing) == (["upper", "lower"], [], ["linear.bias"])
    assert torch.equal(network.linear.weight, torch.cat((halves["upper"], halves["lower"])))
    assert torch.equal(network.linear.bias, bias)
    for state, said in (
        ({"upper": torch.ones(1, 3)}, "1 missing: lower"),
        ({**halves, "lower": torch.zeros(2, 3)}, r"upper \[1, 3\], lower \[2, 3\], here \[4, 3\]"),
        ({**halves, "lower": torch.zeros(3, 2)}, r"1 of another shape: upper \[1, 3\], lower \[3, 2\]"),
        ({**halves, "lower": torch.zeros(3, 3, dtype=torch.int64)}, "1 of another type: lower has values of type int"),
        ({**halves, "lower": torch.full((3, 3), torch.inf)}, "not finite: lower"),
        ({**halves, "middle": torch.zeros(3, 3)}, "1 not known: middle"),
    ):
        with pytest.raises(ConfigError, match=said):
            fill_backbone(network, state, table)
