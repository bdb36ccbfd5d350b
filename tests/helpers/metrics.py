"""What the numbers in a run's metrics are."""

from __future__ import annotations

from rhofast.training.metrics import METRICS, Metric


def find_metric(name: str) -> Metric | None:
    """Return what is known of the number `name`, or None for a number that a method of a user's own adds."""
    stem = name.rstrip("0123456789")
    return METRICS.get(name) or METRICS.get(f"{stem}{{n}}")
