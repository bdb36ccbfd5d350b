"""Parts of a shard set: keys are found in memory of their own number, rates sum up, and a part is a smaller set."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.selection import find_samples
from rhofast.data.format.subset import VISIT, visit_rates
from rhofast.data.format.subset import find_keys as find_places
from rhofast.data.sources import open_shards
from rhofast.errors import ConfigError, ShardFormatError, ShardMissingError
from rhofast.evaluation.leakage import overlap, source_digests
from tests.helpers.shards import NUM_VIDEOS

positive = st.floats(min_value=1e-300, max_value=1e300)


def listed(path: Path, *keys: str) -> Path:
    path.write_text("\n".join(keys))
    return path


def columns(samples: int, size: int) -> Iterator[pa.Array]:
    """Keys of a set that is nowhere, one shard after another."""
    for first in range(0, samples, size):
        yield pa.array([f"{number:012d}" for number in range(first, min(first + size, samples))])


@given(st.integers(1, 200), st.integers(1, 50), st.data())
def test_keys_are_found_wherever_they_are(samples: int, size: int, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.integers(0, 2 * samples), unique=True, min_size=1))
    keys = pa.chunked_array([[f"{number:012d}"] for number in wanted], pa.large_string())
    found = find_places(keys, columns(samples, size))
    assert found.twice is None
    assert found.places.tolist() == [number if number < samples else -1 for number in wanted]


def test_a_key_that_two_samples_have_is_named() -> None:
    keys = pa.chunked_array([["b", "c"]], pa.large_string())
    for shards in ([["a", "b", "b"]], [["b"] * 70_000], [["a", "b"], ["x"] * 70_000, ["b"]]):
        assert find_places(keys, map(pa.array, shards)).twice == "b"


def test_memory_grows_with_the_list_and_not_with_the_set() -> None:
    keys = pa.chunked_array([[f"{number:012d}" for number in range(0, 2_000_000, 2000)]], pa.large_string())
    pool = pa.default_memory_pool()
    before, seen = pool.bytes_allocated(), 0

    def columns_watched() -> Iterator[pa.Array]:
        nonlocal seen
        for first in range(0, 2_000_000, 2000):
            seen = max(seen, pool.bytes_allocated() - before)
            numbers = pa.array(np.arange(first, first + 2000))
            yield pc.utf8_lpad(numbers.cast(pa.string()), 12, "0")

    tracemalloc.start()
    try:
        found = find_places(keys, columns_watched())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.places.tolist() == list(range(0, 2_000_000, 2000))
    assert peak + seen < 8e6  # the keys of the whole set are 32 MB


@given(st.lists(positive, min_size=1, max_size=40))
def test_rates_are_weights_over_their_mean_and_sum_to_a_visit_each(weights: list[float]) -> None:
    rates = visit_rates(np.array(weights))
    if rates is None:
        rates = np.full(len(weights), VISIT)
    assert rates.sum() == len(weights) * VISIT and rates.min() >= 1
    shares = np.array(weights) / max(weights)
    assert np.abs(rates / VISIT - shares / shares.mean()).max() < len(weights) / VISIT


@pytest.mark.parametrize("weight", [1.0, 0.1, 1e-300, 1e300, 3])
@pytest.mark.parametrize("count", [1, 3, 10, 1000])
def test_equal_weights_are_no_weights(weight: float, count: int) -> None:
    assert visit_rates(np.full(count, weight)) is None


def test_a_weight_that_is_the_mean_is_exactly_one_visit() -> None:
    rates = visit_rates(np.array([0.5, 1, 1.5, 1, 0.25, 1.75]))
    assert rates is not None and rates.tolist() == [int(w * VISIT) for w in (0.5, 1, 1.5, 1, 0.25, 1.75)]


def test_a_part_is_a_smaller_set(shards: ShardSet, tmp_path: Path) -> None:
    part = open_shards(shards.root, keep=listed(tmp_path / "k.txt", "v12", "v3", "v1", "v10"))
    assert len(part) == 4 and part.starts.tolist() == [0, 2, 2, 4]
    assert [part.row(sample).key for sample in range(4)] == ["v1", "v3", "v10", "v12"]
    assert [part.locate(sample) for sample in range(4)] == [(0, 1), (0, 3), (2, 0), (2, 2)]
    assert part.used_shards().tolist() == [0, 2]
    assert [part.rows_of(shard).tolist() for shard in range(3)] == [[1, 3], [], [0, 2]]
    assert find_samples(part, ["v10", "v1"]) == [2, 0]
    with pytest.raises(ConfigError, match="no sample has the key 'v2'"):
        find_samples(part, ["v2"])
    with pytest.raises(IndexError):
        part.locate(4)
    assert source_digests(part).tolist() == source_digests(shards)[[1, 3, 10, 12]].tolist()


def test_samples_that_are_left_out_leak_nothing(shards: ShardSet, tmp_path: Path) -> None:
    some = open_shards(shards.root, keep=listed(tmp_path / "a.txt", "v1", "v7"))
    rest = open_shards(shards.root, keep=listed(tmp_path / "b.txt", *(f"v{n}" for n in range(13) if n not in (1, 7))))
    assert overlap(rest, some) == [] and overlap(shards, some) == ["v1", "v7"] and len(overlap(some, shards)) == 2


def test_equal_digests_mean_equal_batches(shards: ShardSet, tmp_path: Path) -> None:
    def digest(name: str, content: str) -> str:
        path = tmp_path / name
        path.write_text(content)
        return open_shards(shards.root, keep=path).digest

    plain = digest("a.txt", "v1\nv2\nv3\n")
    assert plain == digest("b.txt", "v3\nv1\nv2") == digest("c.csv", "key,weight\nv2,7\nv1,7\nv3,7\n")
    weighted = digest("d.csv", "key,weight\nv1,1\nv2,2\nv3,3\n")
    assert weighted == digest("e.csv", "key,weight\nv3,30\nv2,20\nv1,10\n")
    everything = digest("f.txt", "\n".join(f"v{number}" for number in range(NUM_VIDEOS)))
    others = [digest("g.txt", "v1\nv2"), digest("h.csv", "key,weight\nv1,2\nv2,1\nv3,3\n"), everything, shards.digest]
    assert len({plain, weighted, *others}) == 6


def test_unknown_keys_are_counted_and_named(shards: ShardSet, tmp_path: Path) -> None:
    path = listed(tmp_path / "k.txt", "x1", "v1", "x2", "x3", "x4")
    with pytest.raises(
        ConfigError, match=r"k\.txt: 4 of 5 keys are not in .*shards: 'x1', 'x2', 'x3', \.\.\. \(remove"
    ):
        open_shards(shards.root, keep=path)
    with pytest.raises(ConfigError, match=r"1 of 1 keys is not in .*: 'x1' \("):
        open_shards(shards.root, keep=listed(tmp_path / "k.txt", "x1"))
    with pytest.raises(ConfigError, match="must be a path on this machine, not an address"):
        open_shards(shards.root, keep="s3://bucket/keys.txt")


def test_an_index_that_is_not_one_is_named(shards: ShardSet, tmp_path: Path) -> None:
    keep, index = listed(tmp_path / "k.txt", "v1"), shards.root / "shard-000001.arrow"
    whole = index.read_bytes()
    for content, said in ((b"x" * len(whole), "not a shard index"), (whole[:-1], "bytes, but dataset.json lists")):
        index.write_bytes(content)
        with pytest.raises(ShardFormatError, match=f"shard-000001.arrow: .*{said}"):
            open_shards(shards.root, keep=keep, check_files=False)
    index.unlink()
    with pytest.raises(ShardMissingError, match=r"shard-000001\.arrow"):
        open_shards(shards.root, keep=keep, check_files=False)
