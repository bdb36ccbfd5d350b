"""Weights and runs of strangers cannot ask for more than they hold, and are not converted in silence."""

import json
import os
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rhofast.checkpoint.backbone import backbone_of
from rhofast.checkpoint.backbone_file import load_backbone, save_backbone
from rhofast.checkpoint.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from rhofast.checkpoint.export import export_checkpoint
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError, NotFiniteError, ResumeError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_file import read_weights

OPTIONS = {"width": 2}


def config(width: int = 2) -> Config:
    return parse_config(
        {"name": "run", "train": {"steps": 9}, "backbone": {"name": "slow_r18", "width": width}}, where="test"
    )


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_backbone("slow_r18", OPTIONS).state_dict())


def export(path: Path, weights: dict[str, torch.Tensor] | None = None, **notes: Any) -> Path:
    content = {"version": 1, "backbone": {"name": "slow_r18", **OPTIONS}, "card": {}, **notes}
    save_file(weights or state(), path, metadata={"rhofast": json.dumps(content)})
    return path


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("width", [3, 30_000, 10**9, 2**62])
def test_a_width_that_the_file_does_not_fill_costs_no_memory(tmp_path: Path, width: int) -> None:
    before = peak_bytes()
    path = export(tmp_path / "wide.safetensors", backbone={"name": "slow_r18", "width": width})
    with pytest.raises(
        ConfigError, match=r"wide\.safetensors: its weights do not fit backbone\.name=slow_r18: "
    ) as caught:
        load_backbone(path)
    assert "\n" not in str(caught.value) and peak_bytes() < before + (200 << 20)


@pytest.mark.parametrize("width", [3, 30_000, 10**9])
def test_nor_does_that_of_a_checkpoint(width: int) -> None:
    weights = {f"backbone.{name}": value for name, value in state().items()}
    saved = Checkpoint(step=1, config=config(width), loader={}, method=weights, optimizer={})
    before = peak_bytes()
    with pytest.raises(ResumeError, match=r"here: its weights do not fit backbone\.name=slow_r18"):
        backbone_of(saved, "here")
    assert peak_bytes() < before + (200 << 20)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"size": 10**9}, r"card\.input\.size=1000000000"),
        ({"size": 4096, "num_frames": 4096}, "more than 67108864 pixels"),
        ({"num_frames": -1}, r"card\.input\.num_frames=-1"),
        ({"fps": "30"}, r"card\.input\.fps='30'"),
        ({"mean": [0.5]}, r"card\.input\.mean"),
        ({"std": [0.0, 1.0, 1.0]}, r"card\.input\.std\.0=0"),
        ({"sise": 8}, r"unknown key card\.input\.sise"),
    ],
)
def test_an_absurd_input_is_refused_by_its_field(tmp_path: Path, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_backbone(export(tmp_path / "x.safetensors", card={"input": inputs}))


def test_a_card_may_say_little(tmp_path: Path) -> None:
    model = open_model(export(tmp_path / "x.safetensors"), overrides=["augment.size=16"])
    assert model.origin == "unknown origin" and model.config.augment.size == 16


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float16, torch.float64])
def test_other_types_of_numbers_are_not_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = state()
    weights["stem.weight"] = weights["stem.weight"].to(dtype)
    with pytest.raises(ConfigError, match=r"x\.safetensors: "):
        load_backbone(export(tmp_path / "x.safetensors", weights))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_nor_are_those_of_other_programs(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(
        {"model_state": {"s1.pathway0_stem.conv.weight": torch.zeros(2, 3, 1, 7, 7).to(dtype)}}, tmp_path / "x.pyth"
    )
    with pytest.raises(ConfigError, match=r"1 of another type: s1.* has values of type (int8|complex64), here float32"):
        open_model(tmp_path / "x.pyth", overrides=["backbone.name=slow_r18", "backbone.width=2"])


def test_weights_that_are_not_finite_are_not_exported_and_not_loaded(tmp_path: Path) -> None:
    weights = state()
    weights["stem.weight"][0, 0, 0, 0, 0] = torch.nan
    method = {f"backbone.{name}": value for name, value in weights.items()}
    saved = Checkpoint(step=1, config=config(), loader={}, method=method, optimizer={})
    for format in ("safetensors", "pyslowfast"):
        with pytest.raises(NotFiniteError, match=r"not finite: stem\.weight"):
            export_checkpoint(saved, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"not finite: stem\.weight"):
        load_backbone(export(tmp_path / "x.safetensors", weights))


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "method.safetensors", "optimizer.safetensors"])
def test_a_fifo_in_a_checkpoint_is_no_wait(tmp_path: Path, name: str) -> None:
    saved = Checkpoint(step=1, config=config(), loader={}, method=state(), optimizer={"state": {}, "param_groups": []})
    folder = save_checkpoint(tmp_path, saved, keep=1)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ResumeError, match=name.partition(".")[0]):
        load_checkpoint(folder, check=False) if name != "manifest.json" else load_checkpoint(folder)


def test_fifos_and_folders_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").mkdir()
    for name, said in (("x", "cannot be read"), ("y", r"the folder has no model\.safetensors")):
        with pytest.raises(ConfigError, match=said):
            load_backbone(tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_weights(tmp_path / "x.safetensors")


def test_a_header_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)  # takes no space
    with pytest.raises(ConfigError, match="its header would have 8589934592 bytes"):
        load_backbone(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint of torch"):
        read_weights(path)


class Large:
    """Pickles as a call that allocates what it is told."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 40,)


def test_a_pickle_that_allocates_by_a_number_is_refused(tmp_path: Path) -> None:
    torch.save({"model_state": {}, "x": Large()}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"would have to run \(\w+\.bytearray\)"):
        read_weights(tmp_path / "x.pth")


def test_a_name_in_a_run_folder_that_is_no_step_is_passed_over(tmp_path: Path) -> None:
    saved = Checkpoint(step=1, config=config(), loader={}, method=state(), optimizer={"state": {}, "param_groups": []})
    folder = save_checkpoint(tmp_path, saved, keep=1)
    (folder.parent / "step-abc").mkdir()
    RunFolder(tmp_path).latest.unlink()
    os.mkfifo(RunFolder(tmp_path).latest)
    assert latest_checkpoint(tmp_path) == folder


def test_what_save_backbone_writes_is_loaded_to_the_bit(tmp_path: Path) -> None:
    backbone = build_backbone("slow_r18", OPTIONS)
    save_backbone(backbone, tmp_path / "x.safetensors", name="slow_r18", options=OPTIONS, card={"origin": "here"})
    loaded = load_backbone(tmp_path / "x.safetensors")
    assert loaded.card == {"origin": "here"}
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("data", "threads"),
        ("data", "decode_threads"),
        ("data", "prefetch"),
        ("data", "downloads"),
        ("clips", "num_clips"),
        ("clips", "num_frames"),
        ("clips", "frame_stride"),
        ("augment", "size"),
        ("train", "batch_size"),
        ("eval", "batch_size"),
        ("eval", "views"),
        ("eval", "test_views"),
        ("eval", "test_size"),
    ],
)
def test_no_number_of_a_config_asks_for_more_than_a_machine_has(section: str, key: str) -> None:
    values: dict[str, Any] = {"name": "run", "train": {"steps": 9}}
    values[section] = {**values.get(section, {}), key: 2_000_000_000}
    with pytest.raises(ConfigError, match=rf"{section}\.{key}") as caught:
        parse_config(values, where="config.json")
    assert "\n" not in str(caught.value)
