"""A Chrome trace of chosen steps: what host and device did when, the trainer's stages and the loader's marked.

Open it at https://ui.perfetto.dev. What it is not: a measurement of a run's speed, since tracing slows the steps down.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig  # the only place that has `profile_all_threads`
from torch.profiler import ProfilerActivity, profile, record_function


class StepProfiler:
    """Traces the steps first .. last (counted from 1) of this process, all its threads, into one JSON file.

    Call `before` and `after` with the number of every step, and `enter` where a stage begins. A file is written when
    the last step is over, or in `close` if the run ends within.
    """

    def __init__(self, first: int, last: int, path: Path) -> None:
        self._first, self._last, self._path = first, last, path
        self._profile: profile | None = None
        self._open: list[record_function] = []

    def before(self, step: int) -> None:
        """The step with this number is about to begin, with the wait for its batch."""
        if step == self._first:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            everywhere = _ExperimentalConfig(profile_all_threads=True)  # the loader has threads of its own
            self._profile = profile(activities=activities, experimental_config=everywhere)
            self._profile.start()
        if self._profile is not None:
            self._mark(f"step {step}")

    def enter(self, stage: str) -> None:
        """From here on the training thread is in another stage of the step."""
        if self._profile is not None and self._open:
            self._unmark(1)
            self._mark(stage)

    def after(self, step: int) -> bool:
        """The step with this number is over. True if the trace was written, which takes a moment."""
        if self._profile is None:
            return False
        self._unmark(0)
        if step < self._last:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Write what there is."""
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
