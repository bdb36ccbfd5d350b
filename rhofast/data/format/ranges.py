"""Read spans of the tars of a remote set by range requests: near ones at once, and all of them ahead of their use.

    spans of a sample --join_spans--> spans of requests --RangeClient--> bytes --views--> spans of the sample

Two spans travel as one if the bytes between them cost less than a request would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rhofast.errors import SampleError
from rhofast.storage.network import RetryPolicy
from rhofast.storage.range_client import Fetch, RangeClient, RangeCounts, RangeLimits
from rhofast.storage.request_error import RequestError
from rhofast.storage.store import Span, StoreFolder

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeOptions:
    """How spans are requested.

    Attributes:
        gap: Bytes between two spans up to which they are requested as one.
        requests: Requests that are under way at the same time.
        patience_s: Seconds for which an outage of the store is waited for.
    """

    gap: int
    requests: int
    patience_s: float


def join_spans(spans: Sequence[Span], gap: int) -> tuple[list[Span], list[tuple[int, int]]]:
    """Join spans that are near to each other.

    Args:
        spans: First byte and size of each span, ascending, none overlapping.
        gap: Bytes between two spans up to which they are joined.

    Returns:
        The joined spans; for each of `spans`, the number of the joined one that holds it and its first byte therein.
    """
    joined: list[Span] = []
    places: list[tuple[int, int]] = []
    for begin, size in spans:
        if joined and begin - sum(joined[-1]) <= gap:
            first = joined[-1][0]
            joined[-1] = first, begin + size - first
        else:
            joined.append((begin, size))
        places.append((len(joined) - 1, begin - joined[-1][0]))
    return joined, places


class UnavailableError(SampleError):
    """The store does not have a piece of a tar, or refuses it, and another attempt cannot help."""


class SpanFetch:
    """Spans of one tar that are under way.

    Attributes:
        num_bytes: Bytes that travel for them.
    """

    def __init__(self, fetch: Fetch, spans: Sequence[Span], places: Sequence[tuple[int, int]], where: str) -> None:
        """Wrap a fetch of joined spans; `where` is the address of the set."""
        self._fetch, self._spans, self._places, self._where = fetch, spans, places, where
        self.num_bytes = fetch.num_bytes
        self.when_done, self.release = fetch.when_done, fetch.release

    def contents(self, key: str) -> list[memoryview]:
        """Wait for the bytes and return them, one piece per span.

        Args:
            key: Key of the sample, for errors.

        Raises:
            UnavailableError: The tar, or this part of it, cannot be had.
            MachineError: The store does not answer, which says nothing about the sample.
            StoppedFetchError: The set is being closed.
        """
        try:
            joined = self._fetch.contents()
        except RequestError as fault:
            fault.with_traceback(None)  # it knows this frame, and the fetch keeps it
            name = self._fetch.name
            raise UnavailableError(
                f"{self._where}/{name}: {fault.text}", shard=name, key=key, offset=self._spans[0][0]
            ) from None
        return [
            joined[number][begin : begin + size]
            for (number, begin), (_, size) in zip(self._places, self._spans, strict=True)
        ]


class RangeSource:
    """Requests spans of the tars of a remote set. Thread-safe.

    Args:
        folder: The remote folder.
        options: How spans are requested.
        policy: How often and how long a span is asked for.
        probe: Name of a file that is known to be there.
    """

    def __init__(self, folder: StoreFolder, options: RangeOptions, policy: RetryPolicy, probe: str) -> None:
        # A whole training waits for one piece, so pauses are shorter than those between downloads of files.
        policy = replace(
            policy,
            first_pause_s=min(policy.first_pause_s, _FIRST_PAUSE_S),
            max_pause_s=min(policy.max_pause_s, _MAX_PAUSE_S),
        )
        limits = RangeLimits(requests=options.requests, patience_s=options.patience_s)
        self._client, self._gap, self._where = RangeClient(folder, limits, policy, probe), options.gap, folder.url

    @property
    def counts(self) -> RangeCounts:
        """What was asked for so far."""
        return self._client.counts

    @property
    def fault(self) -> str:
        """Why the store did not answer the last time that it was asked; empty if it did."""
        return self._client.fault

    def fetch(self, name: str, spans: Sequence[Span]) -> SpanFetch:
        """Begin to fetch spans, ascending, of a tar."""
        joined, places = join_spans(spans, self._gap)
        return SpanFetch(self._client.fetch(name, joined), spans, places, self._where)

    def stop(self) -> None:
        """End what is under way; what was fetched and not used is dropped."""
        self._client.stop()
