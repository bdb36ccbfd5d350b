"""Run jobs in processes of this machine; ray_cluster.py runs them on a Ray cluster instead.

What jobs tell of outages of stores is told in the process that runs them (storage/outages.py).

Results are yielded in the order in which they are ready. Jobs are drawn from their iterable only as they are needed, so
the iterable may be endless. The executor decides which process or node runs a job.

A job may be started again elsewhere, so its function must leave nothing behind that disturbs a second run of it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from rhofast.errors import IngestError
from rhofast.storage.outages import set_outage_handler, tell_outage

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
OnTicks = Callable[[int, int], None]

POLL_S = 0.2
RESUME_HINT = "run the same command again: it continues"

_on_tick: Callable[[int], None] | None = None  # set in a process that runs jobs


class Executor(Protocol):
    """Interface of everything that runs jobs."""

    def run(
        self, function: Callable[[JobT], ResultT], jobs: Iterable[JobT], *, on_ticks: OnTicks | None = None
    ) -> Iterator[ResultT]:
        """Run all jobs and yield their results as they are ready.

        Args:
            function: Runs one job; it must be picklable.
            jobs: The jobs; they are drawn as they are needed.
            on_ticks: Called from time to time with (videos done, bytes of their sources) so far.

        Returns:
            An iterator over the results, in the order in which they are ready.

        Raises:
            Exception: Whatever a job raised; the jobs that were running are stopped first.
            IngestError: Worker processes keep dying.
        """


def set_tick_handler(handler: Callable[[int], None]) -> None:
    """Make `tick` call `handler` from now on in this process, with the bytes of each finished video's source."""
    global _on_tick
    _on_tick = handler


def _explain_death(processes: Iterable[BaseProcess]) -> IngestError:
    """Return the error for a broken pool. A worker that is killed has no exit code of its own."""
    if any(process.exitcode == 1 for process in processes):
        return IngestError(
            "a worker process ended before its work began: it could not import the script that started it",
            hint='put the call under `if __name__ == "__main__":`, since each process imports the script',
        )
    return IngestError("a worker process died (out of memory, or killed)", hint=RESUME_HINT)


def tick(num_bytes: int) -> None:
    """Count one finished video; a job calls this after each, so that progress shows between results.

    Args:
        num_bytes: Size of the video's source in bytes.
    """
    if _on_tick is not None:
        _on_tick(num_bytes)


@dataclass(frozen=True, slots=True)
class LocalProcesses:
    """Runs jobs in fresh processes of this machine.

    At most two jobs per worker are running or queued at any time.

    Attributes:
        workers: Number of processes.
    """

    workers: int

    def run(
        self, function: Callable[[JobT], ResultT], jobs: Iterable[JobT], *, on_ticks: OnTicks | None = None
    ) -> Iterator[ResultT]:
        """Run all jobs and yield their results as they are ready; see Executor.run.

        Args:
            function: Runs one job; it must be picklable.
            jobs: The jobs; they are drawn as they are needed.
            on_ticks: Called from time to time with (videos done, bytes of their sources) so far.

        Returns:
            An iterator over the results, in the order in which they are ready.

        Raises:
            Exception: Whatever a job raised.
            IngestError: A worker process died.
        """
        context = get_context("spawn")
        counters, (news, end) = context.Array("q", 2), context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_init_worker, initargs=(counters, end))
        processes = pool._processes  # kept here, since a broken pool lets them go
        source, pending = iter(jobs), set[Future[ResultT]]()
        exhausted = finished = False
        try:
            while pending or not exhausted:
                while not exhausted and len(pending) < 2 * self.workers:
                    try:
                        pending.add(pool.submit(function, next(source)))
                    except StopIteration:
                        exhausted = True
                done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                while news.poll():
                    tell_outage(*news.recv())
                if on_ticks is not None:
                    on_ticks(*counters.get_obj())  # without the lock: a worker that was killed may hold it forever
                for future in done:
                    yield future.result()
            finished = True
        except BrokenProcessPool:
            pool.shutdown(cancel_futures=True)  # waits until all have ended: before that, they have no exit codes
            raise _explain_death(processes.values()) from None
        finally:
            if not finished:
                for process in list(processes.values()):
                    process.terminate()
            pool.shutdown(cancel_futures=True)
            news.close()
            end.close()


def _init_worker(counters: Any, news: Connection) -> None:
    """Prepare a fresh worker process: leave Ctrl-C to the parent, and end when the parent ends."""

    def count_one(num_bytes: int) -> None:
        with counters.get_lock():
            counters[0] += 1
            counters[1] += num_bytes

    def pass_on(*told: Any) -> None:
        with suppress(OSError):  # one write, which is whole, so that no lock is needed that a killed process may hold
            news.send(told)

    set_tick_handler(count_one)
    set_outage_handler(pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit once the parent process is gone; a killed parent cannot stop its workers, which would wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
