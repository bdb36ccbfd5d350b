"""One event loop for all requests of the process, in a thread of its own: callers may have a loop of their own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")

_PATIENCE_S = 2.0
_SETTLING_S = 0.1  # for threads of obstore, which let go of what they have just returned and cannot be joined

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
                thread = threading.Thread(target=loop.run_forever, name="store-requests", daemon=True)
                thread.start()
                _loops[process] = loop
                # A thread that wakes while the interpreter ends is unwound through Rust, which aborts the process.
                atexit.register(_stop, process, loop, thread)
    return loop


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
    future = asyncio.run_coroutine_threadsafe(work, process_loop())
    try:
        return future.result(seconds)
    finally:
        future.cancel()
