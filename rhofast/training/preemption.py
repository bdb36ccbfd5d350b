"""Notice that a run should stop: by a signal, by `train.max_hours`, or because its launcher has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import FrameType
from typing import Any

_ECHO_S = 1.0  # a launcher passes Ctrl-C on to processes that got it from the terminal, too

_LAUNCHER_VARIABLES = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}  # which launchers set for their processes


class PreemptionHandler:
    """Notice SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP, Ctrl-C, the end of `max_hours`, and a launcher that is gone.

    SIGHUP says that the terminal is gone; where it is ignored (nohup), it stays ignored. A launcher takes some signals
    for its own end alone and does not pass them on. The step under way is finished and saved; a second Ctrl-C ends the
    process at once.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

    def __init__(self, max_hours: float | None) -> None:
        """Prepare; signals are noticed within the context. None for `max_hours` sets no limit of time."""
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._launcher = os.getppid() if _LAUNCHER_VARIABLES & os.environ.keys() else None
        self._signal: int | None = None
        self._noticed_at = 0.0
        self._handlers_before: dict[signal.Signals, Any] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether this process should stop."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Why this process should stop, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._launcher is not None and os.getppid() != self._launcher:
            return "the launcher has ended"
        return "max_hours" if self._deadline is not None and time.monotonic() > self._deadline else None

    def __enter__(self) -> PreemptionHandler:
        with contextlib.suppress(ValueError):  # not in the main thread: then signals are the caller's
            for name in self._SIGNALS:
                if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:
                    self._handlers_before[name] = signal.signal(name, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._handlers_before.items():
            signal.signal(name, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is not None and number == signal.SIGINT and now - self._noticed_at > _ECHO_S:
            raise KeyboardInterrupt
        if self._signal is None:
            self._signal, self._noticed_at = number, now
