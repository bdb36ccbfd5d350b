"""Weights that leave and come back are the same, and what is not taken over is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import video

import rhofast
from rhofast.checkpoint.backbone_file import load_backbone, save_backbone
from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.checkpoint.export import export_checkpoint, import_weights
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ResumeError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, slow_keys
from rhofast.models.methods import build_method
from rhofast.models.weight_conversion import Imported, fill_backbone
from rhofast.models.weight_formats.pyslowfast import pyslowfast_keys, pyslowfast_state
from tests.helpers.reference import needs_vectors, tensors

SMALL = {"width": 4}
CLIP = torch.zeros(1, 3, 2, 32, 32)
CFG = """DATA:
  INPUT_CHANNEL_NUM: [3]
  MEAN:
  - 0.45
  - 0.4
  - 0.35
  NUM_FRAMES: 16
  SAMPLING_RATE: 4
  STD: [0.2, 0.3, 0.4]
  TARGET_FPS: 30
  TRAIN_CROP_SIZE: 224
MODEL:
  ARCH: slow
"""


def slow(name: str = "slow_r50", **options: Any) -> Slow:
    backbone = build_backbone(name, {**SMALL, **options}).eval()
    assert isinstance(backbone, Slow)
    for key, value in backbone.state_dict().items():  # counters and statistics that are not the initial ones
        value.add_(3 if key.endswith("tracked") else 0.25)
    return backbone


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(value, theirs[key]) for key, value in mine.items())


def pretrained(backbone: Slow) -> dict[str, Tensor]:
    """An official BYOL or MoCo `model_state` around a trunk."""
    trunk = pyslowfast_state(backbone)
    other = {f"backbone_hist.{key}": value + 1 for key, value in trunk.items()}
    heads = [
        *("backbone.head.projection.projection.0.weight", "backbone.head.predictors.0.projection.0.weight"),
        *("backbone_hist.head.projection.projection.0.weight", "queue_x", "ptr", "iter", "swav_prototypes.weight"),
        "knn_mem.memory",
    ]
    return {f"backbone.{key}": value for key, value in trunk.items()} | other | {key: torch.zeros(1) for key in heads}


def classified(backbone: Slow) -> dict[str, Tensor]:
    """An official classifier's `model_state` around a trunk."""
    return pyslowfast_state(backbone) | {"head.projection.weight": torch.zeros(1), "head.projection.bias": CLIP}


def save(state: dict[str, Tensor], path: Path, **more: object) -> Path:
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {}, "cfg": CFG, **more}, path)
    return path


def read_official(backbone: Slow, state: dict[str, Tensor]) -> Imported:
    return fill_backbone(backbone, state, pyslowfast_keys("slow_r50", backbone, state))


def run_of(config: dict[str, Any], **more: Any) -> Checkpoint:
    """A checkpoint of a method that has taken no step."""
    parsed: Config = parse_config({"name": "run", **config}, where="test")
    backbone = build_backbone(parsed.backbone.name, parsed.backbone.options)
    method = build_method(parsed.method.name, parsed.method.options, backbone)
    state = {"epoch": 5, "digest": "abc", **more}
    return Checkpoint(step=40, config=parsed, loader=state, method=method.state_dict(), optimizer={})


BYOL = {"backbone": {"name": "slow_r50", **SMALL}, "method": {"name": "byol", "hidden": 8, "out": 4}}


@pytest.mark.parametrize("name", ["slow_r18", "slow_r18_reference", "slow_r50", "slow_r101"])
def test_the_key_table_names_every_entry_once(name: str) -> None:
    backbone = slow(name)
    assert sorted(slow_keys(backbone).values()) == sorted(backbone.state_dict())


def test_the_trunk_of_r50_has_the_official_number_of_keys() -> None:
    assert len(slow_keys(slow())) == 318


@pytest.mark.parametrize("wrapped", ["", "module."])
@pytest.mark.parametrize("kind", [pretrained, classified])
@pytest.mark.parametrize("name", ["slow_r18_reference", "slow_r50", "slow_r101"])
def test_weights_come_through_an_official_checkpoint(name: str, kind: Any, wrapped: str, tmp_path: Path) -> None:
    source = slow(name)
    state = {wrapped + key: value for key, value in kind(source).items()}
    done = import_weights(save(state, tmp_path / "x.pyth"), tmp_path / "x.safetensors", backbone=name, options=SMALL)
    loaded = load_backbone(done.target)
    assert same_weights(source, loaded)
    assert len(done.entries.matched) == len(source.state_dict()) and done.entries.missing == []
    assert sorted(done.entries.matched + done.entries.dropped) == sorted(state)
    assert not [key for key in done.entries.dropped if re.match(r"(module\.)?(backbone\.)?s\d\.", key)]


