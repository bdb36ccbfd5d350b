"""Stages that run side by side, each in its own thread, joined by bounded channels.

    source --> [stage 0] --channel--> [stage 1] --channel--> get()

Order is preserved; a stage that makes None of an item drops it. An exception in a stage travels down the channels in
the place of its item and is raised by `get`. No wait is endless: a thread that died, or a stage that takes longer over
one item than its time limit, becomes an error in the consumer. Every stage counts the seconds in which it worked,
starved (waited for input) or was blocked (waited for room), so that the slowest stage can be named. The first item goes
through alone, so that whoever starts waits for that item and for nothing else.
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
_CHECK_S = 1.0  # seconds between two checks of whether an item can still come
_FAREWELL_S = 3.0  # seconds for all threads to end after a stage has hung
# Seconds for which a thread may keep Python's lock while others want it. With Python's own 5 ms, working stages delay
# each operation that the consumer starts on a device or on other cores (0.92 of its rate, now 0.95:
# benchmarks/evaluation/feature_extraction.py).
_SWITCH_S = 0.0002


@dataclass(slots=True)
class StageClock:
    """Seconds that a stage spent.

    Attributes:
        busy: Seconds of work.
        starved: Seconds of waiting for input.
        blocked: Seconds of waiting for room behind the stage.
    """

    busy: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0


class StalledError(RuntimeError):
    """No item came for too long; the message names the stage that holds it up, and for how long."""


class _ChannelClosedError(Exception):
    """The pipeline is being closed; the waiting thread ends."""


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
        """Return the next item.

        Args:
            check: Called about once per second while there is none; what it raises ends the wait.
        """
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


class _SwitchInterval:
    """Shortens the interval at which threads of the process switch, while any pipeline runs."""

    def __init__(self) -> None:
        self._users, self._lock, self._before = 0, threading.Lock(), 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._users:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _SWITCH_S))
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


class ThreadedPipeline(Generic[Out]):
    """Runs stages over the items of a source; `get` returns what the last stage makes of each, in order.

    Threads start with the first `get` and end with `close`.

    Args:
        source: The items.
        stages: By name, a function of an item; None as its result drops the item.
        depth: Items that may wait behind each stage.
        timeout_s: Seconds that a stage may take for one item.

    Attributes:
        clocks: By name, the seconds of each stage.
        wait_s: Seconds for which the consumer was blocked in `get`.
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
        self._since: list[float | None] = [None for _ in stages]  # when each stage began its current item
        self._started = self._finished = self._stalled = self._shortened = False
        self._taken = 0  # items of the source
        self._first_through = threading.Event()

    def get(self) -> Out:
        """Return the next item. After an exception the pipeline is closed.

        Raises:
            StopIteration: There are no more.
            StalledError: A stage hangs, or its thread has died.
            BaseException: What a stage raised, in the place of its item.
        """
        if self._finished:
            raise StopIteration
        if not self._started:
            self._started = self._shortened = True
            _switch_interval.begin()
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
        """End all threads and drop the items in them. It may be called twice.

        It waits for the work under way; only a thread that hangs is abandoned after a while, and ends when its work
        does.
        """
        self._finished = True
        self._first_through.set()
        for channel in self._channels:
            channel.close()
        end = time.monotonic() + (_FAREWELL_S if self._stalled else min(self._timeout_s, threading.TIMEOUT_MAX / 2))
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():  # Ctrl-C may hit while they start
                thread.join(max(0.0, end - time.monotonic()))
        if self._shortened:
            self._shortened = False
            _switch_interval.end()

    def _check_all(self) -> None:
        """Raise StalledError if a stage has died, or takes too long for an item."""
        now = time.perf_counter()
        for (name, _), thread, since in zip(self._stages, self._threads, self._since, strict=True):
            if since is not None and now - since > self._timeout_s:
                raise StalledError(f"stage {name!r} has worked on one item for {now - since:.0f} s")
            if not thread.is_alive() and thread.ident is not None and not self._ended[name]:
                raise StalledError(f"the thread of stage {name!r} has died")

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
