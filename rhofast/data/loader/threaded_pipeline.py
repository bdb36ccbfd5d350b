"""Stages that run side by side, each in its own thread, joined by bounded channels.

    source --> [stage 0] --channel--> [stage 1] --channel--> get()

Order is preserved; a stage that makes None of an item drops it. An exception in a stage travels down the channels in
the place of its item and is raised by `get`. No wait is endless: a thread that died, or a stage that takes longer over
one item than its time limit, becomes an error in the consumer. Every stage counts the seconds in which it worked,
starved (waited for input) or was blocked (waited for room), so that the slowest stage can be named. The first item goes
through alone: whoever starts waits for it, and for nothing else. What it is not: it knows nothing of videos.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Out = TypeVar("Out")
_CHECK_S = 1.0  # between two looks at whether what is waited for can still come
_FAREWELL_S = 5.0  # for a thread to end after a stage has hung
# How long a thread may keep Python's lock from others that want it. With Python's own 5 ms, stages at work delay each
# operation that the consumer starts on a device or on other cores (0.92 of its rate, so 0.95:
# benchmarks/evaluation/feature_extraction.py).
_TURN_S = 0.0002


@dataclass(slots=True)
class StageClock:
    """Seconds a stage spent: `busy` in its work, `starved` waiting for input, `blocked` waiting for room behind it."""

    busy: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0


class StalledError(RuntimeError):
    """Nothing came out for too long; the message names the stage that holds it up, and since when."""


class _ChannelClosedError(Exception):
    """The conveyor is being closed; the waiting thread should end."""


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


_END = object()


class _Channel:
    """A bounded first-in-first-out channel whose waits end when it is closed."""

    def __init__(self, depth: int) -> None:
        self._items: deque[Any] = deque()
        self._depth = depth
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            while len(self._items) >= self._depth and not self._closed:
                self._changed.wait()
            if self._closed:
                raise _ChannelClosedError
            self._items.append(item)
            self._changed.notify_all()

    def get(self, check: Callable[[], None] | None = None) -> Any:
        """The next item. check: called about once a second while there is none; what it raises ends the wait."""
        with self._changed:
            while not self._items and not self._closed:
                if not self._changed.wait(_CHECK_S) and not self._items and check is not None:
                    check()
            if self._closed:
                raise _ChannelClosedError
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _ShortTurns:
    """Threads of the process take short turns with Python's lock while anybody asks for it."""

    def __init__(self) -> None:
        self._asking, self._lock, self._before = 0, threading.Lock(), 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._asking:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _TURN_S))
            self._asking += 1

    def end(self) -> None:
        with self._lock:
            self._asking -= 1
            if not self._asking:
                sys.setswitchinterval(self._before)


_short_turns = _ShortTurns()


class ThreadedPipeline(Generic[Out]):
    """Runs `stages` over the items of `source`; `get` returns what the last stage makes of each, in order.

    depth: items that may wait behind each stage. timeout_s: seconds that a stage may take over one item. Threads start
    with the first `get` and end with `close`.
    """

    def __init__(
        self,
        source: Iterator[Any],
        stages: dict[str, Callable[[Any], Any]],
        *,
        depth: int,
        timeout_s: float = math.inf,
    ) -> None:
        self.clocks = {name: StageClock() for name in stages}
        self.wait_s = 0.0
        self._ended = dict.fromkeys(stages, False)
        self._source = source
        self._stages = list(stages.items())
        self._channels = [_Channel(depth) for _ in stages]
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"rhofast-{name}", daemon=True)
            for number, name in enumerate(stages)
        ]
        self._timeout_s = timeout_s
        self._since: list[float | None] = [None for _ in stages]  # when each began the item it works on
        self._started = self._finished = self._stalled = self._hurried = False
        self._taken = 0  # items of the source
        self._first_through = threading.Event()

    def get(self) -> Out:
        """The next item. Raises StopIteration at the end; whatever a stage raised, once, in its place; StalledError.
        After each of them the conveyor is closed."""
        if self._finished:
            raise StopIteration
        if not self._started:
            self._started = self._hurried = True
            _short_turns.begin()
            for thread in self._threads:
                thread.start()
        began = time.perf_counter()
        try:
            item = self._channels[-1].get(self._check_all)
        except StalledError:
            self._stalled = True
            self.close()
            raise
        finally:
            self.wait_s += time.perf_counter() - began
        if item is _END:
            self.close()
            raise StopIteration
        if isinstance(item, _Raised):
            self.close()
            raise item.error
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """End all threads and drop what is under way. Safe to call twice. It waits for the work under way; only a
        thread that hangs in it is left to itself in the end, and ends as soon as that work does."""
        self._finished = True
        self._first_through.set()
        for channel in self._channels:
            channel.close()
        wait = _FAREWELL_S if self._stalled else min(self._timeout_s, threading.TIMEOUT_MAX)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():  # Ctrl-C may hit while they start
                thread.join(wait)
        if self._hurried:
            self._hurried = False
            _short_turns.end()

    def _check_all(self) -> None:
        """Raises StalledError if a stage has died, or takes too long over an item."""
        now = time.perf_counter()
        for (name, _), thread, since in zip(self._stages, self._threads, self._since, strict=True):
            if since is not None and now - since > self._timeout_s:
                raise StalledError(f"stage {name!r} has been busy with one item for {now - since:.0f} s")
            if not thread.is_alive() and thread.ident is not None and not self._ended[name]:
                raise StalledError(f"the thread of stage {name!r} has died without a word")

    def _work(self, number: int) -> None:
        name, function = self._stages[number]
        clock, out = self.clocks[name], self._channels[number]
        try:
            while True:
                began = time.perf_counter()
                item = self._next_input(number)
                fed = time.perf_counter()
                clock.starved += fed - began
                self._since[number] = fed
                if item is not _END and not isinstance(item, _Raised):
                    try:
                        item = function(item)
                    except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
                        item = _Raised(error)
                    clock.busy += time.perf_counter() - fed
                done = time.perf_counter()
                self._since[number] = None
                if item is None or number == len(self._stages) - 1:
                    self._first_through.set()
                if item is not None:
                    out.put(item)
                clock.blocked += time.perf_counter() - done
                if item is _END or isinstance(item, _Raised):
                    self._ended[name] = True
                    return
        except _ChannelClosedError:
            return

    def _next_input(self, number: int) -> Any:
        if number:
            return self._channels[number - 1].get()
        if self._taken == 1:
            self._first_through.wait()
        self._taken += 1
        try:
            return next(self._source, _END)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
            return _Raised(error)
