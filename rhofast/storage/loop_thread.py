"""One event loop for all requests of the process, in a thread of its own: callers may have a loop of their own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: the thread does not survive a fork


def process_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs for ever."""
    process = os.getpid()
    loop = _loops.get(process)
    if loop is None:
        with _lock:
            loop = _loops.get(process)
            if loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="store-requests", daemon=True).start()
                _loops[process] = loop
    return loop


def wait_for(work: Coroutine[Any, Any, Result], seconds: float | None = None) -> Result:
    """Run a coroutine in the loop of the process and wait for its result.

    Args:
        work: The coroutine.
        seconds: Limit on the wait; None for no limit.

    Raises:
        TimeoutError: It takes longer; it is cancelled.
        Exception: Whatever `work` raises.
    """
    future = asyncio.run_coroutine_threadsafe(work, process_loop())
    try:
        return future.result(seconds)
    finally:
        future.cancel()
