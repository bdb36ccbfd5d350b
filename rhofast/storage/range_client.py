"""Ask a store for spans of its files, many at once, and bear what stores do: late, wrong, refused, or no answers.

    fetch --> queue, first in first out --limits on requests and bytes--> requests of one event loop --> Fetch

All requests are made from one thread, so that how many are under way does not depend on who waits for them.
What takes far longer than usual is asked for again, and the first answer counts. A fault that may pass is waited for.
The spans of a fetch are asked for together, which costs least, but for a while after a fault one by one: what comes is
kept then, so that a store that refuses some requests all the time still gives all spans. How long a fault is waited for
depends on whose it is:

- An outage is the fault of the store or of the way to it: nothing is answered, or it asks for patience. A fetch
  outlives it up to `patience_s`, which is told (outages.py), and then fails as `MachineError`, which says nothing
  about the data.
- A file is at fault if it is not there, or fails again and again while the store gives other bytes. The fetch then
  fails as `RequestError`, and others go on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rhofast.errors import MachineError
from rhofast.storage import loop_thread
from rhofast.storage.hedge import Hedge
from rhofast.storage.network import RetryPolicy
from rhofast.storage.outages import OUTAGE_HINT, Wait
from rhofast.storage.request_error import Kind, RequestError, short_answer
from rhofast.storage.store import Span, StoreFolder

_MIN_RATE = 100_000  # bytes per second below which an answer is too slow
_CAREFUL = 256  # fetches after a fault whose spans are asked for one by one
_OF_THE_FILE = 0.25  # share of the patience after which a fault that does not pass is the file's
_RENEWAL_S = 5.0


class StoppedFetchError(Exception):
    """The fetch was stopped, because its client is closing."""


@dataclass(frozen=True, slots=True)
class RangeLimits:
    """Limits of a client.

    Attributes:
        requests: Requests that are under way at the same time.
        num_bytes: Bytes that are under way, or have come and were not released yet.
        patience_s: Seconds for which an outage is waited for.
    """

    requests: int = 64
    num_bytes: int = 1 << 28
    patience_s: float = 600.0


@dataclass(slots=True)
class RangeCounts:
    """What a client has asked for.

    Attributes:
        requests: Requests, with those that were made again.
        num_bytes: Bytes that came.
        retried: Fetches that were made again after a fault.
        hedged: Asked again because the answer was late: a span, or the spans of a fetch.
    """

    requests: int = 0
    num_bytes: int = 0
    retried: int = 0
    hedged: int = 0


class Fetch:
    """Spans that are under way, or have come.

    Attributes:
        name: Name of the file.
        spans: The spans.
        num_bytes: Their bytes together.
        state: What the client counts it in.
    """

    __slots__ = ("_contents", "_released", "name", "num_bytes", "spans", "state")

    def __init__(self, name: str, spans: Sequence[Span], release: Callable[[Fetch], None]) -> None:
        """Create a fetch that is not under way yet."""
        self.name, self.spans = name, spans
        self.num_bytes = sum(size for _, size in spans)
        self.state: object = None  # of the client, when it began
        self._contents: Future[list[memoryview]] = Future()
        self._released: Callable[[Fetch], None] | None = release

    def contents(self) -> list[memoryview]:
        """Wait for the bytes and return them, one piece per span.

        Raises:
            RequestError: The file cannot be read.
            MachineError: The store does not answer, which says nothing about the file.
            StoppedFetchError: The client was stopped.
        """
        return self._contents.result()

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function when the fetch has ended, well or not; in a thread that must not be held up.

        The fetch forgets the function then: a future keeps its callbacks, and the function may know the fetch, which
        would keep all that the function knows until the next collection of garbage.
        """
        calls = [call]
        self._contents.add_done_callback(lambda _: calls.pop()())

    def release(self) -> None:
        """Give the bytes back to the limit of the client; it may be called twice."""
        release, self._released = self._released, None
        if release is not None:
            release(self)

    def end(self, result: list[memoryview] | BaseException) -> None:
        """Hand over the bytes, or why there are none."""
        if self._contents.done():
            return
        if isinstance(result, BaseException):
            self._contents.set_exception(result)
        else:
            self._contents.set_result(result)


