"""Draw start positions of clips, uniformly among all that keep to limits on gaps and span."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_NOISE = 1e-9  # lower bound of a divisor
_HALVINGS = 40

Float = npt.NDArray[np.floating[Any]]
Int = npt.NDArray[np.int64]


def spaced_starts(draws: Float, room: Int, *, least: Int, most: Int | None, widest: Int | None) -> Int:
    """Draw n ascending starts in [0, room] per sample, under limits on their distances.

    The starts are uniform over all placements that keep to every limit. They are drawn as real numbers and rounded down
    to whole ones, which keeps to whole limits. If there is no such placement, `most` yields to `least`, and `least`
    yields to `widest` and `room`.

    Args:
        draws: f[B, n], uniform in [0, 1), n > 1.
        room: Largest start, i64[B].
        least: Smallest distance of neighboring starts, i64[B].
        most: Largest distance of neighboring starts, i64[B]; None for no limit.
        widest: Largest distance of the first and the last start, i64[B]; None for no limit.

    Returns:
        i64[B, n], ascending.
    """
    gaps = draws.shape[1] - 1
    reach = room if widest is None else np.clip(widest, 0, room)
    spacing = np.clip(least, 0, reach / gaps)
    free = room + 1 - gaps * spacing  # for the first start, and for distances above the smallest
    if most is None and widest is None:
        place = np.sort(draws, axis=1) * free[:, None]
    else:
        slack = np.maximum(reach - gaps * spacing, 0.0)
        above = slack if most is None else np.clip(most - spacing, 0, slack)
        extra = _parts(draws[:, 1:], each=above, total=slack, free=free)
        first = draws[:, :1] * (free - extra.sum(axis=1))[:, None]
        place = first + np.pad(np.cumsum(extra, axis=1), ((0, 0), (1, 0)))
    start = np.floor(place + spacing[:, None] * np.arange(gaps + 1))
    placed: Int = np.minimum(start, room[:, None]).astype(np.int64)
    return placed


def _parts(draws: Float, *, each: Float, total: Float, free: Float) -> Float:
    """Draw m numbers in [0, each] whose sum is at most `total`, with a density proportional to free - sum.

    free - sum is the room that they leave for the first start. Relative to `each`, the sum of k independent uniform
    numbers has the Irwin-Hall distribution F_k. First the sum of all is drawn. Then, given the sum x of k of them, the
    sum of k - 1 is drawn: it is distributed as F_{k-1} from x - 1 to x.

    Args:
        draws: f[B, m], uniform in [0, 1).
        each: Largest value of each number, f64[B].
        total: Largest sum, f64[B], less than `free`.
        free: f64[B].

    Returns:
        f64[B, m].
    """
    count = draws.shape[1]
    grid, sums, integrals = _irwin_hall(count)
    unit = np.maximum(each, _NOISE)
    top, scaled = np.minimum(total / unit, count), free / unit

    def mass(x: Float) -> Float:
        """Return the integral of (scaled - y) dF(y) up to x, by parts."""
        return (scaled - x) * np.interp(x, grid, sums[count]) + np.interp(x, grid, integrals[count])

    wanted = draws[:, 0] * mass(top)
    low, high = np.zeros_like(top), top
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = mass(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    parts, rest = np.empty_like(draws), high
    for number in range(count - 1, 0, -1):
        fewest, largest = np.maximum(rest - 1, 0), np.minimum(rest, number)
        bounds = np.interp(fewest, grid, sums[number]), np.interp(largest, grid, sums[number])
        value = bounds[0] + draws[:, number] * (bounds[1] - bounds[0])
        fewer = np.clip(np.interp(value, sums[number], grid), fewest, largest)
        parts[:, number] = rest - fewer
        rest = fewer
    parts[:, 0] = rest
    return parts * each[:, None]


@lru_cache(maxsize=16)
def _irwin_hall(count: int) -> tuple[Float, Float, Float]:
    """Tabulate the distributions F_k of the sum of k uniform numbers, for k = 0 .. count.

    F_k(x) is the integral of F_{k-1} from x - 1 to x.

    Returns:
        G points x in [0, count], f64[G]; F_k(x), f64[count + 1, G]; and its integral from 0 to x, f64[count + 1, G].
    """
    cells = max(4096 // count, 8)  # per unit of x
    grid = np.arange(count * cells + 1) / cells
    sums, integrals = np.ones((count + 1, len(grid))), np.empty((count + 1, len(grid)))
    for number in range(count + 1):
        if number == 1:
            sums[1] = np.minimum(grid, 1)
        elif number > 1:
            sums[number] = integrals[number - 1]
            sums[number, cells:] -= integrals[number - 1, :-cells]
        steps = (sums[number, 1:] + sums[number, :-1]) / (2 * cells)
        integrals[number] = np.concatenate([[0.0], np.cumsum(steps)])
    return grid, sums, integrals
