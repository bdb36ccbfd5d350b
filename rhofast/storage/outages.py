"""Who wants to hear that a store is waited for: without such news a long wait looks like a hang.

Requests are made in processes of processes. Each of them passes its news on to the one that began it, by a handler of
its own, and the first of them prints it.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 10.0  # seconds of waiting after which it is told

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
