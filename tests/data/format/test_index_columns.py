"""One column of many indices behind an address: the values of the local ones, for few bytes and one request each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data_loading.range_server import Fault, RangeServer, serving
from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.index_writer import write_index
from rhofast.data.format.selection import find_samples
from rhofast.data.sources import open_shards
from rhofast.data.types import Units
from rhofast.errors import ConfigError, MachineError, ShardError, ShardFormatError
from rhofast.evaluation.leakage import overlap, source_digests

pytest.importorskip("obstore")

UNITS, ROWS, SHARDS = 20_000, 2, 5  # an index has 480 kB
MOST = 20_000  # bytes that a column costs


@pytest.fixture
def large(shards: ShardSet, tmp_path: Path) -> ShardSet:
    """A set of long videos, of which there are no tars."""
    folder, info, base = tmp_path / "large", shards.info, shards.row(0)
    folder.mkdir()
    count = np.arange(UNITS)
    units = Units(
        frame=count.astype(np.int32),
        offset=count.astype(np.int64),
        size=np.ones(UNITS, dtype=np.int32),
        crc=count.astype(np.uint32),
        rgb=np.zeros((UNITS, 3), dtype=np.float32),
    )
    listed = []
    for number in range(SHARDS):
        path = folder / f"shard-{number:06d}.arrow"
        rows = [
            replace(
                base,
                key=f"k{number}-{row}",
                source_digest=bytes([number, row] * 8),
                offset=4096 + 40960 * row,
                size=UNITS,
                num_frames=UNITS,
                units=units,
            )
            for row in range(ROWS)
        ]
        digest = write_index(path, rows, {})
        size = path.stat().st_size
        facts = {"name": path.stem, "samples": ROWS, "bytes": 1 << 20, "index_bytes": size, "index_sha256": digest}
        listed.append(info.shards[0].model_copy(update=facts))
    (folder / "dataset.json").write_text(json.dumps(info.model_copy(update={"shards": listed}).model_dump()))
    return open_folder(folder, check_files=False)


@pytest.fixture
def server(large: ShardSet) -> Iterator[RangeServer]:
    with serving(RangeServer(large.root)) as running:
        yield running


def open_remote(server: RangeServer, folder: Path, **options: object) -> ShardSet:
    return open_shards(server.url, data=DataConfig(cache=folder, **options))  # type: ignore[arg-type]


def of_indices(server: RangeServer) -> tuple[int, int]:
    """Return the requests for indices, and the bytes of them that were sent."""
    names = [name for name in server.requests if name.endswith(".arrow")]
    return sum(server.requests[name] for name in names), sum(server.sent[name] for name in names)


def test_a_column_costs_one_request_and_its_bytes(server: RangeServer, large: ShardSet, tmp_path: Path) -> None:
    remote = open_remote(server, tmp_path / "cache")
    for name in ("key", "source_digest"):
        here = [column.to_pylist() for column in large.read_columns(name, range(SHARDS))]
        assert [column.to_pylist() for column in remote.read_columns(name, range(SHARDS))] == here
    requests, sent = of_indices(server)
    assert requests == 2 * SHARDS and sent <= 2 * SHARDS * MOST


def test_keys_are_found_and_the_search_ends_with_the_last_of_them(
    server: RangeServer, large: ShardSet, tmp_path: Path
) -> None:
    remote, seen = open_remote(server, tmp_path / "cache"), []
    assert find_samples(remote, ["k1-1", "k0-0"], on_read=lambda *done: seen.append(done)) == [3, 0]
    assert seen == [(1, SHARDS), (2, SHARDS)]
    assert of_indices(server)[1] <= SHARDS * MOST
    with pytest.raises(ConfigError, match="no sample has the key 'k9'"):
        find_samples(remote, ["k1-1", "k9"])
    with pytest.raises(ConfigError, match="no sample has the key ''"):
        find_samples(remote, [""])


def test_a_list_of_keys_costs_no_units(server: RangeServer, large: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("k4-1\nk2-0\n")
    data = DataConfig(cache=tmp_path / "cache")
    there = open_shards(server.url, keep=tmp_path / "keys.txt", data=data)
    assert of_indices(server)[0] == SHARDS and of_indices(server)[1] <= SHARDS * MOST
    assert there.digest == large.subset(there.part).digest if there.part is not None else False
    assert there.part is not None and there.part.samples.tolist() == [4, 9]


def test_comparing_the_videos_of_two_sets_costs_their_digests(
    server: RangeServer, large: ShardSet, tmp_path: Path
) -> None:
    remote = open_remote(server, tmp_path / "cache")
    assert source_digests(remote).tolist() == source_digests(large).tolist()
    assert of_indices(server)[1] <= SHARDS * MOST
    assert overlap(remote, large) == [f"k{number}-{row}" for number in range(SHARDS) for row in range(ROWS)]


def test_a_column_beyond_the_usual_bytes_is_fetched_by_a_second_request(large: ShardSet, tmp_path: Path) -> None:
    rows = [replace(large.row(sample), key=f"{sample}" * 20_000) for sample in range(ROWS)]
    digest = write_index(large.root / "shard-000000.arrow", rows, {})
    first = large.info.shards[0].model_copy(
        update={"index_bytes": (large.root / "shard-000000.arrow").stat().st_size, "index_sha256": digest}
    )
    info = large.info.model_copy(update={"shards": [first, *large.info.shards[1:]]})
    (large.root / "dataset.json").write_text(json.dumps(info.model_dump()))
    with serving(RangeServer(large.root)) as server:
        remote = open_remote(server, tmp_path / "cache")
        assert remote.read_column("key", 0).to_pylist() == [row.key for row in rows]
        requests, sent = of_indices(server)
        assert requests == 2 and sent < 100_000


def test_an_index_that_is_here_is_not_fetched_again(server: RangeServer, tmp_path: Path) -> None:
    remote = open_remote(server, tmp_path / "cache")
    remote.local("shard-000003.arrow")
    server.requests.clear()
    assert remote.read_column("key", 3).to_pylist() == ["k3-0", "k3-1"]
    assert not server.requests


def test_a_server_that_ignores_ranges_sends_indices_as_a_whole(server: RangeServer, tmp_path: Path) -> None:
    server.fault = lambda request: Fault(whole=True) if request.end is not None else None
    remote = open_remote(server, tmp_path / "cache")
    assert remote.read_column("key", 1).to_pylist() == ["k1-0", "k1-1"]
    assert of_indices(server)[0] == 1


def test_faults_of_a_column_are_one_error_of_the_right_kind(server: RangeServer, tmp_path: Path) -> None:
    remote = open_remote(server, tmp_path / "cache", timeout_s=1.0)
    remote.read_column("key", 0)
    name = "shard-000001.arrow"
    for fault, kind in (
        (Fault(status=404), ShardError),
        (Fault(damage=0), ShardFormatError),  # of the mark at the beginning
        (Fault(status=503), MachineError),
    ):
        server.fault = lambda request, fault=fault: fault if request.name == name else None  # type: ignore[misc]
        with pytest.raises(kind, match=name) as caught:
            remote.read_column("key", 1)
        assert "\n" not in str(caught.value)
    server.fault = lambda _: None
    assert remote.read_column("key", 1).to_pylist() == ["k1-0", "k1-1"]
