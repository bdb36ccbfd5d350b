"""The page about a run, from whatever the run left."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rhofast.config import Config, TrainSection, dump_config
from rhofast.errors import ConfigError
from rhofast.report import read_metrics, write_report


def step(number: int, **more: Any) -> dict[str, Any]:
    line = {"kind": "step", "step": number, "epoch": number / 10, "loss": -0.1 * number, "lr": 0.1 / number}
    rates = {"clips_per_second": 100.0 + number, "data_wait_share": 0.01, "bad_samples": 2, "feature_std": 0.7}
    return {**line, **rates, "ema_momentum": 0.99, "grad_norm": None, **more}


START = {
    "kind": "start",
    "time": "2026-01-01T00:00:00+00:00",
    "step": 0,
    "world_size": 2,
    "device": "a <b> device",
    "parameters": 1_500_000,
    "samples": 1000,
    "versions": {"torch": "2.x"},
}
KNN = {
    "trained": {"top1": 0.75, "top5": 1.0, "samples": 40, "per_class": {}, "confusion": [[15, 5], [5, 15]]},
    "untrained": {"top1": 0.5, "top5": 1.0, "samples": 40, "per_class": {}, "confusion": [[10, 10], [10, 10]]},
    "chance": 0.5,
    "classes": ["left", "right & up"],
}


def make_run(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dump_config(Config(name="x", train=TrainSection(steps=9)))))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def test_a_whole_run_has_numbers_plots_and_pictures(tmp_path: Path) -> None:
    lines = [START, {"kind": "knn", "step": 0, "top1": 0.5, "top5": 1.0, "samples": 40}, step(1), step(2)]
    run = make_run(tmp_path / "run", lines)
    (run / "knn.json").write_text(json.dumps(KNN))
    Image.new("RGB", (8, 8)).save(run / "clips.png")
    page = write_report(run).read_text()
    for text in ("75.0% / 100.0%", "50.0% / 100.0%", "-0.2000", "waiting for data, median", "1.50 M parameters"):
        assert text in page, text
    assert page.count("<img") == 8
    assert "a &lt;b&gt; device" in page and "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", [START])).read_text()
    assert "No step yet" in page and "<img" not in page
    page = write_report(make_run(tmp_path / "two", [START, step(1)])).read_text()
    assert "kNN top-1" not in page and page.count("<img") == 5


def test_the_later_line_of_a_step_counts_and_a_cut_line_is_ignored(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [START, step(1), step(2, loss=-9.0), START, step(2, loss=-1.5)], tail='{"kind": "st'
    )
    assert len(read_metrics(run / "metrics.jsonl")) == 5
    page = write_report(run).read_text()
    assert "-1.5000" in page and "-9.0000" not in page and "resumed 1 times" in page


def test_a_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    assert "not finite" in write_report(make_run(tmp_path / "run", [START, step(1), step(2, loss=None)])).read_text()


def test_a_folder_that_is_no_run_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)
