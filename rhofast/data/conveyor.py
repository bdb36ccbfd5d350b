"""Stages that run side by side, each in its own thread, joined by bounded channels.

    source --> [stage 0] --channel--> [stage 1] --channel--> get()

Order is preserved. An exception in a stage travels down the channels in the place of its item and is raised by `get`.
Every stage counts the seconds in which it worked, starved (waited for input) or was blocked (waited for room), so that
the slowest stage can be named. What it is not: it knows nothing of videos.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Out = TypeVar("Out")
_ALIVE_CHECK_S = 5.0


@dataclass(slots=True)
class StageClock:
    """Seconds a stage spent: `busy` in its work, `starved` waiting for input, `blocked` waiting for room behind it."""

    busy: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0


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

    def get(self, still_fed: Callable[[], bool]) -> Any:
        with self._changed:
            while not self._items and not self._closed:
                if not self._changed.wait(_ALIVE_CHECK_S) and not still_fed() and not self._items:
                    raise RuntimeError("the thread that feeds this queue has died without a word")
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


class Conveyor(Generic[Out]):
    """Runs `stages` over the items of `source`; `get` returns what the last stage makes of each, in order.

    depth: items that may wait behind each stage. Threads start with the first `get` and end with `close`.
    """

    def __init__(self, source: Iterator[Any], stages: dict[str, Callable[[Any], Any]], *, depth: int) -> None:
        self.clocks = {name: StageClock() for name in stages}
        self.wait_s = 0.0
        self._source = source
        self._stages = list(stages.items())
        self._channels = [_Channel(depth) for _ in stages]
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"rhofast-{name}", daemon=True)
            for number, name in enumerate(stages)
        ]
        self._started = self._finished = False

    def get(self) -> Out:
        """The next item. Raises StopIteration at the end, and whatever a stage raised, once, in its place; after
        either the conveyor is closed."""
        if self._finished:
            raise StopIteration
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        began = time.perf_counter()
        item = self._channels[-1].get(self._threads[-1].is_alive)
        self.wait_s += time.perf_counter() - began
        if item is _END:
            self.close()
            raise StopIteration
        if isinstance(item, _Raised):
            self.close()
            raise item.error
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """End all threads and drop what is under way. Safe to call twice."""
        self._finished = True
        for channel in self._channels:
            channel.close()
        if self._started:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()

    def _work(self, number: int) -> None:
        name, function = self._stages[number]
        clock, out = self.clocks[name], self._channels[number]
        try:
            while True:
                began = time.perf_counter()
                item = self._next_input(number)
                fed = time.perf_counter()
                clock.starved += fed - began
                if item is not _END and not isinstance(item, _Raised):
                    try:
                        item = function(item)
                    except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
                        item = _Raised(error)
                    clock.busy += time.perf_counter() - fed
                done = time.perf_counter()
                out.put(item)
                clock.blocked += time.perf_counter() - done
                if item is _END or isinstance(item, _Raised):
                    return
        except _ChannelClosedError:
            return

    def _next_input(self, number: int) -> Any:
        if number:
            return self._channels[number - 1].get(self._threads[number - 1].is_alive)
        try:
            return next(self._source, _END)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
            return _Raised(error)
