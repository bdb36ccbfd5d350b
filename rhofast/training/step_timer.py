"""Numbers about a run as it runs: how long the trainer waited for data, what the time of a step goes to, when something
looks wrong, and a file that keeps it all.

`data_wait` is the time the training thread is blocked in `next(loader)`. Its share of the step is the one number that
says whether the accelerator starves: near 0 the loader keeps up; above a few percent, look at the loader's stages.
What it is not: it knows neither the trainer nor the loader (logbook.py brings them together).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

STEP_PHASES = ("data", "forward", "backward", "optimizer", "other")
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What happened since the last window, on this rank. seconds: its length; wait_s: of that, blocked on the loader;
    steps and clips: done in it; stages: seconds by stage, of the host on the CPU, of the device on CUDA (where "data"
    is how long the device had nothing to do because the batch was not there)."""

    seconds: float
    wait_s: float
    steps: int
    clips: int
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def data_wait_share(self) -> float:
        """Share of the time spent waiting for data, in [0, 1]."""
        return self.wait_s / self.seconds if self.seconds > 0 else 0.0

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds if self.seconds > 0 else 0.0

    @property
    def step_seconds(self) -> float:
        """Of one step, on average."""
        return self.seconds / self.steps if self.steps else 0.0


class StepTimer:
    """Counts the steps of one rank between two calls of `window`, and the time of each of the `STEP_PHASES`.

    On CUDA a stage ends when the device gets there, not when the host has queued it: events are recorded in the stream,
    and read when they have passed. Nothing waits for the device. What has not passed when a window is closed counts in
    the next.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a new window and forget the old one (after an evaluation or a checkpoint)."""
        self._marks: deque[tuple[str, Any]] = deque()
        self._open()
        self.enter("other")

    def enter(self, stage: str) -> None:
        """From here on the time belongs to another stage."""
        if self._cuda:
            mark: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record()
            self._marks.append((stage, mark))
        else:
            self._pass(stage, time.perf_counter())

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around `next(loader)`."""
        self.enter("data")
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait_s += time.perf_counter() - began
            self.enter("other")

    def step(self, clips: int) -> None:
        """One step with so many clips on this rank is over."""
        self._steps += 1
        self._clips += clips
        self.enter("other")
        self._read_marks()

    def window(self) -> Window:
        """Close the window and begin the next."""
        now = time.perf_counter()
        self.enter("other")
        self._read_marks()
        window = Window(
            seconds=now - self._began, wait_s=self._wait_s, steps=self._steps, clips=self._clips, stages=self._seconds
        )
        self._open()
        return window

    def _open(self) -> None:
        self._began, self._wait_s, self._steps, self._clips = time.perf_counter(), 0.0, 0, 0
        self._seconds = dict.fromkeys(STEP_PHASES, 0.0)

    def _pass(self, stage: str, now: float) -> None:
        if self._marks:
            before, began = self._marks.pop()
            self._seconds[before] += now - began
        self._marks.append((stage, now))

    def _read_marks(self) -> None:
        """Count what lies between marks that the device has passed."""
        while self._cuda and len(self._marks) > 1 and self._marks[1][1].query():
            stage, mark = self._marks.popleft()
            self._seconds[stage] += mark.elapsed_time(self._marks[0][1]) / 1000
