"""Weights that leave and come back are the same, and what is not taken over is said."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rhofast.backbones import build_backbone
from rhofast.backbones.slow import Slow
from rhofast.errors import ConfigError
from rhofast.export import (
    export_backbone,
    export_pyslowfast,
    import_pyslowfast,
    load_backbone,
    read_pyslowfast,
    slow_keys,
)

SMALL = {"width": 4}
CLIP = torch.zeros(1, 3, 2, 32, 32)


def slow(name: str = "slow_r50") -> Slow:
    backbone = build_backbone(name, SMALL).eval()
    assert isinstance(backbone, Slow)
    return backbone


@pytest.mark.parametrize("name", ["slow_r18", "slow_r18_reference", "slow_r50", "slow_r101"])
def test_the_key_table_names_every_entry_once(name: str) -> None:
    backbone = slow(name)
    assert sorted(slow_keys(backbone).values()) == sorted(backbone.state_dict())


def test_the_trunk_of_r50_has_the_official_number_of_keys() -> None:
    assert len(slow_keys(slow())) == 318


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_come_back_through_an_official_checkpoint(prefix: str, tmp_path: Path) -> None:
    source, target = slow(), slow()
    state = {f"{prefix}{key}": value for key, value in export_pyslowfast(source).items()}
    extra = (
        {"head.projection.weight": torch.zeros(2, 2)}
        if not prefix
        else {"queue_x": torch.zeros(2), "ptr": torch.zeros(1)}
    )
    torch.save({"epoch": 3, "model_state": {**state, **extra}, "cfg": "A: 1"}, tmp_path / "x.pyth")
    imported = import_pyslowfast(target, read_pyslowfast(tmp_path / "x.pyth"))
    assert imported.missing == [] and imported.dropped == list(extra) and len(imported.matched) == len(state)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_what_is_missing_is_said_and_a_wrong_shape_refused() -> None:
    state = export_pyslowfast(slow())
    del state["s5.pathway0_res2.branch2.c.weight"]
    assert import_pyslowfast(slow(), state).missing == ["s5.pathway0_res2.branch2.c.weight"]
    state["s1.pathway0_stem.conv.weight"] = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"s1\.pathway0_stem\.conv\.weight has shape \[3\]"):
        import_pyslowfast(slow(), state)
    with pytest.raises(ConfigError, match="no entry"):
        import_pyslowfast(slow(), {"fc.weight": torch.zeros(1)})


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pyth").write_text("hello")
    torch.save({"state": {}}, tmp_path / "other.pyth")
    torch.save({"model_state": Path("x")}, tmp_path / "object.pyth")  # needs a class: nothing is executed
    for name in ("text", "other", "object", "absent"):
        with pytest.raises(ConfigError, match=name):
            read_pyslowfast(tmp_path / f"{name}.pyth")


def test_an_exported_backbone_is_rebuilt_from_its_file_alone(tmp_path: Path) -> None:
    source = slow("slow_r18")
    export_backbone(source, tmp_path / "b.safetensors", name="slow_r18", options=SMALL, card={"frames": 8})
    loaded = load_backbone(tmp_path / "b.safetensors")
    assert not loaded.training and loaded.card == {"frames": 8}
    with torch.no_grad():
        assert torch.equal(loaded(CLIP), source(CLIP))


def test_a_file_without_a_card_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, said in (("plain", "not a backbone"), ("text", "cannot be read"), ("absent", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            load_backbone(tmp_path / f"{name}.safetensors")
