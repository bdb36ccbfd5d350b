"""Where work units run: processes of this machine, or a Ray cluster. Results come back in the order in which they are
ready; units are drawn as they are needed, so they may be endless.

Not a scheduler of its own: which process or node gets a unit is decided by the pool or by Ray. A unit may begin again
elsewhere, so its function must leave nothing behind that a second run of the same unit would trip over.
"""

from __future__ import annotations

import logging
import os
import reprlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context, parent_process
from typing import Any, Generic, Protocol, TypeVar

from rhofast.errors import DependencyError, IngestError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
OnTicks = Callable[[int, int], None]

_POLL_S = 0.2
_LIVE_S = 1.0  # between two looks at how far the units under way are, and at the size of a cluster
_GRACE_S = 2.0  # for units under way to clean up after themselves
_PROCESSES_A_UNIT_MAY_END = 4
_AGAIN = "run the same command again: it continues"
_CONNECTING = (
    "it takes the address that `ray start --head` printed, the same versions of Ray and Python on both sides, and "
    "RAY_AUTH_MODE=token where the cluster has tokens"
)

_on_tick: Callable[[int], None] | None = None  # in a process that runs units


class Executor(Protocol):
    """How units are run, wherever."""

    def run(
        self, function: Callable[[Unit], Result], units: Iterable[Unit], *, on_ticks: OnTicks | None = None
    ) -> Iterator[Result]:
        """`function` of every unit. on_ticks: called now and then with (videos done, bytes of their sources) so far.

        Raises what a unit raised, after the units under way are dropped; IngestError where workers keep dying.
        """


def tick(num_bytes: int) -> None:
    """Called by a unit's function after each video, with the bytes of its source, so that progress shows between
    results."""
    if _on_tick is not None:
        _on_tick(num_bytes)


@dataclass(frozen=True, slots=True)
class LocalProcesses:
    """`workers` fresh processes of this machine. At most two units a worker are under way or waiting at any time."""

    workers: int

    def run(
        self, function: Callable[[Unit], Result], units: Iterable[Unit], *, on_ticks: OnTicks | None = None
    ) -> Iterator[Result]:
        """See Executor. A worker that dies ends the run."""
        context = get_context("spawn")
        counters = context.Array("q", 2)
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin, initargs=(counters,))
        source, pending = iter(units), set[Future[Result]]()
        exhausted = finished = False
        try:
            while pending or not exhausted:
                while not exhausted and len(pending) < 2 * self.workers:
                    try:
                        pending.add(pool.submit(function, next(source)))
                    except StopIteration:
                        exhausted = True
                done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                if on_ticks is not None:
                    on_ticks(*counters.get_obj())  # without the lock: a worker that was killed may hold it forever
                for future in done:
                    yield future.result()
            finished = True
        except BrokenProcessPool:
            raise IngestError("a worker process died (out of memory, or killed)", hint=_AGAIN) from None
        finally:
            if not finished:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(cancel_futures=True)


