"""Starts of clips are uniform over all placements that keep to the limits."""

import numpy as np
import pytest

from rhofast.data.sampling.spacing import spaced_starts


@pytest.mark.parametrize(
    ("count", "room", "least", "most", "widest"),
    [
        (2, 236, 64, None, None),
        (2, 236, 0, None, 60),
        (3, 500, 64, 100, None),
        (4, 800, 63, 120, 300),
        (4, 236, 0, 9999, None),
        (5, 1000, 30, None, 400),
    ],
)
def test_placements_within_limits_are_all_equally_likely(
    count: int, room: int, least: int, most: int | None, widest: int | None
) -> None:
    """Against plain rejection; each start and each spacing by the Kolmogorov-Smirnov distance, at 1 in 10^5."""
    rng, tries = np.random.default_rng(1), 4000
    kept = np.empty((0, count))
    while len(kept) < tries:
        drawn = np.sort(rng.uniform(0, room + 1, (100_000, count)), axis=1)
        spacing = np.diff(drawn, axis=1)
        fits = (spacing >= least).all(axis=1) & (drawn[:, -1] - drawn[:, 0] <= (room + 1 if widest is None else widest))
        kept = np.concatenate([kept, drawn[fits & (spacing <= (room + 1 if most is None else most)).all(axis=1)]])
    expected = np.floor(kept[:tries])
    starts = spaced_starts(
        rng.uniform(size=(tries, count)),
        np.full(tries, room),
        least=np.full(tries, least),
        most=None if most is None else np.full(tries, most),
        widest=None if widest is None else np.full(tries, widest),
    )
    for mine, theirs in zip(
        (*starts.T, *np.diff(starts, axis=1).T), (*expected.T, *np.diff(expected, axis=1).T), strict=True
    ):
        grid = np.arange(room + 2)
        shares = (np.searchsorted(np.sort(one), grid, side="right") / tries for one in (mine, theirs))
        assert np.abs(np.subtract(*shares)).max() < 2.47 * np.sqrt(2 / tries)
