"""A run in a terminal, and in a log."""

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from rhofast.cli.live_view import TrainingView, sparkline

START = {"kind": "start", "step": 0, "steps": 100, "decoders": ["h264 is decoded on the host: [why]"]}
STEP: dict[str, Any] = {
    "kind": "step",
    "step": 50,
    "steps": 100,
    "epoch": 2.5,
    "loss": 1.5,
    "lr": 0.1,
    "grad_norm": 2.0,
    "clips_per_second": 1234.0,
    "step_seconds": 2.0,
    "data_wait_share": 0.011,
    "readiness": 0.989,
    "data_seconds": 0.02,
    "forward_seconds": 0.8,
    "backward_seconds": 1.0,
    "optimizer_seconds": 0.1,
    "other_seconds": 0.08,
    "memory_bytes": 3_200_000_000,
    "bad_samples": 0,
    "feature_std": 0.75,
}


def view_of(*lines: dict[str, Any], terminal: bool) -> str:
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, width=120, color_system=None, _environ={})
    with TrainingView(console) as view:
        for line in lines:
            view.on_log(line)
    return sink.getvalue()


def test_a_terminal_shows_how_far_how_fast_and_how_well() -> None:
    shown = view_of(
        START, STEP, {"kind": "knn", "step": 50, "steps": 100, "top1": 0.421}, {**STEP, "step": 60}, terminal=True
    )
    for text in ("50 of 100 steps, epoch 2.50, about 0:01:40 left", "60 of 100 steps", "loss 1.5", "1,234 clips/s"):
        assert text in shown, text
    for text in (
        "step 2,000 ms: data 1%, forward 40%",
        "data wait 1.1%",
        "readiness 98.9%",
        "kNN top-1 42.1%",
        "memory 3.2 GB",
    ):
        assert text in shown, text
    assert "bad samples" not in shown and "device" not in shown


def test_a_log_gets_what_must_not_be_missed_and_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    remarks = [
        {"kind": kind, "step": 50, "steps": 100, "text": f"{kind} [of] it"} for kind in ("warning", "advice", "note")
    ]
    seconds = iter([0.0, 0.0, 59.0, 60.0, 60.0, 61.0, 61.0])  # a look at each window, and one when it is told
    monkeypatch.setattr("rhofast.cli.live_view.time.monotonic", lambda: next(seconds))
    shown = view_of(
        START,
        *({**STEP, "step": step} for step in (1, 60, 61, 62)),
        {"kind": "checkpoint", "step": 62, "steps": 100},
        *remarks,
        {"kind": "knn", "step": 100, "steps": 100, "top1": 0.421},
        {**STEP, "step": 100, "loss": math.nan, "bad_samples": 3},
        terminal=False,
    )
    assert shown.splitlines() == [
        START["decoders"][0],  # type: ignore[index]
        "step 1 of 100: loss 1.5, 1,234 clips/s, data wait 1.1%, about 0:03:18 left",
        "step 61 of 100: loss 1.5, 1,234 clips/s, data wait 1.1%, about 0:01:18 left",
        *(f"step 50: {kind}: {kind} [of] it" for kind in ("warning", "advice", "note")),
        "step 100 of 100: kNN 42.1%",
        "step 100 of 100: loss not finite, 1,234 clips/s, data wait 1.1%, 3 bad samples",
    ]


def test_a_number_that_is_not_finite_is_no_obstacle() -> None:
    shown = view_of({**STEP, "loss": None, "grad_norm": None, "feature_std": None}, terminal=True)
    assert "spread" not in shown and "loss" in shown


def test_nothing_is_drawn_for_a_process_that_gets_no_lines() -> None:
    assert view_of(terminal=True) == ""


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 5, ""),
        ([1.0, 1.0], 5, "▁▁"),
        ([0.0, 1.0, 2.0, 7.0], 5, "▁▂▃█"),
        ([0.0, 0.0, 7.0, 7.0], 2, "▁█"),
        ([0.0, None, float("nan"), 7.0], 4, "▁  █"),
    ],
)
def test_a_curve_of_characters(values: list[float | None], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn
    assert re.fullmatch(r"[▁-█ ]*", drawn)
