"""The order of samples is a stateless permutation."""

import tracemalloc
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.sampling.permutation import sample_at
from rhofast.data.sampling.shuffle import Order, lanes_of, rank_slice, steps_per_epoch


def test_ranks_share_each_batch_without_overlap() -> None:
    parts = [rank_slice(12, rank, 3) for rank in range(3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match="divided"):
        rank_slice(10, 0, 3)


def test_an_epoch_is_whole_batches() -> None:
    assert steps_per_epoch(100, 32) == 3
    with pytest.raises(ValueError, match="does not fit"):
        steps_per_epoch(31, 32)


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum)


def blocked(sizes: list[int], block_shards: int | None, seed: int = 7) -> Order:
    return Order(np.cumsum([0, *sizes]), seed=seed, block_shards=block_shards)


@given(sizes=SIZES, block=st.integers(1, 35) | st.none(), epoch=st.integers(0, 1000))
def test_every_epoch_of_any_shards_is_a_permutation(sizes: list[int], block: int | None, epoch: int) -> None:
    order = blocked(sizes, block)
    assert np.array_equal(np.sort(order.at(epoch, np.arange(len(order)))), np.arange(sum(sizes)))


@given(sizes=SIZES, block=st.integers(1, 35), epoch=st.integers(0, 1000))
def test_a_block_needs_its_own_shards_alone(sizes: list[int], block: int, epoch: int) -> None:
    order = blocked(sizes, block)
    shards = order.shards_of(order.at(epoch, np.arange(len(order)))).tolist()
    first_and_last = {shard: (shards.index(shard), len(shards) - shards[::-1].index(shard)) for shard in set(shards)}
    for position in range(len(shards)):  # those whose samples are not all over, and have begun
        alive = [shard for shard, (first, end) in first_and_last.items() if first <= position < end]
        assert len(alive) <= block


@given(sizes=SIZES, block=st.integers(1, 35) | st.none(), epoch=st.integers(0, 9), data=st.data())
def test_any_position_means_the_same_alone(
    sizes: list[int], block: int | None, epoch: int, data: st.DataObject
) -> None:
    order = blocked(sizes, block)
    at = data.draw(st.integers(0, len(order) - 1))
    resumed = blocked(sizes, block)
    assert resumed.at(epoch, at) == order.at(epoch, np.arange(len(order)))[at]


@given(sizes=SIZES, block=st.integers(1, 35) | st.none(), epoch=st.integers(0, 9), data=st.data())
def test_shards_are_named_in_the_order_of_their_first_need(
    sizes: list[int], block: int | None, epoch: int, data: st.DataObject
) -> None:
    order = blocked(sizes, block)
    at = data.draw(st.integers(0, len(order) - 1))
    rest = order.shards_of(order.at(epoch, np.arange(at, len(order)))).tolist()
    after = order.shards_of(order.at(epoch + 1, np.arange(len(order)))).tolist()
    expected = [*dict.fromkeys(rest), *dict.fromkeys(after)]
    assert list(islice(order.shards_from(epoch, at), len(expected))) == expected


LANED = st.tuples(SIZES, st.integers(1, 12)).filter(lambda drawn: sum(drawn[0]) >= drawn[1])


@given(laned=LANED, block=st.integers(1, 12) | st.none(), fixed=st.booleans(), epoch=st.integers(0, 1000))
def test_lanes_are_equal_parts_of_the_samples_and_each_is_one_stretch_of_shards(
    laned: tuple[list[int], int], block: int | None, fixed: bool, epoch: int
) -> None:
    sizes, lanes = laned
    order = Order(np.cumsum([0, *sizes]), seed=7, block_shards=block, lanes=lanes, fixed_lanes=fixed)
    samples = order.at(epoch, np.arange(len(order)))
    assert len(np.unique(samples)) == len(order) == sum(sizes) // lanes * lanes
    shards = [set(order.shards_of(samples[lane::lanes]).tolist()) for lane in range(lanes)]
    shared = sum(map(len, shards)) - len(set().union(*shards))
    assert shared < lanes  # a lane may end in the shard that the next one begins in
    for lane in range(lanes):
        for position in range(lane, len(order), lanes):
            beside = order.block_of(epoch, position)
            assert position in beside and {other % lanes for other in beside} == {lane}
            needed = order.shards_of(order.at(epoch, np.array(beside)))
            assert block is None or len(set(needed.tolist())) <= block


@given(laned=LANED, block=st.integers(1, 12) | st.none(), fixed=st.booleans(), data=st.data())
def test_the_shards_of_some_lanes_are_named_in_the_order_of_their_first_need(
    laned: tuple[list[int], int], block: int | None, fixed: bool, data: st.DataObject
) -> None:
    sizes, lanes = laned
    order = Order(np.cumsum([0, *sizes]), seed=7, block_shards=block, lanes=lanes, fixed_lanes=fixed)
    first = data.draw(st.integers(0, lanes - 1))
    mine = range(first, data.draw(st.integers(first + 1, lanes)))
    at = data.draw(st.integers(0, len(order) - 1))
    expected: list[int] = []
    for epoch, begin in ((3, at), (4, 0)):
        named: set[tuple[int, int]] = set()
        for position in range(begin, len(order)):
            key = (position % lanes, int(order.shards_of(order.at(epoch, np.array([position])))[0]))
            if key[0] in mine and key not in named:
                named.add(key)
                expected.append(key[1])
    assert list(islice(order.shards_from(3, at, mine), len(expected))) == expected


