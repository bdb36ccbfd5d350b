"""Show a run while it trains: progress, a curve of the loss, speed and waits.

Outside a terminal it prints one line per minute, and every note, warning and accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rhofast.display.text import LINE, printable
from rhofast.training.metrics import METRICS, STEP_PHASES

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 28  # characters of the bar and of the curve
_PAUSE_S = 1.0  # seconds between two drawings, which take milliseconds of the training thread
_LINE_S = 60.0  # seconds between two lines in a log; the first and the last step always have one


class TrainingView:
    """The view of a run, as a context manager; `on_log` is the callback of `train`.

    Nothing is drawn before the first line arrives, so processes of other ranks, which get none, draw nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._losses: list[float | None] = []
        self._step: dict[str, Any] = {}
        self._accuracy: float | None = None
        self._drawn = -math.inf

    def __enter__(self) -> TrainingView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None and self._live.is_started:
            self._live.update(self._draw())
            self._live.stop()  # draws it

    def on_log(self, line: dict[str, Any]) -> None:
        """Take a line of metrics, and draw if it is time to."""
        kind = line["kind"]
        if kind == "start":
            if "keep" in line:
                self._print(f"training on {line['keep']}")
            for sentence in (*line.get("remote", ()), *line["decoders"]):
                self._print(sentence)
        elif "text" in line and kind != "error":  # not an error: the program ends with it
            self._print(f"step {line['step']}: {kind}: {line['text']}", "bold red" if kind == "warning" else "yellow")
        elif kind == "knn":
            self._accuracy = line["top1"]
            if self._live is None:
                self._print(f"step {line['step']:,} of {line['steps']:,}: kNN {line['top1']:.1%}")
        elif kind == "step":
            self._step = line
            self._losses.append(line["loss"])
            last = line["step"] == line["steps"]
            if self._live is None and (last or time.monotonic() >= self._drawn + _LINE_S):
                self._print(_one_line(line))
                self._drawn = time.monotonic()
        if self._live is not None and self._step and time.monotonic() >= self._drawn + _PAUSE_S:
            if not self._live.is_started:
                self._live.start()
            self._live.update(self._draw(), refresh=True)
            self._drawn = time.monotonic()

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(
            Text(printable(text, LINE), style or ""), soft_wrap=True
        )  # or the line would take the style of the live view

    def _draw(self) -> RenderableType:
        line = self._step
        done, total, seconds = line["step"], line["steps"], line["step_seconds"]
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=total, completed=done, width=_WIDTH),
            f"{done:,} of {total:,} steps, epoch {line['epoch']:.2f}, about {_time_left(line)} left",
        )
        head.add_row(sparkline(self._losses, _WIDTH), f"loss {_number(line['loss'])}")
        shares = ", ".join(f"{name} {line[f'{name}_seconds'] / max(seconds, 1e-9):.0%}" for name in STEP_PHASES)
        facts = {
            "data_wait_share": f"{line['data_wait_share']:.1%}",
            "readiness": f"{line['readiness']:.1%}",
            "lr": _number(line["lr"]),
            "grad_norm": _number(line["grad_norm"]),
            "feature_std": _number(line.get("feature_std")),
            "knn_top1": None if self._accuracy is None else f"{self._accuracy:.1%}",
            "memory_bytes": f"{line['memory_bytes'] / 1e9:.1f} GB",
            "device_memory_bytes": f"{line['device_memory_bytes'] / 1e9:.1f} GB"
            if "device_memory_bytes" in line
            else None,
            "bad_samples": f"{line['bad_samples']:,}" if line["bad_samples"] else None,
        }
        text = "   ".join(f"{METRICS[name].label} {value}" for name, value in facts.items() if value is not None)
        speed = f"{line['clips_per_second']:,.0f} {METRICS['clips_per_second'].unit}"
        speed = f"{speed}   step {1000 * seconds:,.0f} ms: {shares}"
        return Group(head, Text(speed), Text(text))


def _one_line(line: dict[str, Any]) -> str:
    """Return a window of steps as one line of a log."""
    facts = [
        f"loss {_number(line['loss'])}",
        f"{line['clips_per_second']:,.0f} {METRICS['clips_per_second'].unit}",
        f"{METRICS['data_wait_share'].label} {line['data_wait_share']:.1%}",
    ]
    if line["bad_samples"]:
        facts.append(f"{line['bad_samples']:,} bad samples")
    if line["step"] < line["steps"]:
        facts.append(f"about {_time_left(line)} left")
    return f"step {line['step']:,} of {line['steps']:,}: {', '.join(facts)}"


def _time_left(line: dict[str, Any]) -> timedelta:
    """Return the time until the last step, at the pace of this window."""
    return timedelta(seconds=round((line["steps"] - line["step"]) * line["step_seconds"]))


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return a curve of characters.

    Args:
        values: The values in order; None or not finite: a gap.
        width: Number of characters at most; each is the mean of equally many values.
    """
    count = min(width, len(values))
    means = []
    for number in range(count):
        part = values[number * len(values) // count : (number + 1) * len(values) // count]
        known = [value for value in part if value is not None and math.isfinite(value)]
        means.append(sum(known) / len(known) if known else None)
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    steps = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if mean is None else _BLOCKS[round((mean - low) * steps)] for mean in means)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}" if math.isfinite(value) else "not finite"
