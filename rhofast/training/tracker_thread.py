"""A thread per tracker: whatever it takes to send numbers, training goes on.

Trackers write to networks and disks that fail, hang and come back. So none is called by the training thread. Between
the two lies a queue with a limit; what does not fit into it, and what a tracker refuses, is counted and said once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from rhofast.storage.address import redacted
from rhofast.training.tracker import EndState, Tracker

_WINDOWS = 1000  # that wait for a slow tracker: about a megabyte


class TrackerThread:
    """One tracker, which is made, called and finished in a thread of its own."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        """Prepare the thread.

        Args:
            name: The tracker's name in the config.
            make: Returns the tracker; it may raise.
        """
        self.name = name
        self.given_id: str | None = None
        self._make = make
        self._queue: queue.Queue[tuple[Mapping[str, float], int] | EndState] = queue.Queue()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._lock = threading.Lock()
        self._news: list[str] = []
        self._lost = 0  # windows
        self._too_late = False
        self._failure: str | None = None

    def start(self, timeout_s: float) -> str | None:
        """Begin, and return None, or why the tracker does not begin.

        Args:
            timeout_s: Seconds to wait. A tracker that begins later is ended at once.
        """
        self._thread.start()
        if not self._begun.wait(timeout_s):
            self._too_late = True
            return f"no answer within {timeout_s:g} s"
        return self._failure

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Let the tracker take numbers when it can."""
        if self._queue.qsize() < _WINDOWS:
            self._queue.put((values, step))
        else:
            self._note_lost(f"{_WINDOWS} windows wait for it")

    def news(self) -> list[str]:
        """Return lines about what has gone wrong since the last call."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def request_finish(self, state: EndState) -> None:
        """Let the tracker end after what is in the queue."""
        self._queue.put(state)

    @staticmethod
    def join_all(threads: Iterable[TrackerThread], timeout_s: float) -> list[str]:
        """Wait for threads that were requested to finish, and return lines about what has gone wrong.

        Args:
            threads: The threads.
            timeout_s: Seconds to wait for all of them together.
        """
        deadline, lines = time.monotonic() + timeout_s, []
        for thread in threads:
            thread._thread.join(max(0.0, deadline - time.monotonic()))
            lines += thread.news()
            if thread._thread.is_alive():
                text = f"has not ended within {timeout_s:g} s, and may lack the last numbers"
                lines.append(f"tracker {thread.name} {text}")
            if thread._lost > 1:
                lines.append(f"tracker {thread.name} lacks {thread._lost} windows of numbers")
        return lines

    def _run(self) -> None:
        try:
            tracker = self._make()
            self.given_id = getattr(tracker, "given_id", None)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the caller says it
            self._failure = _in_one_line(error)
            return
        finally:
            self._begun.set()
        item: tuple[Mapping[str, float], int] | EndState = "failed" if self._too_late else self._queue.get()
        while isinstance(item, tuple):
            try:
                tracker.log(*item)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker never ends a run
                self._note_lost(_in_one_line(error))
            item = self._queue.get()
        try:
            tracker.finish(item)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nor does it make an end a failure
            with self._lock:
                self._news.append(f"tracker {self.name} has not ended as it should: {_in_one_line(error)}")

    def _note_lost(self, reason: str) -> None:
        with self._lock:
            if not self._lost:
                self._news.append(f"tracker {self.name}: numbers are lost, which metrics.jsonl has: {reason}")
            self._lost += 1


def _in_one_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redacted(f"{type(error).__name__}: {text}" if text else type(error).__name__)
