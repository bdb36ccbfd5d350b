"""Visits by weights: counts are floor or ceiling of the rate, right on average, and a function of (seed, epoch)."""

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.format.subset import VISIT, visit_rates
from rhofast.data.sampling.rng import Stream, bits
from rhofast.data.sampling.shuffle import Order
from rhofast.data.sampling.visits import first_visits, samples_of, visit_numbers

weights = st.lists(st.floats(0.01, 100), min_size=2, max_size=40)


def rates_of(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    values = np.asarray(values, dtype=float)
    rates = visit_rates(values)
    return np.full(len(values), VISIT) if rates is None else rates


def counts(rates: npt.NDArray[np.int64], starts: list[int], epoch: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.diff(first_visits(rates, np.array(starts), seed=seed, epoch=epoch))


@given(weights, st.integers(0, 5), st.data())
def test_counts_are_floor_or_ceiling_and_sum_to_the_samples(
    values: list[float], epoch: int, data: st.DataObject
) -> None:
    rates, cut = rates_of(values), data.draw(st.integers(0, len(values)))
    found = counts(rates, [0, cut, len(values)], epoch)
    assert found.sum() == len(values)
    assert ((found == rates // VISIT) | (found == -(-rates // VISIT))).all()
    for begin, end in ((0, cut), (cut, len(values))):  # a shard has its part, up to one
        assert abs(found[begin:end].sum() - rates[begin:end].sum() / VISIT) < 1


def test_one_sample_per_shard_is_systematic_sampling() -> None:
    rates, starts = rates_of([0.5, 1.75, 0.75, 1]), np.arange(5)
    for epoch in range(20):
        u = int(bits(1, epoch, np.arange(2), Stream.VISITS, 1)[1, 0]) % VISIT / VISIT
        ends = np.cumsum([0, 0.5, 1.75, 0.75, 1])
        points = u + np.arange(4)
        expected = [int(((points >= a) & (points < b)).sum()) for a, b in pairwise(ends)]
        assert counts(rates, starts.tolist(), epoch).tolist() == expected


def test_means_are_the_rates_and_all_combinations_occur() -> None:
    rates, epochs = rates_of([0.5, 0.5, 0.5, 0.5, 1, 3]), 2000
    found = np.array([counts(rates, [0, 6], epoch) for epoch in range(epochs)])
    # A count of rate r has the variance f (1 - f) for the fraction f of r, so a mean is right up to 5 deviations.
    assert np.abs(found.mean(axis=0) - rates / VISIT).max() < 5 * 0.5 / epochs**0.5
    assert (found[:, 4] == 1).all() and (found[:, 5] == 3).all()
    pairs = Counter(tuple(np.flatnonzero(row[:4]).tolist()) for row in found)
    assert len(pairs) == 6 and min(pairs.values()) > epochs / 6 / 2


def test_visits_of_a_sample_are_numbered() -> None:
    samples, earlier = samples_of(np.arange(6).reshape(2, 3), np.array([0, 0, 3, 4, 6]))
    assert samples.tolist() == [[1, 1, 1], [2, 3, 3]] and earlier.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert visit_numbers(np.array([7, 7, 7]), np.array([0, 1, 1 << 24])).tolist() == [7, 7 + (1 << 32), 7]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.sampled_from([None, 1, 2, 3]),
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 3),
)
def test_an_order_visits_as_often_as_the_weights_say(
    sizes: list[int], block: int | None, fixed: bool, lanes: int, weighted: bool, epoch: int
) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = int(starts[-1])
    lanes = min(lanes, total)
    rates = rates_of(np.arange(total) % 3 + 0.5) if weighted else None
    order = Order(starts, seed=3, block_shards=block, lanes=lanes, fixed_lanes=fixed and lanes > 1, rates=rates)
    whole = Order(starts, seed=3, rates=rates)
    assert len(order) == total // lanes * lanes
    samples, earlier = order.visits_at(epoch, np.arange(len(order)))
    everything = Counter(whole.at(epoch, np.arange(total)).tolist())
    assert not Counter(samples.tolist()) - everything  # equal lanes leave some visits out
    if len(order) == total:
        assert Counter(samples.tolist()) == everything
    if rates is None:
        assert set(everything.values()) == {1} and not earlier.any()
    assert len(set(zip(samples.tolist(), earlier.tolist(), strict=True))) == len(order)
    shards = order.shards_of(samples)
    assert ((starts[shards] <= samples) & (samples < starts[shards + 1])).all()
    needed = set()
    for shard in order.shards_from(epoch, 0):
        needed.add(shard)
        if needed >= set(shards.tolist()):
            break
    assert needed == set(shards.tolist())


@pytest.mark.parametrize("lanes", [1, 2])
def test_blocks_are_of_shards_that_are_needed(lanes: int) -> None:
    starts = np.array([0, 0, 4, 4, 4, 8, 12, 12, 16, 16])
    order = Order(starts, seed=1, block_shards=1, lanes=lanes)
    for epoch in range(3):
        of_lane = order.shards_of(order.at(epoch, np.arange(16))).reshape(-1, lanes)
        for lane in range(lanes):
            blocks = of_lane[:, lane].reshape(-1, 4)
            assert (blocks == blocks[:, :1]).all()  # four samples of one shard after another
        assert sorted(set(of_lane.reshape(-1).tolist())) == [1, 4, 5, 7]
