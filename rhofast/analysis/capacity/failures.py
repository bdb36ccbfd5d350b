"""Checkpoints against failures: how often to save, and how long a run takes that is interrupted at random. Pure.

Failures come independently, `mtbf` seconds apart in the mean; each costs the work since the last checkpoint, and a
restart. Sources: Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22(3), 2006.
"""

from __future__ import annotations

import math


def young_interval(stall: float, mtbf: float) -> float:
    """Young's time between checkpoints, sqrt(2 stall mtbf), seconds. stall: what one costs."""
    return math.sqrt(2 * stall * mtbf)


def daly_interval(stall: float, mtbf: float) -> float:
    """Daly's better approximation, seconds of work between checkpoints (eq. 37)."""
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return young_interval(stall, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def expected_seconds(work: float, *, interval: float, stall: float, restart: float, mtbf: float) -> float:
    """How long `work` seconds of training take where failures come at random, `mtbf` seconds apart in the mean, also
    during a restart (Daly, eq. 20): M e^(R/M) (e^((t + d)/M) - 1) work / t. All in seconds; inf where it never ends."""
    try:
        return mtbf * math.exp(restart / mtbf) * math.expm1((interval + stall) / mtbf) * work / interval
    except OverflowError:
        return math.inf
