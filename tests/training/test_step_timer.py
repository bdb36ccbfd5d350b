"""The step timer, the alarm and the metrics file."""

import json
import mmap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rhofast.training.environment import resident_bytes
from rhofast.training.logger import LowValueAlarm
from rhofast.training.metrics import STEP_PHASES
from rhofast.training.metrics_file import MetricsFile, read_metrics
from rhofast.training.step_timer import StepTimer


def test_waiting_is_told_apart_from_working() -> None:
    timer = StepTimer()
    for _ in range(2):
        with timer.waiting():
            time.sleep(0.02)
        time.sleep(0.02)
        timer.step(8)
    window = timer.window()
    assert (window.steps, window.clips) == (2, 16)
    assert 0.04 <= window.wait_s <= window.seconds - 0.04
    assert window.data_wait_share == window.wait_s / window.seconds
    assert window.clips_per_second == 16 / window.seconds
    assert window.step_seconds == window.seconds / 2
    assert timer.window().clips == 0


def test_every_moment_belongs_to_one_phase() -> None:
    timer = StepTimer()
    with timer.waiting():
        time.sleep(0.01)
    for _ in range(2):
        timer.enter("forward")
        time.sleep(0.01)
        timer.enter("backward")
        time.sleep(0.02)
    timer.enter("optimizer")
    time.sleep(0.005)
    timer.step(8)
    window = timer.window()
    assert tuple(window.phases) == STEP_PHASES
    assert window.phases["data"] == pytest.approx(window.wait_s, abs=1e-3)
    at_least = {"data": 0.01, "forward": 0.02, "backward": 0.04, "optimizer": 0.005, "other": 0.0}
    assert all(window.phases[name] >= seconds for name, seconds in at_least.items())
    assert sum(window.phases.values()) == pytest.approx(window.seconds, abs=1e-3)
    assert sum(timer.window().phases.values()) < 1e-3


class Device:
    """A stream that reaches a mark when the test says so."""

    def __init__(self) -> None:
        self.queued_at = 0.0  # ms, on the device's own timer
        self.passed = 0.0
        self.waits = 0

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        mark = SimpleNamespace(at=0.0)
        mark.record = lambda: setattr(mark, "at", self.queued_at)
        mark.query = lambda: mark.at <= self.passed
        mark.elapsed_time = lambda later: later.at - mark.at
        return mark


def test_on_a_device_phases_end_when_it_gets_there_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    timer = StepTimer(torch.device("cuda"))
    for _ in range(2):
        with timer.waiting():
            device.queued_at += 1
        timer.enter("forward")
        device.queued_at += 10
        timer.enter("backward")
        device.queued_at += 20
        timer.step(4)
    device.passed = 31  # the first step, and no more
    first = timer.window()
    assert {name: round(1000 * seconds) for name, seconds in first.phases.items()} == {
        **dict.fromkeys(STEP_PHASES, 0),
        "data": 1,
        "forward": 10,
        "backward": 20,
    }
    assert first.steps == 2
    device.passed = 62
    assert timer.window().phases["forward"] == pytest.approx(0.010)


@pytest.mark.needs_gpu
def test_a_device_s_phases_are_its_own_time() -> None:
    device = torch.device("cuda")
    square = torch.rand(4096, 4096, device=device)
    for _ in range(3):
        square @ square
    torch.cuda.synchronize()
    timer = StepTimer(device)
    timer.enter("forward")
    began = time.perf_counter()
    for _ in range(50):
        square @ square
    timer.step(1)
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    seen = timer.window().phases["forward"]
    assert queued < seen <= seconds * 1.05


def test_an_alarm_rings_once_and_again_after_it_was_over() -> None:
    alarm = LowValueAlarm(0.1, 3)
    values = [0.05, 0.05, 0.5, 0.05, 0.05, float("nan"), 0.05, 0.01, 0.1, 0.0, 0.0, 0.0]
    assert [alarm.update(value) for value in values] == [False] * 6 + [True] + [False] * 4 + [True]


def test_memory_that_is_taken_is_seen() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 2**26) as taken:  # pages that no allocator had before
        taken.write(b"x" * 2**26)
        assert 50e6 < resident_bytes() - before < 500e6


def test_every_line_is_json_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write("step", step=1, loss=float("nan"))
    metrics.write("knn", step=2, top1=0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "step", "step": 1, "loss": None}, {"kind": "knn", "step": 2, "top1": 0.5}]
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_line_that_was_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n7\n\0\xff\x99\n{"kind": "st')
    metrics = MetricsFile(path)
    for step in (2, 3):
        metrics.write("step", step=step)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
