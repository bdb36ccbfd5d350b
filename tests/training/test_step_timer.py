"""The step timer, the alarm and the metrics file."""

import json
import mmap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rhofast.checkpoint.run_lines import read_metrics
from rhofast.training.environment import resident_bytes
from rhofast.training.low_value_alarm import LowValueAlarm
from rhofast.training.metrics import STEP_PHASES
from rhofast.training.metrics_file import MetricsFile
from rhofast.training.step_timer import StepTimer, Window


def test_waiting_is_told_apart_from_working() -> None:
    timer = StepTimer()
    for _ in range(2):
        with timer.waiting():
            time.sleep(0.02)
        time.sleep(0.02)
        timer.step(8)
    window = timer.window()
    assert (window.steps, window.clips) == (2, 16)
    assert 0.04 <= window.blocked_s <= window.seconds - 0.04
    assert window.host_blocked_share == window.blocked_s / window.seconds
    assert window.data_wait_share == pytest.approx(window.host_blocked_share, abs=1e-3)
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
    assert window.phases["data"] == pytest.approx(window.blocked_s, abs=1e-3)
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


class Timeline:
    """A host and a device whose times the test writes, in seconds: events lie in a stream, work is queued on it."""

    def __init__(self) -> None:
        self.host = 0.0
        self.device = 0.0  # when what is queued will be done

    def queue(self, seconds: float) -> None:
        self.device = max(self.device, self.host) + seconds

    def event(self, *, enable_timing: bool) -> Any:
        mark = SimpleNamespace(at=0.0)

        def record() -> None:
            self.device = max(self.device, self.host)
            mark.at = self.device

        mark.record = record
        mark.query = lambda: mark.at <= self.host
        mark.elapsed_time = lambda later: 1000 * (later.at - mark.at)
        return mark


def run_of_steps(
    timeline: Timeline, timer: StepTimer, period: float, *, step: float = 0.2, launch: float = 0.06
) -> Window:
    """Steps whose batches come every `period` seconds; the host launches ahead and stays one step before the device."""
    ready = before_last = last = 0.0
    for number in range(200):
        ready = max(ready, timeline.host if number == 0 else ready) + (period if number else 0.0)
        with timer.waiting():
            timeline.host = max(timeline.host, ready)
        timer.enter("forward")
        timeline.queue(step)
        timeline.host += launch
        timer.step(64)
        before_last, last = last, timeline.device
        timeline.host = max(timeline.host, before_last)  # the consensus about the step before
    timeline.host = max(timeline.host, timeline.device)
    return timer.window()


@pytest.mark.parametrize(
    ("period", "idle", "blocked"),
    [(0.1, 0.0, 0.0), (0.199, 0.0, 0.0), (0.201, 0.005, 0.6), (0.25, 0.2, 0.7), (0.3, 0.333, 0.75)],
)
def test_on_a_device_waiting_is_the_device_s_and_not_the_host_s(
    period: float, idle: float, blocked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = Timeline()
    monkeypatch.setattr(torch.cuda, "Event", timeline.event)
    monkeypatch.setattr("rhofast.training.step_timer.time.perf_counter", lambda: timeline.host)
    window = run_of_steps(timeline, StepTimer(torch.device("cuda")), period)
    assert window.data_wait_share == pytest.approx(idle, abs=0.01)
    assert window.host_blocked_share >= blocked


def test_a_host_that_waits_while_the_device_is_behind_starves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline()
    monkeypatch.setattr(torch.cuda, "Event", timeline.event)
    monkeypatch.setattr("rhofast.training.step_timer.time.perf_counter", lambda: timeline.host)
    timer = StepTimer(torch.device("cuda"))
    timer.enter("forward")
    timeline.queue(0.031)
    with timer.waiting():
        timeline.host += 0.020
    timer.enter("forward")
    timeline.queue(0.010)
    timer.step(8)
    timeline.host = timeline.device
    window = timer.window()
    assert window.host_blocked_share == pytest.approx(20 / 41) and window.data_wait_share == 0


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
    assert [line["step"] for line in read_metrics(path) if line["kind"] == "step"] == [1, 2, 3]
