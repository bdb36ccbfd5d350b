"""Run jobs on the nodes of a Ray cluster.

    caller --jobs--> Ray --attempts--> nodes --results--> caller
                                         nodes --progress--> actor beside the caller

Ray decides which node runs a job. This module decides what happens to jobs whose node or process is lost: they are
started again. It is the only module that imports ray.
"""

from __future__ import annotations

import logging
import os
import reprlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic

from rhofast.errors import DependencyError, IngestError
from rhofast.ingest.executors import POLL_S, RESUME_HINT, JobT, OnTicks, ResultT, set_tick_handler
from rhofast.storage.outages import set_outage_handler, tell_outage

_LIVE_S = 1.0  # between two reads of the running jobs' progress and of the cluster's size
_GRACE_S = 2.0  # for running jobs to clean up after they are canceled
_MAX_DEATHS = 4  # processes that one job may bring down
_CONNECT_HINT = (
    "use the address that `ray start --head` printed and the same versions of Ray and Python on both sides; "
    "set RAY_AUTH_MODE=token if the cluster uses tokens"
)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Runs jobs on the nodes of a Ray cluster, one CPU per job.

    Every node needs the same Python environment, with rhofast in it, and must reach the sources and the output under
    the same paths. An exception in a job ends the run. Losing a node loses no work: its jobs are started again on other
    nodes. A job whose process dies (killed, out of memory) is started again too, until it has brought down four.

    Attributes:
        address: `host:port` of the head node, or "auto" for the cluster that this machine belongs to. None reads the
            environment variable RAY_ADDRESS; if it is not set, Ray is started on this machine and stopped at the end.
            A Ray session that the caller has begun is used and left running.
        workers: Jobs that run at once. None: as many as the cluster has CPUs, a number that is read again as the
            cluster grows and shrinks; as many more wait in Ray's queue, which is what makes a cluster grow.
    """

    address: str | None = None
    workers: int | None = None

    def run(
        self, function: Callable[[JobT], ResultT], jobs: Iterable[JobT], *, on_ticks: OnTicks | None = None
    ) -> Iterator[ResultT]:
        """Run all jobs and yield their results as they are ready; see Executor.run.

        Progress is reported live, through a Ray actor beside the caller; the videos of a job that is started again are
        subtracted. If the run ends early, by Ctrl-C too, the running jobs are stopped.

        Args:
            function: Runs one job; it must be picklable.
            jobs: The jobs; they are drawn as they are needed.
            on_ticks: Called from time to time with (videos done, bytes of their sources) so far.

        Returns:
            An iterator over the results, in the order in which they are ready.

        Raises:
            Exception: Whatever a job raised.
            DependencyError: Ray is not installed.
            IngestError: The cluster cannot be reached, or one job has brought down four processes.
        """
        with _session(self.address, self.workers) as ray:
            yield from _run_on(ray, self.workers, function, jobs, on_ticks)


@contextmanager
def _session(address: str | None, workers: int | None) -> Iterator[Any]:
    """Yield the module `ray`, connected and quiet: no usage statistics, and no logs of its processes printed here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # skip everything it prints on lost workers
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
            _check_reachable(address)
        ray.init(
            address=address,
            num_cpus=workers if address == "local" else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or "no connection"
        raise IngestError(f"Ray at {address}: {reason}", hint=_CONNECT_HINT) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError unless something listens at the address; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("not of the form host:port")
    socket.create_connection((host, int(port)), timeout=10).close()


@dataclass(slots=True)
class _Attempt(Generic[JobT]):
    """One start of a job.

    Attributes:
        job: The job.
        number: Identifies this attempt.
        deaths: How many processes have died of the job so far.
    """

    job: JobT
    number: int
    deaths: int = 0


def _run_on(
    ray: Any,
    workers: int | None,
    function: Callable[[JobT], ResultT],
    jobs: Iterable[JobT],
    on_ticks: OnTicks | None,
) -> Iterator[ResultT]:
    task = ray.remote(_run_attempt).options(num_cpus=1, max_retries=0)  # deaths are counted here
    actor = None if on_ticks is None else _start_progress_actor(ray)
    source, numbers = iter(jobs), count()
    running: dict[Any, _Attempt[JobT]] = {}
    live: dict[int, tuple[int, int]] = {}
    videos_done = bytes_done = capacity = seen = 0
    last_read, exhausted = float("-inf"), False

    def start(job: JobT, deaths: int) -> None:
        attempt = _Attempt(job, next(numbers), deaths)
        running[task.remote(function, job, attempt.number, actor)] = attempt

    try:
        while running or not exhausted:
            if time.monotonic() - last_read > _LIVE_S:
                capacity = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                live, seen = _read_progress(ray, actor, running.values(), live, seen)
                last_read = time.monotonic()
            while not exhausted and len(running) < capacity:
                try:
                    start(next(source), deaths=0)
                except StopIteration:
                    exhausted = True
            ready, _ = ray.wait(list(running), timeout=POLL_S) if running else ([], [])
            results: list[ResultT] = []
            for reference in ready:
                attempt = running.pop(reference)
                outcome = _outcome(ray, reference, attempt)
                if outcome is None:
                    start(attempt.job, attempt.deaths)
                    continue
                results.append(outcome[0])
                videos_done, bytes_done = videos_done + outcome[1], bytes_done + outcome[2]
            if on_ticks is not None:
                now = [live.get(attempt.number, (0, 0)) for attempt in running.values()]
                on_ticks(videos_done + sum(pair[0] for pair in now), bytes_done + sum(pair[1] for pair in now))
            yield from results
        _read_progress(ray, actor, (), live, seen)  # the last news
    finally:
        _cancel(ray, list(running))


def _outcome(ray: Any, reference: Any, attempt: _Attempt[JobT]) -> Any:
    """Return what an attempt returned, or None if it was lost and its job must be started again.

    Raises:
        Exception: Whatever the job raised.
        IngestError: The job has brought down _MAX_DEATHS processes.
    """
    errors = ray.exceptions
    try:
        return ray.get(reference)
    except (errors.NodeDiedError, errors.ObjectLostError):
        return None
    except (errors.WorkerCrashedError, errors.OutOfMemoryError):
        attempt.deaths += 1
        if attempt.deaths < _MAX_DEATHS:
            return None
        job = getattr(attempt.job, "name", None) or reprlib.repr(attempt.job)
        message = f"{job}: {attempt.deaths} processes in a row died while running this job (out of memory, or killed)"
        raise IngestError(message, hint=RESUME_HINT) from None
    except errors.RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, errors.RayError):
            raise IngestError(f"Ray: {str(cause).strip()}", hint=RESUME_HINT) from None
        raise cause from error  # the Ray error shows where it happened


