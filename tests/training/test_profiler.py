"""Which steps are traced, and which threads."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from rhofast.training.profiler import StepProfiler


def marks(path: Path) -> list[dict[str, Any]]:
    events = json.loads(path.read_text())["traceEvents"]
    return sorted((event for event in events if event.get("cat") == "user_annotation"), key=lambda event: event["ts"])


def run_steps(trace: StepProfiler, count: int) -> list[bool]:
    written = []
    for step in range(1, count + 1):
        trace.before(step)
        trace.enter("data")
        trace.enter("forward")
        torch.ones(8).sum()
        trace.enter("backward")
        written.append(trace.after(step))
    return written


def test_the_chosen_steps_and_their_phases_are_traced(tmp_path: Path) -> None:
    path, going = tmp_path / "trace.json", threading.Event()

    def work() -> None:
        while not going.wait(0.001):
            with record_function("loader: read"):
                torch.ones(8).sum()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert run_steps(StepProfiler(2, 3, path), 5) == [False, False, True, False, False]
    finally:
        going.set()
        thread.join()
    found = marks(path)
    own = [event["name"] for event in found if event["name"] != "loader: read"]
    assert own == ["step 2", "data", "forward", "backward", "step 3", "data", "forward", "backward"]
    by_name = {event["name"]: event for event in found}
    outer, inner = by_name["step 3"], by_name["forward"]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_a_run_that_ends_within_leaves_what_there_is(tmp_path: Path) -> None:
    trace = StepProfiler(2, 9, tmp_path / "trace.json")
    assert not any(run_steps(trace, 3))
    trace.close()
    assert [event["name"] for event in marks(tmp_path / "trace.json")].count("forward") == 2
    trace.close()


@pytest.mark.parametrize("steps", [0, 1])
def test_nothing_is_written_where_no_chosen_step_came(steps: int, tmp_path: Path) -> None:
    trace = StepProfiler(2, 3, tmp_path / "trace.json")
    run_steps(trace, steps)
    trace.close()
    assert not list(tmp_path.iterdir())
