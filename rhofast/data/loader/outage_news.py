"""Say, while a consumer waits for a batch, that a store does not answer, and why: otherwise a run seems to hang.

For how long it did not is counted, since such a wait says nothing about how fast the storage is.
"""

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

    Attributes:
        outage_s: Seconds for which the consumer has waited while a store did not answer, to about a second per wait.
    """

    def __init__(self, sets: Sequence[ShardSet], timeout_s: float) -> None:
        self._sets, self._timeout_s = sets, timeout_s
        self._tell: Callable[..., None] | None = None
        self._told, self._waited_s = 0, 0.0
        self.outage_s = self._checked_s = 0.0

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
        faults = {shards.where: shards.fault for shards in self._sets if shards.fault}
        since = waited_s - self._checked_s if waited_s > self._checked_s else waited_s  # of this wait, or of the last
        self._waited_s = self._checked_s = waited_s
        self.outage_s += since if faults else 0.0
        if self._tell is None or waited_s < _FIRST_S + _AGAIN_S * self._told:
            return
        for where, fault in faults.items():
            limit = f"data.timeout_s={self._timeout_s:g}"
            self._tell(text=f"waiting for {where}: {fault}; no batch for {waited_s:.0f} s ({limit} limits the wait)")
        self._told += bool(faults)