def _begin(counters: Any) -> None:
    """In a fresh worker: Ctrl-C is the parent's business, and without the parent there is none."""
    global _on_tick

    def count_one(num_bytes: int) -> None:
        with counters.get_lock():
            counters[0] += 1
            counters[1] += num_bytes

    _on_tick = count_one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its workers, which would wait forever for more to do."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """The nodes of a Ray cluster, one CPU a unit.

    address: `host:port` of the head, or "auto" for the cluster that this machine is part of. None: what the environment
        variable RAY_ADDRESS says; without it Ray is started on this machine, and stopped at the end. A session of Ray
        that the caller has begun is used, and kept.
    workers: units at once. None: as many as the cluster has CPUs, which is read again as it grows and shrinks; as many
        more wait in Ray's queue, which is what makes a cluster grow.

    Every node needs the same Python environment, rhofast in it, and must reach the sources and the output under the
    same paths. What a unit raises ends the run. A node that is lost loses nothing: its units begin again on others. So
    does a unit whose process dies (killed, out of memory), until it has brought down four.
    """

    address: str | None = None
    workers: int | None = None

    def run(
        self, function: Callable[[Unit], Result], units: Iterable[Unit], *, on_ticks: OnTicks | None = None
    ) -> Iterator[Result]:
        """See Executor. Ticks come live, through an actor beside the caller; those of a unit that must begin again are
        taken back. Whatever ends the run early, Ctrl-C too, stops the units under way.

        Raises DependencyError without Ray, and IngestError for a cluster that cannot be reached.
        """
        with _session(self.address, self.workers) as ray:
            yield from _run_on(ray, self.workers, function, units, on_ticks)


@contextmanager
def _session(address: str | None, workers: int | None) -> Iterator[Any]:
    """The connected module `ray`, quiet: nothing collected, and nothing that its processes log is printed here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # of what it prints about lost workers and nodes: all
    try:
        import ray
    except ImportError:
        raise DependencyError("ray is not installed", hint="pip install 'rhofast[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address not in ("auto", "local"):
            _knock(address)
        ray.init(
            address=address,
            num_cpus=workers if address == "local" else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or "no connection"
        raise IngestError(f"Ray at {address}: {reason}", hint=_CONNECTING) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See that something listens there; Ray would try for minutes. Raises OSError or ValueError."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("not of the form host:port")
    socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(slots=True)
class _Attempt(Generic[Unit]):
    """A unit under way. number: of this attempt. deaths: how many processes died of the unit so far."""

    unit: Unit
    number: int
    deaths: int = 0


def _run_on(
    ray: Any,
    workers: int | None,
    function: Callable[[Unit], Result],
    units: Iterable[Unit],
    on_ticks: OnTicks | None,
) -> Iterator[Result]:
    task = ray.remote(_run_attempt).options(num_cpus=1, max_retries=0)  # what dies is counted here
    board = None if on_ticks is None else _start_board(ray)
    source, numbers = iter(units), count()
    under_way: dict[Any, _Attempt[Unit]] = {}
    live: dict[int, tuple[int, int]] = {}
    videos_done = bytes_done = at_once = 0
    looked, exhausted = float("-inf"), False

    def start(unit: Unit, deaths: int) -> None:
        attempt = _Attempt(unit, next(numbers), deaths)
        under_way[task.remote(function, unit, attempt.number, board)] = attempt

    try:
        while under_way or not exhausted:
            if time.monotonic() - looked > _LIVE_S:
                at_once = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                live = _read_board(ray, board, under_way.values(), live)
                looked = time.monotonic()
            while not exhausted and len(under_way) < at_once:
                try:
                    start(next(source), deaths=0)
                except StopIteration:
                    exhausted = True
            ready, _ = ray.wait(list(under_way), timeout=_POLL_S) if under_way else ([], [])
            results: list[Result] = []
            for reference in ready:
                attempt = under_way.pop(reference)
                outcome = _outcome(ray, reference, attempt)
                if outcome is None:
                    start(attempt.unit, attempt.deaths)
                    continue
                results.append(outcome[0])
                videos_done, bytes_done = videos_done + outcome[1], bytes_done + outcome[2]
            if on_ticks is not None:
                now = [live.get(attempt.number, (0, 0)) for attempt in under_way.values()]
                on_ticks(videos_done + sum(pair[0] for pair in now), bytes_done + sum(pair[1] for pair in now))
            yield from results
    finally:
        _cancel(ray, list(under_way))


def _outcome(ray: Any, reference: Any, attempt: _Attempt[Unit]) -> Any:
    """What an attempt that ended returned; None if it was lost, so that its unit must begin again. Raises what the unit
    raised, and IngestError for a unit that brings down every process."""
    lost = ray.exceptions
    try:
        return ray.get(reference)
    except (lost.NodeDiedError, lost.ObjectLostError):
        return None
    except (lost.WorkerCrashedError, lost.OutOfMemoryError):
        attempt.deaths += 1
        if attempt.deaths < _PROCESSES_A_UNIT_MAY_END:
            return None
        unit = getattr(attempt.unit, "name", None) or reprlib.repr(attempt.unit)
        message = f"{unit}: {attempt.deaths} processes died of it, one after another (out of memory, or killed)"
        raise IngestError(message, hint=_AGAIN) from None
    except lost.RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, lost.RayError):
            raise IngestError(f"Ray: {str(cause).strip()}", hint=_AGAIN) from None
        raise cause from error  # which tells where it happened


def _run_attempt(
    function: Callable[[Unit], Result], unit: Unit, number: int, board: Any | None
) -> tuple[Result, int, int]:
    """On a node: the result of a unit, how many videos it ticked off, and their bytes."""
    global _on_tick
    videos = total = 0
    shown = time.monotonic()

    def count_one(num_bytes: int) -> None:
        nonlocal videos, total, shown
        videos, total = videos + 1, total + num_bytes
        if board is not None and time.monotonic() - shown > _LIVE_S:
            board.write.remote(number, videos, total)
            shown = time.monotonic()

    _on_tick = count_one
    return function(unit), videos, total


def _cancel(ray: Any, references: list[Any]) -> None:
    """Stop these tasks: politely, then for good."""
    for reference in references:
        ray.cancel(reference)
    if references:
        _, left = ray.wait(references, num_returns=len(references), timeout=_GRACE_S)
        for reference in left:
            ray.cancel(reference, force=True)


class _Board:
    """An actor: how far the attempts are."""

    def __init__(self) -> None:
        self._ticks: dict[int, tuple[int, int]] = {}

    def write(self, attempt: int, videos: int, num_bytes: int) -> None:
        self._ticks[attempt] = (videos, num_bytes)

    def read(self, attempts: list[int]) -> dict[int, tuple[int, int]]:
        """Of these attempts; the others are forgotten."""
        self._ticks = {number: self._ticks[number] for number in attempts if number in self._ticks}
        return self._ticks


def _start_board(ray: Any) -> Any:
    """Beside the caller, so that no other node's loss takes it along."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _read_board(
    ray: Any, board: Any | None, attempts: Iterable[_Attempt[Unit]], before: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """What it says now, or `before` while it says nothing: progress must not hold up the work."""
    if board is None:
        return before
    try:
        return dict(ray.get(board.read.remote([attempt.number for attempt in attempts]), timeout=_POLL_S))
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        return before
