"""What ranks open must be the same data: lists and shards on disks of their own may differ."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sources import open_shards
from rhofast.errors import ConfigError
from rhofast.models import convolution_check
from rhofast.models.convolution_check import LayerError
from rhofast.training import setup
from rhofast.training.trainer import train
from tests.helpers.shards import TINY_PAGE


def test_ranks_with_other_lists_are_refused(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for number, path in enumerate(lists):
        path.write_text(f"v0\nv1\nv2\nv{3 + number}\n")
    parts = [open_shards(shards.root, keep=path) for path in lists]
    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    config = load_config(tmp_path / "tiny.toml", [f"out={tmp_path}"])
    monkeypatch.setattr(setup, "gather_objects", lambda value: [parts[0].digest, value])
    with pytest.raises(ConfigError, match=r"data\.train: rank 1 has opened other data than rank 0 .*\(keep\)"):
        setup.build_loader(config, Accelerator(cpu=True), parts[1], None)
    setup.build_loader(config, Accelerator(cpu=True), parts[0], None).close()


def test_pretraining_has_one_rate_for_all_layers(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    config = load_config(tmp_path / "tiny.toml", [f"out={tmp_path}", "optim.layer_decay=0.75"])
    with pytest.raises(ConfigError, match=r"optim\.layer_decay=0\.75: pretraining has one rate for all layers"):
        setup.build_model(config, Accelerator(cpu=True))


def test_a_layer_that_this_processor_computes_wrong_is_mended_and_named(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = LayerError(
        name="stem", what="weight gradients", error=float("inf"), contiguous=1e-6, kernel=(1, 7, 7), map=(4, 32, 32)
    )
    monkeypatch.setattr(convolution_check, "convolution_errors", lambda *_, **__: [wrong])
    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    data = f'data.train=[{{shards="{shards.root}"}}]'
    config = load_config(tmp_path / "tiny.toml", [f"out={tmp_path}", "train.steps=2", data])
    lines: list[dict[str, Any]] = []
    assert train(config, on_log=lines.append).finished
    (warning,) = [line["text"] for line in lines if line["kind"] == "warning"]
    assert "'stem'" in warning and "contiguous format" in warning
