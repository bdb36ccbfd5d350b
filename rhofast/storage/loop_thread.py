"""One event loop for all requests of the process, in a thread of its own: callers may have a loop of their own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")

_PATIENCE_S = 2.0
_SETTLING_S = 0.1  # for threads of obstore, which let go of what they have just returned and cannot be joined


class _RequestLoop:
    """An event loop in a thread, and calls that wait for it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="store-requests", daemon=True)
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the loop call a function. Calls that come together wake it once: waking takes longer than a call."""
        self._calls.append((function, arguments))
        if not self._is_woken:
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._begin_calls)

    def _begin_calls(self) -> None:
        self._is_woken = False  # first: what is added from now on wakes the loop again
        while self._calls:
            function, arguments = self._calls.popleft()
            self.loop.call_soon(function, *arguments)

    def _run(self) -> None:
        # An answer must not interrupt a thread that decodes, or each one would: those that have come meanwhile are
        # taken together. Threads that begin here do likewise, and obstore's begin with its first request. It hands
        # over each result in one of many threads, which look for Python's lock every `sys.getswitchinterval()`, on a
        # busy core hundreds of times per video if each look interrupts whoever has it.
        with suppress(OSError):  # a sandbox may refuse it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.loop.run_forever()


_lock = threading.Lock()
_loops: dict[int, _RequestLoop] = {}  # by process: the thread does not survive a fork


def _request_loop() -> _RequestLoop:
    """Return the loop of this process, which runs for ever."""
    process = os.getpid()
    found = _loops.get(process)
    if found is None:
        with _lock:
            found = _loops.get(process)
            if found is None:
                found = _RequestLoop()
                found.thread.start()
                _loops[process] = found
                # A thread that wakes while the interpreter ends is unwound through Rust, which aborts the process.
                atexit.register(_stop, process, found.loop, found.thread)
    return found


def call(function: Callable[..., object], *arguments: Any) -> None:
    """Have the loop of the process call a function soon, in the order in which a thread asks for it."""
    _request_loop().call(function, *arguments)


def _stop(process: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel what is left to do in a loop, and end its thread; nothing in a process that was forked."""
    if process != os.getpid():
        return

    async def cancel() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), _PATIENCE_S)

    with suppress(Exception):
        asyncio.run_coroutine_threadsafe(cancel(), loop).result(2 * _PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_PATIENCE_S)
    time.sleep(_SETTLING_S)


def wait_for(work: Coroutine[Any, Any, Result], seconds: float | None = None) -> Result:
    """Run a coroutine in the loop of the process and wait for its result.

    Args:
        work: The coroutine.
        seconds: Limit on the wait; None for no limit.

    Raises:
        TimeoutError: It takes longer; it is cancelled.
        Exception: Whatever `work` raises.
    """
    future = asyncio.run_coroutine_threadsafe(work, _request_loop().loop)
    try:
        return future.result(seconds)
    finally:
        future.cancel()
