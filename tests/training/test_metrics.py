"""The table of metrics: it holds what runs log, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import METHODS, build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.metrics import LINE_KINDS, METRICS
from rhofast.training.trainer import train
from tests.helpers.metrics import find_metric
from tests.helpers.shards import TINY_PAGE


@pytest.fixture
def lines(shards: ShardSet, tmp_path: Path) -> list[dict[str, Any]]:
    """The lines of a run of BYOL, on one process and no GPU."""
    torch.set_num_threads(1)
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_PAGE)
    sets = {"out": tmp_path, "data.train": shards.root, "data.test": shards.root, "train.knn_steps": 2}
    outcome = train(load_config(config, [f"{key}={value}" for key, value in sets.items()]))
    return read_metrics(RunFolder(outcome.run).metrics)


def test_every_number_of_a_run_is_in_the_table_and_the_other_way_round(lines: list[dict[str, Any]]) -> None:
    logged = set()
    for line in lines:
        assert line["kind"] in LINE_KINDS
        if line["kind"] in ("step", "knn"):
            prefix = "knn_" if line["kind"] == "knn" else ""
            names = [name if name == "step" else f"{prefix}{name}" for name in line if name != "kind"]
            metrics = {name: find_metric(name) for name in names}
            assert all(metrics.values()), [name for name, metric in metrics.items() if metric is None]
            logged |= {metric.name for metric in metrics.values() if metric is not None}
    missing = {name for name, metric in METRICS.items() if not metric.only} - logged
    if torch.cuda.is_available():
        missing |= {"device_memory_bytes", "torch_memory_bytes"} - logged
    assert not missing


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_every_method_is_in_the_table(name: str) -> None:
    method = build_method(name, {"hidden": 8, "out": 4}, build_backbone("slow_r18", {"width": 4}))
    method.begin_step(TrainingProgress(step=0, epoch=0.0, epochs=1.0))
    _, logged = method(torch.zeros(2, 2, 3, 2, 16, 16), 0)
    assert "feature_std" in logged and logged.keys() <= METRICS.keys()


def test_every_metric_says_what_high_and_low_mean_in_sentences() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name and metric.label
        for sentence in (metric.meaning, metric.high, metric.low):
            assert sentence[0].isupper() and sentence.endswith("."), name
    assert all(sentence.endswith(".") for sentence in LINE_KINDS.values())


def test_a_number_of_a_user_s_own_method_is_not_in_the_table() -> None:
    assert find_metric("prototype_entropy") is None
    assert find_metric("loss_pass12") is METRICS["loss_pass{n}"]
