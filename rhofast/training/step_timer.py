"""Measure where the time of training steps goes: the wait for data, and each phase of a step.

`Window.data_wait_share` says whether training starves: near 0 the loader keeps up; above a few percent, look at the
loader's stages. It is the share of the time in which the device had nothing to do because the batch was not there. On
CUDA that is read from events in the device's stream, since the host runs ahead: it may be blocked in `next(loader)`
while the device is busy (`Window.host_blocked_share`). On a CPU the two are the same.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from rhofast.training.metrics import STEP_PHASES

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What happened on this rank between two calls of `StepTimer.window`.

    Attributes:
        seconds: Length of the window, in seconds of wall time.
        blocked_s: Seconds of it in which the host was blocked in `next(loader)`.
        steps: Steps that ended in it.
        clips: Clips in these steps, on this rank.
        phases: Seconds by phase (STEP_PHASES): of the host on a CPU, of the device on CUDA, where "data" is the time
            in which the device had nothing to do because the batch was not there.
    """

    seconds: float
    blocked_s: float
    steps: int
    clips: int
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def data_wait_share(self) -> float:
        """Share of the window in which the device had nothing to do for lack of a batch, in [0, 1]."""
        return self.phases.get("data", 0.0) / self.seconds if self.seconds > 0 else 0.0

    @property
    def host_blocked_share(self) -> float:
        """Share of the window in which the host was blocked in `next(loader)`, in [0, 1]."""
        return self.blocked_s / self.seconds if self.seconds > 0 else 0.0

    @property
    def clips_per_second(self) -> float:
        """Clips per second of wall time, on this rank."""
        return self.clips / self.seconds if self.seconds > 0 else 0.0

    @property
    def step_seconds(self) -> float:
        """Mean wall time per step, in seconds."""
        return self.seconds / self.steps if self.steps else 0.0


class StepTimer:
    """Count the steps of one rank between two calls of `window`, and time each of the `STEP_PHASES`.

    On CUDA a phase ends when the device gets there, not when the host has queued it: events are recorded in the stream
    and read when they have passed. Nothing waits for the device. What has not passed when a window is closed counts in
    the next one.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a new window and forget the old one (after an evaluation or a checkpoint)."""
        self._marks: deque[tuple[str, Any]] = deque()
        self._open()
        self.enter("other")

    def enter(self, phase: str) -> None:
        """Count the time from here on for another phase."""
        if self._cuda:
            mark: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record()
            self._marks.append((phase, mark))
        else:
            self._pass(phase, time.perf_counter())

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within this context, which is around `next(loader)`, as a wait for data."""
        self.enter("data")
        began = time.perf_counter()
        try:
            yield
        finally:
            self._blocked_s += time.perf_counter() - began
            self.enter("other")

    def step(self, clips: int) -> None:
        """Count one finished step with `clips` clips on this rank."""
        self._steps += 1
        self._clips += clips
        self.enter("other")
        self._read_marks()

    def window(self) -> Window:
        """Close the window, return it and begin the next one."""
        now = time.perf_counter()
        self.enter("other")
        self._read_marks()
        window = Window(
            seconds=now - self._began,
            blocked_s=self._blocked_s,
            steps=self._steps,
            clips=self._clips,
            phases=self._seconds,
        )
        self._open()
        return window

    def _open(self) -> None:
        self._began, self._blocked_s, self._steps, self._clips = time.perf_counter(), 0.0, 0, 0
        self._seconds = dict.fromkeys(STEP_PHASES, 0.0)

    def _pass(self, phase: str, now: float) -> None:
        if self._marks:
            before, began = self._marks.pop()
            self._seconds[before] += now - began
        self._marks.append((phase, now))

    def _read_marks(self) -> None:
        """Count the time between marks that the device has passed."""
        while self._cuda and len(self._marks) > 1 and self._marks[1][1].query():
            phase, mark = self._marks.popleft()
            self._seconds[phase] += mark.elapsed_time(self._marks[0][1]) / 1000