def test_each_epoch_deals_the_shards_anew() -> None:
    order = Order(np.arange(0, 1001, 10), seed=0, lanes=4)
    first, second = (set(order.shards_of(order.at(epoch, np.arange(0, 1000, 4))).tolist()) for epoch in (0, 1))
    assert len(first) == len(second) == 25 and 0 < len(first & second) < 15
    assert order.at(1, [7, 3]).tolist() == [int(order.at(1, 7)), int(order.at(1, 3))]


@given(laned=LANED, block=st.integers(1, 12) | st.none())
def test_fixed_lanes_have_the_same_samples_in_every_epoch(laned: tuple[list[int], int], block: int | None) -> None:
    sizes, lanes = laned
    order = Order(np.cumsum([0, *sizes]), seed=7, block_shards=block, lanes=lanes, fixed_lanes=True)
    first, second = (order.at(epoch, np.arange(len(order))) for epoch in (2, 9))
    for lane in range(lanes):
        assert np.array_equal(np.sort(first[lane::lanes]), np.sort(second[lane::lanes]))


def test_each_epoch_shuffles_fixed_lanes_anew() -> None:
    order = Order(np.arange(0, 4001, 10), seed=0, block_shards=10, lanes=4, fixed_lanes=True)
    lanes = [order.at(epoch, np.arange(0, 4000, 4)) for epoch in range(3)]
    blocks = [
        {frozenset(order.shards_of(lane[at : at + 100]).tolist()) for at in range(0, 1000, 100)} for lane in lanes
    ]
    assert all(len(block) == 10 for lane in blocks for block in lane)
    assert not blocks[0] & blocks[1] and not blocks[1] & blocks[2]
    assert all((one == other).mean() < 0.02 for one, other in pairwise(lanes))
    firsts = [order.at(epoch, 0) // 10 for epoch in range(400)]  # the shard that an epoch begins with: any of the 100
    assert len(np.unique(firsts)) > 90


@pytest.mark.parametrize(
    ("world_size", "lanes", "expected"),
    [
        (4, 8, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (4, 2, [[0], [0], [1], [1]]),
        (2, 3, [[0, 1], [1, 2]]),
        (3, 1, [[0], [0], [0]]),
    ],
)
def test_ranks_have_lanes_of_their_own_where_there_are_enough(
    world_size: int, lanes: int, expected: list[list[int]]
) -> None:
    batch = 12 * lanes  # whose slots come lane by lane
    for rank, mine in enumerate(expected):
        assert list(lanes_of(range(rank, rank + 1), world_size, lanes)) == mine
        slots = np.arange(batch)[rank_slice(batch, rank, world_size)]
        assert list(dict.fromkeys((slots // 12).tolist())) == mine


def test_without_blocks_the_order_is_that_of_the_whole_set() -> None:
    order = blocked([5, 9, 3], None, seed=3)
    assert np.array_equal(order.at(2, np.arange(17)), sample_at(np.arange(17), 17, seed=3, epoch=2))


def test_positions_may_have_epochs_of_their_own() -> None:
    order = blocked([5, 9, 3], 2)
    mixed = order.at(np.array([0, 1, 0]), [4, 4, 16])
    assert mixed.tolist() == [int(order.at(0, 4)), int(order.at(1, 4)), int(order.at(0, 16))]


def test_blocks_and_their_samples_change_with_the_epoch() -> None:
    order = blocked([50] * 20, 4)
    epochs = [order.at(epoch, np.arange(1000)) for epoch in (0, 1)]
    blocks = [
        {frozenset(order.shards_of(epoch[at : at + 200]).tolist()) for at in range(0, 1000, 200)} for epoch in epochs
    ]
    assert all(len(block) == 4 for epoch in blocks for block in epoch)
    assert not blocks[0] & blocks[1]
    within = epochs[0][:200].astype(float)
    assert abs(np.corrcoef(within[:-1], within[1:])[0, 1]) < 0.25


def test_a_hundred_million_samples_cost_what_a_few_cost() -> None:
    order = Order(np.arange(0, 10**8 + 1, 1000), seed=0, block_shards=64)
    first = order.at(3, np.arange(512))  # arranges the shards of the epoch
    assert len(np.unique(order.shards_of(first))) <= 64
    tracemalloc.start()
    for batch in range(20):
        order.at(3, np.arange(512) + 5 * 10**7 + 512 * batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6  # a bit per sample would be 12 MB


@pytest.mark.parametrize("starts", [[0], [1, 2], [0, 0], [0, 3, 2]])
def test_starts_that_are_none_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="starts"):
        Order(starts, seed=0)
    with pytest.raises(ValueError, match="block_shards=0"):
        Order([0, 1], seed=0, block_shards=0)
    with pytest.raises(ValueError, match="5 samples cannot be divided among 6 lanes"):
        Order([0, 5], seed=0, lanes=6)
