"""Numbers about a run as it runs: how long the trainer waited for data, how fast it is, and a file that keeps them.

`data_wait` is the time the training thread is blocked in `next(loader)`. Its share of the step is the one number that
says whether the accelerator starves: near 0 the loader keeps up; above a few percent, look at the loader's stages.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What happened since the last window, on this rank. seconds: its length; wait_s: of that, blocked on the loader;
    steps and clips: done in it."""

    seconds: float
    wait_s: float
    steps: int
    clips: int

    @property
    def data_wait_share(self) -> float:
        """Share of the time spent waiting for data, in [0, 1]."""
        return self.wait_s / self.seconds if self.seconds > 0 else 0.0

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds if self.seconds > 0 else 0.0


class StepClock:
    """Counts the steps of one rank between two calls of `window`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new window and forget the old one (after an evaluation or a checkpoint)."""
        self._began, self._wait_s, self._steps, self._clips = time.perf_counter(), 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around `next(loader)`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait_s += time.perf_counter() - began

    def step(self, clips: int) -> None:
        """One step with so many clips on this rank is over."""
        self._steps += 1
        self._clips += clips

    def window(self) -> Window:
        """Close the window and begin the next."""
        now = time.perf_counter()
        window = Window(seconds=now - self._began, wait_s=self._wait_s, steps=self._steps, clips=self._clips)
        self.restart()
        return window


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, appended and flushed, so that a killed run loses no finished line.
    Values that are not finite become null (JSON has no NaN)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: str, **values: Any) -> None:
        line = {"kind": kind, **{key: _plain(value) for key, value in values.items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