def _run_attempt(
    function: Callable[[JobT], ResultT], job: JobT, number: int, actor: Any | None
) -> tuple[ResultT, int, int]:
    """Run a job on a node; return its result, how many videos it finished, and the bytes of their sources."""
    videos = total = 0
    last_sent = time.monotonic()

    def count_one(num_bytes: int) -> None:
        nonlocal videos, total, last_sent
        videos, total = videos + 1, total + num_bytes
        if actor is not None and time.monotonic() - last_sent > _LIVE_S:
            actor.write.remote(number, videos, total)
            last_sent = time.monotonic()

    set_tick_handler(count_one)
    set_outage_handler(None if actor is None else lambda *told: actor.tell.remote(told))
    return function(job), videos, total


def _cancel(ray: Any, references: list[Any]) -> None:
    """Cancel these tasks, and kill those that have not ended after _GRACE_S."""
    for reference in references:
        ray.cancel(reference)
    if references:
        _, left = ray.wait(references, num_returns=len(references), timeout=_GRACE_S)
        for reference in left:
            ray.cancel(reference, force=True)


class _ProgressActor:
    """A Ray actor that knows the progress of all running attempts, and what they have told of outages."""

    def __init__(self) -> None:
        self._progress: dict[int, tuple[int, int]] = {}
        self._told: list[tuple[str, str, float]] = []
        self._first = 0

    def tell(self, news: tuple[str, str, float]) -> None:
        self._told.append(news)

    def news(self, seen: int) -> list[tuple[str, str, float]]:
        """Return what was told after the first `seen` news, which have arrived and are forgotten."""
        del self._told[: seen - self._first]
        self._first = seen
        return list(self._told)

    def write(self, attempt: int, videos: int, num_bytes: int) -> None:
        self._progress[attempt] = (videos, num_bytes)

    def read(self, attempts: list[int]) -> dict[int, tuple[int, int]]:
        """Return (videos, bytes) by attempt for these attempts, and forget all others."""
        self._progress = {number: self._progress[number] for number in attempts if number in self._progress}
        return self._progress


def _start_progress_actor(ray: Any) -> Any:
    """Start the actor on the caller's node, so that losing another node does not lose it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_ProgressActor).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _read_progress(
    ray: Any, actor: Any | None, attempts: Iterable[_Attempt[JobT]], previous: dict[int, tuple[int, int]], seen: int
) -> tuple[dict[int, tuple[int, int]], int]:
    """Return the actor's progress, and how many news have arrived; what is new of them is told.

    If it does not answer, these are `previous` and `seen`: progress must not hold up the work.
    """
    if actor is None:
        return previous, seen
    asked = actor.read.remote([attempt.number for attempt in attempts]), actor.news.remote(seen)
    try:
        progress, told = ray.get(list(asked), timeout=POLL_S)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        return previous, seen
    for news in told:
        tell_outage(*news)
    return dict(progress), seen + len(told)
