"""Where work units run: processes of this machine. Results come back in the order in which they are ready."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from rhofast.errors import IngestError

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_POLL_S = 0.2
_ticks: Any = None  # in a worker: the counter shared with the parent


def tick() -> None:
    """Called by a unit's function after each item, so that progress shows between results."""
    if _ticks is not None:
        with _ticks.get_lock():
            _ticks.value += 1


def run_units(
    function: Callable[[Unit], Result],
    units: Iterable[Unit],
    *,
    workers: int,
    on_ticks: Callable[[int], None] | None = None,
) -> Iterator[Result]:
    """`function` of every unit, in `workers` fresh processes; at most two units a worker are waiting at any time, so
    `units` may be endless. on_ticks: called now and then with the number of `tick` calls so far.

    Raises what a unit raised, after the units under way are dropped; IngestError where a worker died.
    """
    context = get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(counter,))
    source, pending = iter(units), set[Future[Result]]()
    exhausted = finished = False
    try:
        while pending or not exhausted:
            while not exhausted and len(pending) < 2 * workers:
                try:
                    pending.add(pool.submit(function, next(source)))
                except StopIteration:
                    exhausted = True
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            if on_ticks is not None:
                on_ticks(counter.value)
            for future in done:
                yield future.result()
        finished = True
    except BrokenProcessPool:
        raise IngestError(
            "a worker process died (out of memory, or killed)", hint="run the same command again: it continues"
        ) from None
    finally:
        if not finished:
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin(counter: Any) -> None:
    """In a fresh worker: Ctrl-C is the parent's business."""
    global _ticks
    _ticks = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
