"""Which units are read together, and how many frames they hold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rhofast.data.format.read_request import adjacent_units
from rhofast.data.types import Units
from rhofast.data.units import frames_in


@pytest.mark.parametrize("seed", range(20))
def test_runs_cover_all_units_in_order_and_are_as_long_as_they_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=30)
    gaps = rng.integers(0, 2, size=30)  # a byte before some units
    begins = np.cumsum(sizes + gaps) - sizes
    wanted = np.flatnonzero(rng.random(30) < 0.7)
    units = [(number, int(begins[number]), int(sizes[number]), 0) for number in wanted.tolist()]
    runs = adjacent_units(units)
    assert [unit for run in runs for unit in run] == units
    for run in runs:
        (_, first, *_), (_, last, size, _) = run[0], run[-1]
        assert last + size - first == sum(size for _, _, size, _ in run)  # no byte between
    for left, right in pairwise(runs):
        joined = right[0][0] == left[-1][0] + 1
        assert not (joined and gaps[right[0][0]] == 0)


def test_no_unit_is_no_run() -> None:
    assert adjacent_units([]) == []


@pytest.mark.parametrize("frames", [[], [0], [0, 0, 16, 32], [0, 0, 0, 5]])
def test_a_unit_holds_the_frames_up_to_the_next_one(frames: list[int]) -> None:
    numbers, none = np.array(frames, dtype=np.int32), np.zeros(len(frames), dtype=np.int64)
    units = Units(
        frame=numbers, offset=none, size=none.astype(np.int32), crc=none.astype(np.uint32), rgb=np.zeros((0, 3))
    )
    held = frames_in(units, 40)
    assert held.dtype == np.int64
    assert held.tolist() == np.diff([*frames, 40]).tolist()[: len(frames)]
