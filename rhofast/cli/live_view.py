"""A run as it goes, in a terminal: progress, the loss as a curve, speed, waits. Where there is no terminal, a line a
minute, and what must not be missed: who decodes, accuracy, warnings, advice."""

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

from rhofast.training.metrics import METRICS, STEP_PHASES

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 28  # of the bar and of the curve
_PAUSE_S = 1.0  # between two drawings, which take milliseconds of the training thread
_LINE_S = 60.0  # between two lines in a log, but for the first and the last


class TrainingView:
    """What `train` calls with each line of metrics (`on_log`). A context manager; nothing is drawn before a line comes,
    so the processes of other ranks leave the terminal alone."""

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
        kind = line["kind"]
        if kind == "start":
            for sentence in line["decoders"]:
                self._say(sentence)
        elif "text" in line and kind != "error":  # a warning, advice, a note; of an error, the end of the program tells
            self._say(f"step {line['step']}: {kind}: {line['text']}", "bold red" if kind == "warning" else "yellow")
        elif kind == "knn":
            self._accuracy = line["top1"]
            if self._live is None:
                self._say(f"step {line['step']:,} of {line['steps']:,}: kNN {line['top1']:.1%}")
        elif kind == "step":
            self._step = line
            self._losses.append(line["loss"])
            last = line["step"] == line["steps"]
            if self._live is None and (last or time.monotonic() >= self._drawn + _LINE_S):
                self._say(_one_line(line))
                self._drawn = time.monotonic()
        if self._live is not None and self._step and time.monotonic() >= self._drawn + _PAUSE_S:
            if not self._live.is_started:
                self._live.start()
            self._live.update(self._draw(), refresh=True)
            self._drawn = time.monotonic()

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(Text(text, style or ""), soft_wrap=True)  # a style of the line's own: not the live view's

    def _draw(self) -> RenderableType:
        line = self._step
        done, total, seconds = line["step"], line["steps"], line["step_seconds"]
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=total, completed=done, width=_WIDTH),
            f"{done:,} of {total:,} steps, epoch {line['epoch']:.2f}, about {_left(line)} left",
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
        told = "   ".join(f"{METRICS[name].label} {value}" for name, value in facts.items() if value is not None)
        speed = f"{line['clips_per_second']:,.0f} {METRICS['clips_per_second'].unit}"
        speed = f"{speed}   step {1000 * seconds:,.0f} ms: {shares}"
        return Group(head, Text(speed), Text(told))


def _one_line(line: dict[str, Any]) -> str:
    """A window in a log."""
    facts = [
        f"loss {_number(line['loss'])}",
        f"{line['clips_per_second']:,.0f} {METRICS['clips_per_second'].unit}",
        f"{METRICS['data_wait_share'].label} {line['data_wait_share']:.1%}",
    ]
    if line["bad_samples"]:
        facts.append(f"{line['bad_samples']:,} bad samples")
    if line["step"] < line["steps"]:
        facts.append(f"about {_left(line)} left")
    return f"step {line['step']:,} of {line['steps']:,}: {', '.join(facts)}"


def _left(line: dict[str, Any]) -> timedelta:
    """Until the last step, at the pace of this window."""
    return timedelta(seconds=round((line["steps"] - line["step"]) * line["step_seconds"]))


def sparkline(values: Sequence[float | None], width: int) -> str:
    """A curve of at most `width` characters; each stands for as many values, by their mean. A gap where none is
    finite."""
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