@needs_vectors
@pytest.mark.parametrize(("method", "entries"), [("moco", 652), ("byol", 672), ("simclr", 325), ("swav", 334)])
def test_what_the_official_methods_save_is_told_apart(method: str, entries: int, tmp_path: Path) -> None:
    state = tensors(f"{method}_state_before", torch.float32)
    done = import_weights(save(state, tmp_path / "x.pyth"), tmp_path / "b", backbone="slow_r50", options=SMALL)
    assert len(done.entries.matched) == 318 and done.entries.missing == []
    assert len(done.entries.dropped) == len(state) - 318 == entries - 318
    loaded = load_backbone(done.target)
    assert torch.equal(loaded.get_parameter("stem.weight"), state["backbone.s1.pathway0_stem.conv.weight"])
    expected = {"num_frames": 16, "frame_stride": 4, "fps": 30, "size": 224, "mean": [0.45, 0.4, 0.35]}
    assert {key: loaded.card["input"][key] for key in expected} == expected


def test_weights_go_out_as_official_ones_and_come_back_to_the_bit(tmp_path: Path) -> None:
    saved = run_of({**BYOL, "clips": {"num_frames": 16, "frame_stride": 4}})
    out = export_checkpoint(saved, tmp_path / "x.pyth", format="pyslowfast")
    whole = torch.load(tmp_path / "x.pyth", weights_only=True)
    assert set(whole) == {"model_state", "cfg", "epoch"} and whole["epoch"] == 5
    assert re.search(r"^  NUM_BLOCK_TEMP_KERNEL: \[\[3\], \[4\], \[6\], \[3\]\]$", whole["cfg"], re.MULTILINE)
    assert "  WIDTH_PER_GROUP: 4\n  TRANS_FUNC: bottleneck_transform" in whole["cfg"]
    back = import_weights(out.target, tmp_path / "back.safetensors", backbone="slow_r50", options=SMALL)
    weights = load_file(back.target)
    for key, value in weights.items():
        assert torch.equal(value, saved.method[f"backbone.{key}"])
    assert out.entries.matched == [f"backbone.{key}" for key in load_backbone(back.target).state_dict()]
    assert sorted(out.entries.matched + out.entries.dropped) == sorted(saved.method) and out.entries.dropped
    expected = {"num_frames": 16, "frame_stride": 4, "fps": 30.0, "size": 224}
    assert {key: back.card["input"][key] for key in expected} == expected


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 34},
        {"temporal_kernels": [3, 3, 3, 3]},
        {"block": "basic"},
    ],
)
def test_a_network_that_the_official_code_cannot_build_does_not_go_there(
    options: dict[str, Any], tmp_path: Path
) -> None:
    saved = run_of({**BYOL, "backbone": {"name": "slow_r50", **SMALL, **options}})
    with pytest.raises(ConfigError, match=r"PySlowFast cannot build .*--format safetensors"):
        export_checkpoint(saved, tmp_path / "x.pyth", format="pyslowfast")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_torchvision_does_not_go_there_either(tmp_path: Path) -> None:
    saved = run_of({"backbone": {"name": "mc3_18"}, "method": {"name": "simclr", "hidden": 8, "out": 4}})
    with pytest.raises(ConfigError, match=r"=mc3_18 cannot be written as a PySlowFast .*--format safetensors"):
        export_checkpoint(saved, tmp_path / "x.pyth", format="pyslowfast")