@dataclass(slots=True)
class _State:
    """What the loop's thread alone knows."""

    waiting: deque[Fetch] = field(default_factory=deque)
    tasks: dict[Fetch, asyncio.Task[None]] = field(default_factory=dict)
    requests: int = 0
    num_bytes: int = 0
    careful: int = 0  # fetches to come whose spans are asked for one by one
    failing: set[str] = field(default_factory=set)  # files that fail while the store gives others
    renewed: float = float("-inf")


class RangeClient:
    """Fetches spans of a folder's files. Thread-safe.

    Args:
        folder: The folder.
        limits: Limits on what is under way.
        policy: How often and how long a span is asked for.
        probe: A small file of the folder that is known to be there; it tells an outage from a fault of one file.

    Attributes:
        counts: What was asked for so far.
        fault: What is wrong with the store, while it does not answer.
    """

    def __init__(self, folder: StoreFolder, limits: RangeLimits, policy: RetryPolicy, probe: str) -> None:
        self.counts, self.fault = RangeCounts(), ""
        self._folder, self._limits, self._policy, self._probe = folder, limits, policy, probe
        self._state, self._hedge = _State(), Hedge()

    def fetch(self, name: str, spans: Sequence[Span]) -> Fetch:
        """Ask for spans of a file; they are on their way when this returns, or wait for others.

        Args:
            name: Name of the file in the folder.
            spans: First byte and size of each span, at least one.
        """
        fetch = Fetch(name, spans, self._release)
        loop_thread.call(self._enter, fetch)
        return fetch

    def stop(self) -> None:
        """End all fetches, as `StoppedFetchError` those that have not ended. The client can still be used."""
        loop_thread.call(self._end_all)

    def _release(self, fetch: Fetch) -> None:
        loop_thread.call(self._leave, fetch)

    # ---- in the thread of the loop ----

    def _enter(self, fetch: Fetch) -> None:
        self._state.waiting.append(fetch)
        self._admit()

    def _leave(self, fetch: Fetch) -> None:
        if fetch.state is self._state:
            self._state.num_bytes -= fetch.num_bytes
            self._admit()

    def _admit(self) -> None:
        """Begin the fetches that have waited longest, as far as the limits allow; one alone is always allowed."""
        state, limits = self._state, self._limits
        while state.waiting:
            fetch = state.waiting[0]
            fits = not state.requests or state.requests + len(fetch.spans) <= limits.requests
            # What has come is being read and will be released, so this wait ends.
            fits &= not state.num_bytes or state.num_bytes + fetch.num_bytes <= limits.num_bytes
            if not fits:
                return
            state.waiting.popleft()
            state.requests += len(fetch.spans)
            state.num_bytes += fetch.num_bytes
            fetch.state = state
            state.tasks[fetch] = asyncio.get_running_loop().create_task(self._work(fetch))

    async def _work(self, fetch: Fetch) -> None:
        result: list[memoryview] | BaseException
        try:
            result = await self._until_it_ends(fetch)
        except asyncio.CancelledError:
            result = StoppedFetchError(f"{self._folder.url}/{fetch.name}: stopped")
        except Exception as error:  # noqa: BLE001 - whoever waits for the fetch must get it
            result = error
        state = self._state
        if fetch.state is state:
            state.requests -= len(fetch.spans)
            del state.tasks[fetch]
        fetch.end(result)
        if isinstance(result, BaseException):
            fetch.release()
        self._admit()

    async def _until_it_ends(self, fetch: Fetch) -> list[memoryview]:
        """Ask for a fetch until it comes, or a fault is there to stay."""
        came: dict[int, memoryview] = {}  # by the number of the span
        wait: Wait | None = None
        suspected = False
        for attempt in itertools.count():
            asked, before = time.monotonic(), len(came)
            fault = await self._ask_for_rest(fetch, came, attempt)
            if wait is not None and len(came) > before:
                wait.ends()
                wait = None
            if fault is None:
                self.fault = ""
                return [came[number] for number in range(len(fetch.spans))]
            self._state.careful = _CAREFUL
            wait = wait or Wait(self._folder.url, self._limits.patience_s, began=asked)
            # An outage may have ended between the fault and the look at the store: the file has to fail once more.
            before_too, suspected = suspected, await self._is_suspect(fault, fetch, attempt, wait)
            if fault.kind in (Kind.MISSING, Kind.FINAL) or (before_too and suspected):
                self._state.failing.add(fetch.name)
                wait.ends()
                raise fault
            waited = wait.seconds
            if waited >= self._limits.patience_s:
                raise MachineError(
                    f"{self._folder.url}/{fetch.name}: {fault.text}, for {waited:.0f} s", hint=OUTAGE_HINT
                )
            wait.goes_on(fault.text)
            if fault.kind is Kind.DENIED:
                self._renew()
            self.counts.retried, self.fault = self.counts.retried + 1, fault.text
            pause = self._policy.pause(attempt, fault.wait_s)
            await asyncio.sleep(min(pause, max(0.0, self._limits.patience_s - waited)))
        raise AssertionError("the loop ends by itself")

    async def _ask_for_rest(self, fetch: Fetch, came: dict[int, memoryview], attempt: int) -> RequestError | None:
        """Ask for the spans of a fetch that have not come, and add them; return a fault, if there is one."""
        missing = [number for number in range(len(fetch.spans)) if number not in came]
        one_by_one = attempt > 0 or self._state.careful > 0
        self._state.careful = max(0, self._state.careful - 1)
        parts = [[number] for number in missing] if one_by_one else [missing]
        asked = (self._ask_and_hedge(fetch.name, [fetch.spans[number] for number in part]) for part in parts)
        faults: list[RequestError] = []
        for part, answer in zip(parts, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, RequestError):
                faults.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                came.update(zip(part, answer, strict=True))
        return next(iter(faults), None)

    async def _is_suspect(self, fault: RequestError, fetch: Fetch, attempt: int, wait: Wait) -> bool:
        """Return whether a fault seems to say something about the file, and not about the store."""
        if fault.kind in (Kind.MISSING, Kind.FINAL, Kind.BUSY, Kind.NO_RANGES):
            return False
        if fault.kind is Kind.DENIED:  # the first time, the credentials may have expired
            return attempt > 0 and await self._answers()
        if attempt + 1 < self._policy.attempts:
            return False
        # While a store has trouble, many requests fail in a row. A file that failed for so long once is known to.
        long = wait.seconds >= self._limits.patience_s * _OF_THE_FILE
        return (long or fetch.name in self._state.failing) and await self._answers()

    async def _answers(self) -> bool:
        """Return whether the store gives the file that is known to be there."""
        try:
            await asyncio.wait_for(self._folder.spans(self._probe, [(0, 1)]), self._policy.timeout_s)
        except (RequestError, TimeoutError):
            return False
        return True

    def _renew(self) -> None:
        """Have the folder find credentials anew, now and then: fetches are refused by the dozen."""
        now = time.monotonic()
        if now - self._state.renewed >= _RENEWAL_S:
            self._state.renewed = now
            self._folder.renew()

    async def _ask_and_hedge(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Ask for spans, and again while they are late: for each by itself, since it is not known which ones are."""
        limit = self._policy.timeout_s + sum(size for _, size in spans) / _MIN_RATE

        async def ask_again() -> list[memoryview]:
            self.counts.hedged += 1
            if len(spans) == 1:
                return await self._ask(name, spans)
            self._state.careful = _CAREFUL
            found = await asyncio.gather(*(self._ask_and_hedge(name, [span]) for span in spans))
            return [content for contents in found for content in contents]

        try:
            return await self._hedge.first_answer(lambda: self._ask(name, spans), ask_again, limit)
        except TimeoutError:
            raise RequestError(Kind.PASSING, f"timed out: nothing within {limit:.0f} s") from None

    async def _ask(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Ask once."""
        self.counts.requests += len(spans)
        contents = await self._folder.spans(name, spans)
        self.counts.num_bytes += sum(len(content) for content in contents)
        for content, (_, size) in zip(contents, spans, strict=True):
            if len(content) != size:
                raise short_answer(len(content), size)
        return contents

    def _end_all(self) -> None:
        state, self._state = self._state, _State()  # what was not released is forgotten
        for fetch in (*state.waiting, *state.tasks):
            fetch.end(StoppedFetchError(f"{self._folder.url}/{fetch.name}: stopped"))
        for task in state.tasks.values():
            task.cancel()
