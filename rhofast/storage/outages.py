"""Who wants to hear that a store is waited for: without such news a long wait looks like a hang.

Requests are made in processes of processes. Each of them passes its news on to the one that began it, by a handler of
its own, and the first of them prints it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_S = 10.0  # seconds of waiting after which it is told
OUTAGE_HINT = "nothing is wrong with the data: when it answers, run the same command again (a training with --resume)"

Tell = Callable[[str, str, float], None]
_handler: Tell | None = None


def set_outage_handler(handler: Tell | None) -> None:
    """Make `tell_outage` call `handler` from now on in this process, in any thread; None: nobody listens."""
    global _handler
    _handler = handler


def tell_outage(place: str, fault: str, limit_s: float = 0.0) -> None:
    """Tell that a store is waited for, or that it answers again.

    Args:
        place: The store, such as `s3://bucket`.
        fault: What is wrong with it; empty if it answers again.
        limit_s: Seconds for which it is waited for.
    """
    if _handler is not None:
        _handler(place, fault, limit_s)


class Wait:
    """A wait for a store, which is told if it is long.

    Args:
        address: An address of the store.
        limit_s: Seconds for which it is waited for.
        began: When the wait began, of the monotonic clock; None: now.

    Attributes:
        place: The store, such as `s3://bucket`.
        began: When the wait began.
    """

    def __init__(self, address: str, limit_s: float, *, began: float | None = None) -> None:
        self.place = "/".join(address.split("/", 3)[:3])
        self.began, self._limit_s, self._is_told = time.monotonic() if began is None else began, limit_s, False

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def goes_on(self, fault: str) -> None:
        """Tell, once, that the store is still waited for, and what is wrong with it."""
        if not self._is_told and self.seconds >= FIRST_S:
            tell_outage(self.place, fault, self._limit_s)
            self._is_told = True

    def ends(self) -> None:
        """Tell that the store answers again, if it was told that it did not."""
        if self._is_told:
            tell_outage(self.place, "")