def test_counters_of_batches_may_be_missing_and_are_said() -> None:
    state = {key: value for key, value in classified(slow()).items() if not key.endswith("num_batches_tracked")}
    imported = read_official(slow(), state)
    assert len(imported.missing) == 53 and all(key.endswith("num_batches_tracked") for key in imported.missing)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"s5.pathway0_res2.branch2.c.weight": None}, "1 missing: s5.pathway0_res2.branch2.c.weight"),
        ({"s1.pathway0_stem.conv.weight": CLIP}, r"1 of another shape: s1.pathway0_stem.conv.weight \[1, 3, 2, 32, 32"),
        ({"s1.pathway1_stem.conv.weight": CLIP}, "1 not known: s1.pathway1_stem.conv.weight"),
        ({"s4.pathway0_res6.branch2.a.weight": CLIP}, r"1 not known.* \[3, 4, 7, 3\] bottleneck blocks, width 4"),
    ],
)
def test_another_trunk_is_refused_and_the_backbone_left_as_it_was(change: dict[str, Any], said: str) -> None:
    state = {key: value for key, value in {**classified(slow()), **change}.items() if value is not None}
    backbone = slow()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ConfigError, match=said):
        read_official(backbone, state)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (("slow_r101", {}), "slow_r50", r"not known.*\[3, 4, 23, 3\] bottleneck blocks \(depth 101\), width 4"),
        (("slow_r50", {}), "slow_r101", r"missing.*\[3, 4, 6, 3\] bottleneck blocks \(depth 50\)"),
        (("slow_r50", {"width": 8}), "slow_r50", r"of another shape: backbone\.s1\.pathway0_stem\.conv.*width 8"),
        (("slow_r101", {"temporal_blocks": [3, 4, 23, 3]}), "slow_r101", "17 of another shape"),
        (("slow_r18_reference", {}), "slow_r18", r"of another shape.*\[2, 2, 2, 2\] basic blocks \(depth 18\)"),
    ],
)
def test_a_checkpoint_of_another_network_is_described(
    theirs: tuple[str, dict[str, Any]], ours: str, said: str, tmp_path: Path
) -> None:
    source = save(pretrained(slow(theirs[0], **theirs[1])), tmp_path / "x.pyth")
    with pytest.raises(ConfigError, match=said):
        import_weights(source, tmp_path / "x.safetensors", backbone=ours, options=SMALL)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pyth").write_text("hello")
    (tmp_path / "empty.pyth").write_bytes(b"")
    torch.save({"state": {}, "lr": 1.0}, tmp_path / "other.pyth")
    torch.save([1], tmp_path / "list.pyth")
    torch.save({"model_state": {"s1.x": 3}}, tmp_path / "numbers.pyth")
    torch.save({"fc.weight": CLIP}, tmp_path / "state.pyth")
    save({"fc.weight": CLIP}, tmp_path / "head.pyth")
    for name, said in {
        "text": "cannot be read as a checkpoint of torch",
        "empty": "cannot be read as a checkpoint of torch",
        "absent": "No such file",
        "other": "not a PySlowFast checkpoint, which backbone 'slow_r50' needs .it holds state, lr",
        "list": "holds a list, not a checkpoint",
        "numbers": "not a PySlowFast checkpoint.*it holds model_state",
        "state": "not a PySlowFast checkpoint.*it holds fc.weight",
        "head": "no entry of the file belongs to this backbone .it must be a checkpoint of PySlowFast's slow pathway",
    }.items():
        with pytest.raises(ConfigError, match=said):
            import_weights(tmp_path / f"{name}.pyth", tmp_path / "out", backbone="slow_r50", options=SMALL)
        assert not (tmp_path / "out").exists()


def test_code_that_is_pickled_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "boom",)

    torch.save({"model_state": {}, "x": Bomb()}, tmp_path / "x.pyth")
    with pytest.raises(ConfigError, match=r"refused: .*would have to run \(.*save only its tensors"):
        import_weights(tmp_path / "x.pyth", tmp_path / "out", backbone="slow_r50")
    assert not (tmp_path / "boom").exists()


def test_torchvision_weights_come_in_as_torchvision_saves_them(tmp_path: Path) -> None:
    official = video.r3d_18(weights=None).eval()
    torch.save(official.state_dict(), tmp_path / "r3d_18.pth")
    done = import_weights(tmp_path / "r3d_18.pth", tmp_path / "b.safetensors", backbone="r3d_18")
    assert done.entries.dropped == ["fc.weight", "fc.bias"] and done.entries.missing == []
    loaded = load_backbone(done.target)
    assert same_weights(loaded, build_and_load("r3d_18", official))
    assert loaded.card["input"]["size"] == 112 and loaded.card["input"]["mean"] == [0.43216, 0.394666, 0.37645]
    with pytest.raises(ConfigError, match=r"of another shape: layer2\.0\.conv1.* .the backbone is said to be mc3_18"):
        import_weights(tmp_path / "r3d_18.pth", tmp_path / "c.safetensors", backbone="mc3_18")
    save(pretrained(slow()), tmp_path / "x.pyth")
    with pytest.raises(ConfigError, match=r"which backbone 'r3d_18' needs .it is a PySlowFast checkpoint"):
        import_weights(tmp_path / "x.pyth", tmp_path / "c.safetensors", backbone="r3d_18")
    torch.save({"epoch": 3}, tmp_path / "y.pth")
    with pytest.raises(ConfigError, match=r"not a torchvision state dict.*it holds epoch"):
        import_weights(tmp_path / "y.pth", tmp_path / "c.safetensors", backbone="r3d_18")


