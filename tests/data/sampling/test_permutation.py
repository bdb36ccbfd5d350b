"""A keyed bijection permutes the numbers of any range, one position at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.sampling.permutation import sample_at


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    order = sample_at(np.arange(size), size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(size))


@given(size=st.integers(1, 10**12), at=st.integers(0, 10**12))
def test_a_position_means_the_same_alone_and_in_company(size: int, at: int) -> None:
    at %= size
    positions = np.unique(np.clip(np.arange(at - 3, at + 4), 0, size - 1))
    order = sample_at(positions, size, seed=1, epoch=2)
    assert order[np.searchsorted(positions, at)] == sample_at(at, size, seed=1, epoch=2)
    assert ((order >= 0) & (order < size)).all()


def test_epochs_and_seeds_have_their_own_orders() -> None:
    reference = sample_at(np.arange(1000), 1000, seed=0, epoch=0)
    for seed, epoch in ((0, 1), (1, 0)):
        assert (sample_at(np.arange(1000), 1000, seed=seed, epoch=epoch) == reference).mean() < 0.01


def test_small_permutations_are_all_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(3000):
        order = tuple(sample_at(np.arange(3), 3, seed=0, epoch=epoch).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 500) < 5 * np.sqrt(500) for count in counts.values())


def test_neighbors_in_order_are_strangers_in_the_data() -> None:
    order = sample_at(np.arange(50_000), 50_000, seed=3, epoch=0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_a_position_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        sample_at([10], 10, seed=0, epoch=0)
