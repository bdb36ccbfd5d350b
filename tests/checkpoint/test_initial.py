"""What a run begins with: random weights, or those of a file that holds the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.checkpoint.backbone_file import save_backbone
from rhofast.checkpoint.initial import initial_backbone, initial_notes
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone

SHAPE: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "patch": 4}
MEAN = [0.485, 0.456, 0.406]


def config(path: Path | None, **backbone: Any) -> Config:
    values: dict[str, Any] = {"name": "x", "backbone": {"name": "vit", **SHAPE, **backbone}}
    values |= {"clips": {"num_frames": 4}, "augment": {"size": 16}, "train": {"steps": 1}}
    if path is not None:
        values["train"]["init_from"] = str(path)
    return parse_config(values, where="test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    card = {"origin": "somewhere", "input": {"mean": MEAN, "std": [0.225] * 3}}
    options = {**SHAPE, "keep": 0.5}
    save_backbone(build_backbone("vit", options), tmp_path / "b.safetensors", name="vit", options=options, card=card)
    return tmp_path / "b.safetensors"


def test_a_run_begins_with_the_weights_of_the_file_and_the_heads_that_it_has_without(file: Path) -> None:
    random, drawn = untrained_backbone(config(None)), torch.rand(1)
    begun, same = initial_backbone(config(file, drop_path=0.1)), torch.rand(1)
    assert torch.equal(drawn, same)
    torch.manual_seed(3)
    stored = build_backbone("vit", SHAPE).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in begun.state_dict().items())
    assert not torch.equal(random.state_dict()["patch_embed.proj.weight"], stored["patch_embed.proj.weight"])
    assert begun.training and begun.blocks[-1].drop_path == 0.1  # type: ignore[index, union-attr]
    assert begun.options.keep == 1.0  # type: ignore[union-attr]
    first, second = initial_notes(config(file))
    assert first == f"the backbone begins with {file}: somewhere"
    assert f"trained with augment.mean={MEAN} (here [0.45, 0.45, 0.45])" in second


def test_without_a_file_weights_are_random() -> None:
    plain = untrained_backbone(config(None)).state_dict()
    begun = initial_backbone(config(None)).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in begun.items()) and initial_notes(config(None)) == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"position": "sincos3d"}, r"backbone\.position=sincos3d: train\.init_from=\S+ holds backbone\.position=sinc"),
        ({"heads": 4}, r"backbone\.heads=4: train\.init_from=\S+ holds backbone\.heads=2 .its options of .*heads=2"),
        ({"pool": "cls"}, r"backbone\.pool=cls, backbone\.class_token=True: .* holds backbone\.pool=mean"),
        ({"depth": 3}, r"backbone\.depth=3: "),
    ],
)
def test_another_network_is_one_line_though_its_shapes_may_fit(file: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        initial_backbone(config(file, **options))
    assert "\n" not in str(caught.value)


def test_another_backbone_and_other_files_are_one_line(file: Path, tmp_path: Path) -> None:
    other = parse_config(
        {"name": "x", "backbone": {"name": "slow_r18", "width": 2}, "train": {"steps": 1, "init_from": str(file)}},
        where="test",
    )
    with pytest.raises(ConfigError, match=r"backbone\.name=slow_r18: .* holds backbone\.name=vit"):
        initial_backbone(other)
    with pytest.raises(ConfigError, match="cannot be read"):
        initial_backbone(config(tmp_path / "gone.safetensors"))


def test_sizes_and_their_numbers_are_the_same(tmp_path: Path) -> None:
    with torch.device("meta"):
        named = build_backbone("vit", {"size": "s"})
        numbers = build_backbone("vit", {"width": 384, "depth": 12, "heads": 6, "class_token": False})
    from rhofast.checkpoint.initial import _meaning

    assert _meaning("vit", named, {}) == _meaning("vit", numbers, {})