def build_and_load(name: str, official: nn.Module) -> nn.Module:
    backbone = build_backbone(name, {})
    backbone.load_state_dict(official.state_dict(), strict=False)
    return backbone


def test_a_run_is_opened_in_one_line_without_its_config(shards: ShardSet, tmp_path: Path) -> None:
    values = {
        **BYOL,
        "data": {"train": str(shards.root)},
        "clips": {"num_frames": 4, "frame_stride": 2, "fps": 12},
        "augment": {"size": 32, "mean": [0.5, 0.5, 0.5]},
    }
    saved = run_of(values, digest=shards.info.digest)
    lines = [
        {"kind": "knn", "step": 20, "top1": 0.1, "top5": 0.2, "samples": 9},
        {"kind": "knn", "step": 40, "top1": 0.3, "top5": 0.4, "samples": 9},
        {"kind": "step", "step": 40, "loss": 1.0},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kind": "st'  # as a killed run leaves it
    (tmp_path / "metrics.jsonl").write_text(text)
    done = export_checkpoint(saved, tmp_path / "b.safetensors", format="safetensors", run=tmp_path)
    loaded = rhofast.load_backbone(tmp_path / "b.safetensors")
    assert not loaded.training and loaded.num_features == 128 and loaded.card == done.card
    assert loaded.card["origin"] == "rhofast run run, step 40"
    assert loaded.card["metrics"] == {"knn_top1": 0.3, "knn_top5": 0.4, "knn_samples": 9}
    assert loaded.card["training"]["data"] == {"name": "tiny", "digest": shards.info.digest}
    assert loaded.card["training"]["method"] == {"name": "byol", "hidden": 8, "out": 4}
    assert loaded.card["input"]["text"] == (
        "[N, 3, 4, 32, 32] float32, RGB in [0, 1] minus [0.5, 0.5, 0.5], divided by [0.225, 0.225, 0.225], "
        "2 frames apart at 12 frames per second"
    )
    fresh = slow()
    fresh.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in saved.method.items() if k.startswith("backbone.")}
    )
    with torch.no_grad():
        assert torch.equal(loaded(CLIP), fresh(CLIP))


def test_data_that_moved_or_changed_has_no_name(shards: ShardSet, tmp_path: Path) -> None:
    for train, digest in ((shards.root, "another"), (tmp_path / "gone", shards.info.digest)):
        saved = run_of({**BYOL, "data": {"train": str(train)}}, digest=digest)
        card = export_checkpoint(saved, tmp_path / "b.safetensors", format="safetensors").card
        assert card["training"]["data"] == {"name": None, "digest": digest} and card["metrics"] == {}


def test_a_checkpoint_whose_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    saved = run_of(BYOL)
    del saved.method["backbone.stem.weight"]
    with pytest.raises(ResumeError, match=r"do not fit backbone.name=slow_r50.*stem\.weight"):
        export_checkpoint(saved, tmp_path / "b.safetensors", format="safetensors")


@pytest.mark.parametrize(("target", "said"), [("", "a folder"), ("no/b.safetensors", "there is no folder")])
def test_a_target_that_cannot_be_written_is_said_first(target: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        export_checkpoint(run_of(BYOL), tmp_path / target, format="safetensors")
    with pytest.raises(ConfigError, match=said):
        import_weights(tmp_path / "absent", tmp_path / target, backbone="slow_r50")


def test_a_file_without_a_card_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    notes = {"version": 99, "backbone": {"name": "slow_r50"}, "card": {}}
    save_file({"x": torch.zeros(1)}, tmp_path / "later.safetensors", metadata={"rhofast": json.dumps(notes)})
    save_backbone(nn.Linear(1, 1), tmp_path / "other.safetensors", name="slow_r50", options=SMALL, card={})
    for name, said in {
        "plain": "not a backbone",
        "text": "cannot be read",
        "absent": "cannot be read",
        "later": "export version 99",
        "other": "do not fit backbone.name=slow_r50",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load_backbone(tmp_path / f"{name}.safetensors")
