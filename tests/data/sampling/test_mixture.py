"""Which samples make up which batch, of one or several weighted sets."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import DatasetInfo, ShardInfo
from rhofast.data.sampling.mixture import Mixture, MixtureOrder
from rhofast.data.types import Position
from tests.helpers.shards import NUM_VIDEOS, write_shards


def sized(samples: int) -> ShardSet:
    """A set of so many samples, in shards of up to 7, that is nowhere."""
    shards = [
        ShardInfo(
            name=f"shard-{number:06d}",
            samples=min(7, samples - first),
            frames=1,
            seconds=1.0,
            bytes=1,
            index_bytes=1,
            tar_sha256="",
            index_sha256=f"{samples}-{number}",
        )
        for number, first in enumerate(range(0, samples, 7))
    ]
    info = DatasetInfo(name="x", split="train", codecs=[{}], classes=[], shards=shards, refused={}, build="")
    return ShardSet(Path("nowhere"), info)


def walk(order: MixtureOrder, size: int, batches: int) -> list[tuple[list[int], list[int]]]:
    at, out = Position(epoch=0, position=0), []
    for _ in range(batches):
        samples, epochs, places, _ = order.batch(at, size)
        assert all(
            order.sample(owner(order, sample), epoch, place) == sample
            for sample, epoch, place in zip(samples.tolist(), epochs.tolist(), places.tolist(), strict=True)
        )
        out.append((samples.tolist(), epochs.tolist()))
        at = order.after(at, size)
    return out


def owner(order: MixtureOrder, sample: int) -> int:
    return order._mixture.locate(sample)[0]


weights = st.lists(st.integers(1, 1000).map(lambda n: n / 10), min_size=2, max_size=5)


@given(weights, st.integers(1, 40), st.data())
def test_every_set_has_its_share_and_goes_through_its_own_epochs(shares: list[float], size: int, data) -> None:  # type: ignore[no-untyped-def]
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=len(shares), max_size=len(shares)))
    mixture = Mixture([sized(n) for n in sizes], shares)
    size = min(size, len(mixture))
    walked = walk(mixture.order(seed=3), size, 12)
    samples = np.array([sample for batch, _ in walked for sample in batch])
    epochs = np.array([epoch for _, batch in walked for epoch in batch])
    assert len(samples) == 12 * size
    owners = np.searchsorted(mixture.starts, samples, side="right") - 1
    for number, share in enumerate(shares):
        mine = owners == number
        assert abs(mine.sum() - len(samples) * share / sum(shares)) <= len(shares)
        for epoch in np.unique(epochs[mine]):  # a permutation of the set, or the part of one
            seen = samples[mine & (epochs == epoch)]
            assert len(set(seen.tolist())) == len(seen) <= sizes[number]
            assert epoch == epochs[mine].max() or len(seen) == sizes[number]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.data())
def test_every_lane_has_its_part_of_every_batch_and_shards_of_its_own(  # type: ignore[no-untyped-def]
    count: int, lanes: int, per_lane: int, data
) -> None:
    sizes = data.draw(st.lists(st.integers(max(7, lanes), 60), min_size=count, max_size=count))
    shares = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    mixture, size = Mixture([sized(n) for n in sizes], shares), lanes * per_lane
    if size > len(mixture):
        return
    order, at = mixture.order(seed=3, lanes=lanes), Position(epoch=0, position=0)
    seen: Counter[int] = Counter()
    read: dict[tuple[int, int, int], set[int]] = {}  # the shards of a set, an epoch and a lane
    for _ in range(10):
        samples, epochs, places, _ = order.batch(at, size)
        assert (places % lanes == np.repeat(np.arange(lanes), per_lane)).all()
        for sample, epoch, place in zip(samples.tolist(), epochs.tolist(), places.tolist(), strict=True):
            number, local = mixture.locate(sample)
            seen[number] += 1
            read.setdefault((number, epoch, place % lanes), set()).add(local // 7)
        at = order.after(at, size)
    for number, share in enumerate(shares):
        assert abs(seen[number] - 10 * size * share / sum(shares)) <= lanes * count
    for (number, _, _), shards in read.items():
        assert len(shards) <= sizes[number] // lanes / 7 + 3  # it begins in one shard, and ends in another
    named = order.shards_from(Position(epoch=0, position=0), size, range(lanes))
    for number, names in enumerate(named):
        first = {shard for (of, epoch, _), shards in read.items() if (of, epoch) == (number, 0) for shard in shards}
        assert first <= {next(names) for _ in range(-(-sizes[number] // 7) + lanes)}


def test_lanes_divide_the_batch() -> None:
    with pytest.raises(ValueError, match=r"batch of 10 cannot be divided among data\.lanes=4"):
        Mixture([sized(40)]).order(seed=0, lanes=4).steps_per_epoch(10)


def test_a_batch_is_the_same_wherever_one_begins() -> None:
    mixture = Mixture([sized(20), sized(31), sized(9)], [1, 2.5, 0.3])
    straight = walk(mixture.order(seed=5), 8, 30)
    order, at = mixture.order(seed=5), Position(epoch=0, position=0)
    places = []
    for _ in range(30):
        places.append(at)
        at = order.after(at, 8)
    for number in (29, 3, 17):
        samples, epochs, _, _ = mixture.order(seed=5).batch(places[number], 8)
        assert (samples.tolist(), epochs.tolist()) == straight[number]


def test_sets_are_mixed_within_a_batch_so_that_ranks_get_of_all() -> None:
    mixture = Mixture([sized(500), sized(500)])
    samples, *_ = mixture.order(seed=1).batch(Position(epoch=0, position=0), 64)
    first_half = (samples[:32] < 500).sum()
    assert (samples < 500).sum() == 32 and 4 < first_half < 28


def test_one_set_is_itself() -> None:
    single = sized(13)
    mixture = Mixture([single])
    assert mixture.digest == single.info.digest
    (samples, epochs), *_ = walk(mixture.order(seed=2), 13, 1)
    assert sorted(samples) == list(range(13)) and set(epochs) == {0}
    assert mixture.order(seed=2).after(Position(epoch=0, position=4), 5) == Position(epoch=1, position=0)


def test_the_digest_names_sets_weights_and_their_order() -> None:
    a, b = sized(5), sized(6)
    digests = [Mixture(sets, shares).digest for sets, shares in (([a, b], [1, 1]), ([a, b], [1, 2]), ([b, a], [1, 1]))]
    assert len({*digests, a.info.digest}) == 4


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_weights_must_be_positive_and_one_a_set(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="positive weight"):
        Mixture([sized(3), sized(4)], shares)


def test_the_shards_ahead_are_those_that_the_batches_need() -> None:
    mixture = Mixture([sized(40), sized(30)], [1, 1])
    order = mixture.order(seed=0, block_shards=2)
    at = Position(epoch=0, position=20)
    ahead = [set(), set()]  # type: list[set[int]]
    for number, shards in enumerate(order.shards_from(at, 10, range(1))):
        ahead[number] = {next(shards) for _ in range(4)}
    samples, *_ = order.batch(at, 10)
    needed = Counter((mixture.locate(sample)[0], mixture.locate(sample)[1] // 7) for sample in samples.tolist())
    assert all(shard in ahead[number] for number, shard in needed)


def test_a_stand_in_comes_from_the_same_block_of_shards() -> None:
    mixture = Mixture([sized(70), sized(30)])
    order = mixture.order(seed=4, block_shards=2)
    samples, epochs, places, _ = order.batch(Position(epoch=0, position=40), 8)
    for sample, epoch, place in zip(samples.tolist(), epochs.tolist(), places.tolist(), strict=True):
        number, local = mixture.locate(sample)
        beside = [order.sample(number, epoch, other) for other in order.beside(number, epoch, place)]
        assert sample in beside
        shards = {mixture.locate(other)[1] // 7 for other in beside}
        assert local // 7 in shards and len(shards) <= 2
        assert {mixture.locate(other)[0] for other in beside} == {number}


def test_numbers_lead_back_to_samples(tmp_path: Path, members: list[bytes]) -> None:
    sets = [
        write_shards(tmp_path / name, members[:count], labels=None) for name, count in (("a", 5), ("b", NUM_VIDEOS))
    ]
    mixture = Mixture(sets)
    assert mixture.locate(4) == (0, 4) and mixture.locate(5) == (1, 0)
    assert mixture.row(7).key == sets[1].row(2).key
    with pytest.raises(IndexError):
        mixture.locate(5 + NUM_VIDEOS)
