"""Clocks and the metrics file."""

import json
import time
from pathlib import Path

from rhofast.telemetry import MetricsFile, StepClock


def test_waiting_is_told_apart_from_working() -> None:
    clock = StepClock()
    for _ in range(2):
        with clock.waiting():
            time.sleep(0.02)
        time.sleep(0.02)
        clock.step(8)
    window = clock.window()
    assert (window.steps, window.clips) == (2, 16)
    assert 0.04 <= window.wait_s <= window.seconds - 0.04
    assert window.data_wait_share == window.wait_s / window.seconds
    assert window.clips_per_second == 16 / window.seconds
    assert clock.window().clips == 0


def test_every_line_is_json_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write("step", step=1, loss=float("nan"))
    metrics.write("knn", step=2, top1=0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "step", "step": 1, "loss": None}, {"kind": "knn", "step": 2, "top1": 0.5}]
