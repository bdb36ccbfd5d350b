"""Say, while a consumer waits for a batch, that a store does not answer, and why: otherwise a run seems to hang."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rhofast.data.format.dataset import ShardSet

_FIRST_S, _AGAIN_S = 10.0, 60.0  # seconds of waiting after which it is said, and said again


class OutageNews:
    """Tells of stores that do not answer.

    Args:
        sets: The shard sets.
        timeout_s: Limit on a wait, in seconds, for the text.
    """

    def __init__(self, sets: Sequence[ShardSet], timeout_s: float) -> None:
        self._sets, self._timeout_s = sets, timeout_s
        self._tell: Callable[..., None] | None = None
        self._told, self._waited_s = 0, 0.0

    @contextmanager
    def told_to(self, tell: Callable[..., None]) -> Iterator[None]:
        """Tell a function, within this context, in which the consumer waits for a batch; it gets a line as `text`."""
        self._tell, self._told, self._waited_s = tell, 0, 0.0
        try:
            yield
        finally:
            self._tell = None
        if self._told:
            tell(text=f"the batch is there, after {self._waited_s:.0f} s")

    def check(self, waited_s: float) -> None:
        """Tell what there is to tell. It is called from time to time, in the thread of the consumer.

        Args:
            waited_s: Seconds for which the consumer has waited.
        """
        self._waited_s = waited_s
        if self._tell is None or waited_s < _FIRST_S + _AGAIN_S * self._told:
            return
        faults = {shards.where: shards.fault for shards in self._sets if shards.fault}
        for where, fault in faults.items():
            limit = f"data.timeout_s={self._timeout_s:g}"
            self._tell(text=f"waiting for {where}: {fault}; no batch for {waited_s:.0f} s ({limit} limits the wait)")
        self._told += bool(faults)
