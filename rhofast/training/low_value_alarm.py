"""An alarm for a number that stays low, as the spread of embeddings does when they collapse."""

from __future__ import annotations

import math


class LowValueAlarm:
    """An alarm for a value that stays low; it rings once, and again only after the value was above its level."""

    def __init__(self, level: float, windows: int) -> None:
        """Set the alarm.

        Args:
            level: A value below it is low.
            windows: So many low values in a row ring the alarm.
        """
        self._level, self._windows, self._low = level, windows, 0

    def update(self, value: float) -> bool:
        """Take the next value and return whether the alarm rings; a value that is not finite is ignored."""
        if not math.isfinite(value):
            return False
        self._low = self._low + 1 if value < self._level else 0
        return self._low == self._windows
