"""Checkpoints against failures: how often to save, and how long a run with random failures takes.

Failures are independent and `mtbf` seconds apart on average. Each costs the work since the last checkpoint, and a
restart. Sources: Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22(3), 2006.
"""

from __future__ import annotations

import math


def young_interval(stall: float, mtbf: float) -> float:
    """Return Young's time between checkpoints in seconds, sqrt(2 stall mtbf).

    Args:
        stall: Seconds that a checkpoint costs.
        mtbf: Mean seconds between failures.

    Returns:
        Seconds between checkpoints.
    """
    return math.sqrt(2 * stall * mtbf)


def daly_interval(stall: float, mtbf: float) -> float:
    """Return Daly's better approximation of the optimal time between checkpoints (eq. 37).

    Args:
        stall: Seconds that a checkpoint costs.
        mtbf: Mean seconds between failures.

    Returns:
        Seconds of work between checkpoints.
    """
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return young_interval(stall, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def expected_seconds(work: float, *, interval: float, stall: float, restart: float, mtbf: float) -> float:
    """Return the expected duration of training with random failures, also during a restart (Daly, eq. 20).

        M e^(R/M) (e^((t + d)/M) - 1) work / t

    Args:
        work: Seconds of training without failures.
        interval: Seconds of work between checkpoints (t).
        stall: Seconds that a checkpoint costs (d).
        restart: Seconds from a failure to the next step (R).
        mtbf: Mean seconds between failures (M).

    Returns:
        Seconds; inf where training never finishes.
    """
    try:
        return mtbf * math.exp(restart / mtbf) * math.expm1((interval + stall) / mtbf) * work / interval
    except OverflowError:
        return math.inf
