"""Numbers about a run as it runs: how long the trainer waited for data, what the time of a step goes to, when something
looks wrong, and a file that keeps it all.

`data_wait` is the time the training thread is blocked in `next(loader)`. Its share of the step is the one number that
says whether the accelerator starves: near 0 the loader keeps up; above a few percent, look at the loader's stages.
What it is not: it knows neither the trainer nor the loader (logbook.py brings them together).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

STAGES = ("data", "forward", "backward", "optimizer", "other")
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


class StepClock:
    """Counts the steps of one rank between two calls of `window`, and the time of each of the `STAGES`.

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
        self._seconds = dict.fromkeys(STAGES, 0.0)

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


class Alarm:
    """Tells that a value has stayed below a level. Once, until the value has been above it again.

    level: below it a value is low; windows: as many in a row. Values that are not finite are not looked at.
    """

    def __init__(self, level: float, windows: int) -> None:
        self._level, self._windows, self._low = level, windows, 0

    def see(self, value: float) -> bool:
        """Whether this value is the one to tell of."""
        if not math.isfinite(value):
            return False
        self._low = self._low + 1 if value < self._level else 0
        return self._low == self._windows


def resident_bytes() -> int:
    """Bytes of memory that this process holds; where the system does not tell, the most that it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize()


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, appended and flushed, so that a killed run loses no finished line.
    Values that are not finite become null (JSON has no NaN). A line that was cut short, by a full disk or a killed
    process, is left alone: the next one begins on a line of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = False  # whether the file is known to end with a line's end

    def write(self, kind: str, **values: Any) -> None:
        """Raises OSError."""
        line = json.dumps({"kind": kind, **{key: _plain(value) for key, value in values.items()}}) + "\n"
        begins, self._whole = self._whole or self._ends_whole(), False
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line if begins else "\n" + line)
        self._whole = True

    def _ends_whole(self) -> bool:
        if not self._path.is_file() or self._path.stat().st_size == 0:
            return True
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, or none where it is missing; what was cut short or is damaged is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Of what a run depends on."""
    return {name: _version(name) for name in ("rhofast", "torch", "accelerate", "nvidia-dali")}


def _version(package: str) -> str:
    names = [package] if package != "nvidia-dali" else ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"
