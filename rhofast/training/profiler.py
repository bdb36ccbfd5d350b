"""A Chrome trace of chosen steps: what host and device did when, with the phases of steps and the loader's stages.

Open it at https://ui.perfetto.dev. Tracing slows the steps down, so a trace does not show a run's speed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig  # the only place that has `profile_all_threads`
from torch.profiler import ProfilerActivity, profile, record_function


class StepProfiler:
    """Trace steps of this process, with all its threads, into one JSON file.

    Call `before` and `after` with the number of every step, and `enter` where a phase begins. The file is written after
    the last step to be traced, or by `close` if the run ends before it.
    """

    def __init__(self, first: int, last: int, path: Path) -> None:
        """Prepare a trace.

        Args:
            first: Number of the first step to trace, from 1.
            last: Number of the last one.
            path: The JSON file to write.
        """
        self._first, self._last, self._path = first, last, path
        self._profile: profile | None = None
        self._open: list[record_function] = []

    def before(self, step: int) -> None:
        """Mark that the step with this number begins, with the wait for its batch."""
        if step == self._first:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            all_threads = _ExperimentalConfig(profile_all_threads=True)  # the loader has threads of its own
            self._profile = profile(activities=activities, experimental_config=all_threads, acc_events=True)
            self._profile.start()
        if self._profile is not None:
            self._mark(f"step {step}")

    def enter(self, phase: str) -> None:
        """Mark that the training thread enters another phase of the step."""
        if self._profile is not None and self._open:
            self._unmark(1)
            self._mark(phase)

    def after(self, step: int) -> bool:
        """Mark that the step with this number is over; return True if the trace was written, which takes a moment."""
        if self._profile is None:
            return False
        self._unmark(0)
        if step < self._last:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Write what has been traced so far, if tracing is on."""
        if self._profile is not None:
            self._unmark(0)
            self._profile.stop()
            self._profile.export_chrome_trace(str(self._path))
            self._profile = None

    def _mark(self, name: str) -> None:
        mark = record_function(name)
        mark.__enter__()  # type: ignore[no-untyped-call]
        self._open.append(mark)

    def _unmark(self, depth: int) -> None:
        while len(self._open) > depth:
            self._open.pop().__exit__(None, None, None)
