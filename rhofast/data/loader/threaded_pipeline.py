"""Stages that run side by side, each in its own thread, joined by bounded channels.

    source --> [stage 0] --channel--> [stage 1] --channel--> get()

A stage is a function of an item. If a stage hands its work to somebody else and waits for it, it is two functions: it
begins an item, if there is one, before it waits for the one before it.

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
from collections.abc import Callable, Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class TwoSteps:
    """A stage that has up to two items in work: the next one is begun before the one before it is completed.

    It never waits for a next item while it has one to complete.

    Attributes:
        begin: Begins an item; what it returns goes to `complete`.
        complete: Waits until it is done; None as its result drops the item.
    """

    begin: Callable[[Any], Any]
    complete: Callable[[Any], Any]


class StalledError(RuntimeError):
    """No item came for too long; the message names the stage that holds it up, and for how long."""


class _ChannelClosedError(Exception):
    """The pipeline is being closed; the waiting thread ends."""


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


_END = object()
_NOTHING = object()  # there is no item yet


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

    def get(self, check: Callable[[], None] | None = None, *, wait: bool = True) -> Any:
        """Return the next item.

        Args:
            check: Called about once per second while there is none; what it raises ends the wait.
            wait: Whether to wait for it; if not, `_NOTHING` stands for an item that is not there.
        """
        with self._changed:
            while not self._items and not self._closed:
                if not wait:
                    return _NOTHING
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
        stages: By name, a function of an item, or two; None as its result drops the item.
        depth: Items that may wait behind each stage.
        timeout_s: Seconds that a stage may take for one item.
        on_wait: Called about once per second while the consumer waits, with the seconds for which it has waited.

    Attributes:
        clocks: By name, the seconds of each stage.
        wait_s: Seconds for which the consumer was blocked in `get`.
    """

    def __init__(
        self,
        source: Iterator[Any],
        stages: Mapping[str, Callable[[Any], Any] | TwoSteps],
        *,
        depth: int,
        timeout_s: float = math.inf,
        on_wait: Callable[[float], None] | None = None,
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
        self._timeout_s, self._on_wait = timeout_s, on_wait
        self._since: list[float | None] = [None for _ in stages]  # when each stage began what it works on
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

        def check() -> None:
            self._check_all()
            if self._on_wait is not None:
                self._on_wait(time.perf_counter() - began)

        try:
            item = self._channels[-1].get(check)
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
        name, stage = self._stages[number]
        begin, complete = (stage.begin, stage.complete) if isinstance(stage, TwoSteps) else (None, stage)
        most = 2 if isinstance(stage, TwoSteps) and number else 1  # the source gives its second item after the first
        clock, out = self.clocks[name], self._channels[number]
        begun: deque[Any] = deque()  # oldest first
        try:
            while True:
                if len(begun) < most and not (begun and _is_last(begun[0])):
                    asked = time.perf_counter()
                    item = self._next_input(number, wait=not begun)
                    clock.starved += time.perf_counter() - asked
                    if item is not _NOTHING:
                        begun.append(item if begin is None else self._call(number, begin, item))
                        continue
                item = self._call(number, complete, begun.popleft())
                if item is None or number == len(self._stages) - 1:
                    self._first_through.set()
                done = time.perf_counter()
                if item is not None:
                    out.put(item)
                clock.blocked += time.perf_counter() - done
                if _is_last(item):
                    self._ended[name] = True
                    return
        except _ChannelClosedError:
            return

    def _call(self, number: int, function: Callable[[Any], Any], item: Any) -> Any:
        """Return what a function of a stage makes of an item; the last item stays as it is."""
        if _is_last(item):
            return item
        began = self._since[number] = time.perf_counter()
        try:
            return function(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
            return _Raised(error)
        finally:
            self.clocks[self._stages[number][0]].busy += time.perf_counter() - began
            self._since[number] = None

    def _next_input(self, number: int, *, wait: bool) -> Any:
        if number:
            return self._channels[number - 1].get(wait=wait)
        if self._taken == 1:
            self._first_through.wait()
        self._taken += 1
        try:
            return next(self._source, _END)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the consumer's thread
            return _Raised(error)


def _is_last(item: Any) -> bool:
    """Return whether nothing comes after an item."""
    return item is _END or isinstance(item, _Raised)
