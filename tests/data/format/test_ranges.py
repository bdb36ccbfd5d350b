"""Reading only the needed bytes of remote shards: the same batches, few bytes, and a bounded end of every fault."""

from __future__ import annotations

import itertools
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data_loading.range_server import Fault, RangeServer, Request, serving
from benchmarks.gpu.sets import repeat
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.dataset_json import index_facts
from rhofast.data.format.download_ahead import DownloadAhead
from rhofast.data.format.ranges import RangeOptions, join_spans
from rhofast.data.format.read_request import ReadRequest
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import RemoteShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sources import open_shards, open_training
from rhofast.data.types import Sample, Views
from rhofast.errors import ConfigError, MachineError, SampleError, ShardFormatError
from rhofast.ingest import summary, verify_shard
from rhofast.ingest.copied_ahead import copied_ahead
from rhofast.ingest.verify import verify_shards
from rhofast.ingest.verify_shard import VerifyJob
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.network import RetryPolicy
from rhofast.training.step import no_garbage_collection
from tests.helpers.loaders import open_loader
from tests.helpers.program import run as run_program
from tests.helpers.shards import damage_unit, write_shards

pytest.importorskip("obstore")

FRAMES = np.array([[0, 5], [7, 23]], dtype=np.int32)
TAR = "shard-000001.tar"
QUICK = RetryPolicy(attempts=3, first_pause_s=0.01, max_pause_s=0.02, timeout_s=1.0)


@pytest.fixture
def server(shards: ShardSet) -> Iterator[RangeServer]:
    with serving(RangeServer(shards.root)) as running:
        yield running


def open_ranges(server: RangeServer, folder: Path, *, gap: int = 0, patience_s: float = 1.0) -> RemoteShardSet:
    remote = RemoteShardSet(RemoteFolder(server.url, QUICK), Cache(folder, max_bytes=10**9))
    remote.use_ranges(RangeOptions(gap=gap, requests=64, patience_s=patience_s))
    return remote


def of_tars(fault: Callable[[Request], Fault | None]) -> Callable[[Request], Fault | None]:
    return lambda request: fault(request) if request.name.endswith(".tar") else None


def first(count: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """The first requests for tars go wrong, and no other."""
    left = [fault] * count
    return of_tars(lambda _: left.pop() if left else None)


# ---- joined spans ----


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=20), st.integers(0, 40))
def test_spans_are_joined_where_the_gap_allows_and_nowhere_else(steps: list[tuple[int, int]], gap: int) -> None:
    spans, at = [], 0
    for distance, size in steps:
        spans.append((at + distance, size))
        at += distance + size
    joined, places = join_spans(spans, gap)
    content = bytes(np.arange(at + 1, dtype=np.uint8))
    for (begin, size), (number, within) in zip(spans, places, strict=True):
        first_byte, length = joined[number]
        assert content[first_byte : first_byte + length][within : within + size] == content[begin : begin + size]
    assert all(right[0] - sum(left) > gap for left, right in pairwise(joined))
    apart = sum(right[0] - sum(left) <= gap for left, right in pairwise(spans))
    assert len(joined) == len(spans) - apart
    within_gaps = sum(right[0] - sum(left) for left, right in pairwise(spans) if right[0] - sum(left) <= gap)
    assert sum(size for _, size in joined) == sum(size for _, size in spans) + within_gaps


# ---- the same samples and batches ----


def test_a_sample_is_the_local_one_and_costs_its_bytes(stream_shards: ShardSet, tmp_path: Path) -> None:
    with serving(RangeServer(stream_shards.root)) as server:
        remote = open_ranges(server, tmp_path / "cache")
        there, here = Reader(remote), Reader(stream_shards)
        for sample in range(len(remote)):
            ours, theirs = there.read(sample, FRAMES), here.read(sample, FRAMES)
            assert (ours.key, ours.label, ours.bytes_read) == (theirs.key, theirs.label, theirs.bytes_read)
            assert all(np.array_equal(ours.pictures[frame], theirs.pictures[frame]) for frame in (0, 5, 7, 23))
        sent = sum(count for name, count in server.sent.items() if name.endswith(".tar"))
        assert sent == sum(here.read(sample, FRAMES).bytes_read for sample in range(len(remote)))
    assert not list((tmp_path / "cache").rglob("*.tar")) and len(list((tmp_path / "cache").rglob("*.arrow"))) == 3


def test_fields_of_the_user_s_own_travel_with_the_frames(members: list[bytes], tmp_path: Path) -> None:
    """One request has KEY.json and the frames near to it, and no thread waits for another one."""
    noted = write_shards(tmp_path / "noted", members, extra=[{"caption": f"video {video}"} for video in range(13)])
    near = np.arange(24, dtype=np.int32)
    with serving(RangeServer(noted.root)) as server:
        reader = Reader(open_ranges(server, tmp_path / "cache", gap=1 << 16))
        request = reader.request(7, near, with_json=True)
        assert request.fetch is not None and len(request.spans) == 2
        assert reader.finish(request).extra == {"caption": "video 7"}
        assert server.requests[TAR] == 1 and server.requests["shard-000000.tar"] == 0
        assert reader.read_json(3).extra == {"caption": "video 3"}
        assert server.sent["shard-000000.tar"] == reader.locate(3).json_size
        assert reader.read(3, near).extra is None
        config = DataConfig(train=server.url, cache=tmp_path / "other", remote="ranges", threads=1)
        sources = open_training(config, world_size=1)
        with EvalLoader(
            sources.sets[0],
            clips=ClipConfig(num_frames=2, frame_stride=2, fps=12),
            augment=AugmentConfig(size=16),
            data=config,
            batch_size=4,
            views=1,
            fields=["extra.caption"],
        ) as loader:
            captions = [caption for views in loader for caption in views["extra.caption"]]
    assert captions == [f"video {video}" for video in range(13)]


def take(loader: TrainLoader, count: int) -> list[Views]:
    with loader:
        return [next(loader) for _ in range(count)]


def same(left: list[Views], right: list[Views]) -> bool:
    return all(
        torch.equal(one.sample, other.sample) and torch.equal(one.pixels, other.pixels)
        for one, other in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("gap", [0, 1, 1000])
def test_batches_are_those_of_the_local_set(stream_shards: ShardSet, tmp_path: Path, gap: float) -> None:
    local = take(open_loader(str(stream_shards.root), tmp_path), 7)
    with serving(RangeServer(stream_shards.root)) as server:
        remote = take(open_loader(server.url, tmp_path / "cache", remote="ranges", range_gap_kb=gap), 7)
    assert same(local, remote)


@pytest.mark.parametrize("fault", [None, Fault(status=500), Fault(status=404)])
def test_what_was_read_is_let_go_without_a_collection_of_garbage(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    """Training turns the collection off for many steps: what waits for it until then would fill the memory."""
    came: list[weakref.ref[Any]] = []
    finish = Reader.finish

    def watched(reader: Reader, request: ReadRequest) -> Sample:
        try:
            sample = finish(reader, request)
        except SampleError as error:
            came.append(weakref.ref(error))
            raise
        came.extend(map(weakref.ref, sample.pictures.values()))
        return sample

    monkeypatch.setattr(Reader, "finish", watched)
    passing = fault is None or fault.status != 404
    options = {"remote": "ranges", "max_bad": 0.0 if passing else 1.0}
    with open_loader(server.url, tmp_path / "cache", **options) as loader, no_garbage_collection():
        next(loader)
        if fault is not None:
            server.fault = first(3, fault) if passing else lambda request: fault if request.name == TAR else None
        for _ in range(60):
            next(loader)
        alive = sum(each() is not None for each in came)
    assert len(came) > 900 and alive < 300  # what the queues hold


def test_a_resumed_run_on_other_ranks_goes_on_with_the_same_batches(
    server: RangeServer, shards: ShardSet, tmp_path: Path
) -> None:
    whole = take(open_loader(str(shards.root), tmp_path), 8)
    with open_loader(server.url, tmp_path / "cache", remote="ranges") as begun:
        for _ in range(3):
            next(begun)
        state = begun.state_dict()
    parts = []
    for rank in range(2):
        with open_loader(server.url, tmp_path / "cache", rank, 2, remote="ranges") as loader:
            loader.load_state_dict(state)
            parts.append([next(loader) for _ in range(5)])
    for step, views in enumerate(whole[3:]):
        assert torch.equal(views.pixels, torch.cat([part[step].pixels for part in parts]))


def test_a_set_beyond_the_cache_is_shuffled_as_a_whole(server: RangeServer, tmp_path: Path) -> None:
    indices = sum(path.stat().st_size for path in server.root.glob("*.arrow"))
    with open_loader(server.url, tmp_path / "cache", cache_gb=(indices + 10) / 1e9) as loader:
        samples = [sample for _ in range(3) for sample in next(loader).sample.tolist()]
        assert "range requests: the set has" in loader.shards.sets[0].transport
        assert loader.stats.bytes_read >= loader.stats.bytes_used > 0
    assert len(set(samples)) == 12 and max(server.requests[f"shard-00000{number}.arrow"] for number in range(3)) == 1


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_requests_are_under_way_at_once_whatever_the_threads(server: RangeServer, tmp_path: Path) -> None:
    server.latency_s = 0.05
    with open_loader(server.url, tmp_path / "cache", remote="ranges", range_gap_kb=0) as loader:
        next(loader)
        next(loader)
    assert server.together >= 8  # two threads, batches of four samples of up to four pictures


def test_all_pieces_of_a_sample_are_asked_for_at_once(server: RangeServer, tmp_path: Path) -> None:
    """obstore alone asks for ten at a time, so that a sample of more would take two round trips."""
    server.latency_s = 0.2
    reader = Reader(open_ranges(server, tmp_path / "cache"))
    request = reader.request(0, np.arange(0, 24, 2, dtype=np.int32))
    assert len(request.spans) == 12
    local = Reader(open_folder(server.root)).read(0, np.arange(0, 24, 2, dtype=np.int32))
    assert all(np.array_equal(local.pictures[frame], piece) for frame, piece in reader.finish(request).pictures.items())
    assert server.together == 12


def test_indices_are_fetched_ahead_once_and_after_the_first_batch(server: RangeServer, tmp_path: Path) -> None:
    remote = open_ranges(server, tmp_path / "cache")
    asked: list[int] = []

    def needed() -> Iterator[int]:
        for number in itertools.cycle((2, 0, 1)):
            asked.append(number)
            yield number

    ahead = DownloadAhead([(remote, needed())], threads=2)
    time.sleep(0.1)
    assert not server.requests.keys() - {"dataset.json"}
    ahead.go_on()
    wait_until(lambda: len(list((tmp_path / "cache").rglob("*.arrow"))) == 3)
    time.sleep(0.1)
    assert len(asked) == 4  # not again and again, although all would fit
    remote.index(2)
    wait_until(lambda: len(asked) == 5)
    ahead.close()
    assert all(server.requests[f"shard-{number:06d}.arrow"] == 1 for number in range(3))


def test_requests_and_bytes_under_way_have_a_limit(server: RangeServer, tmp_path: Path) -> None:
    server.latency_s = 0.05
    with open_loader(server.url, tmp_path / "cache", remote="ranges", range_gap_kb=0, range_requests=4) as loader:
        batches = [next(loader) for _ in range(3)]
    assert len(batches) == 3 and 2 <= server.together <= 4 + 3  # indices come beside them


# ---- faults ----


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (408, 425, 429, 500, 502, 503, 504)),
        Fault(status=503, headers=("Retry-After: 1",)),
        Fault(send=10),
        Fault(send=0),
        Fault(short=3),
        Fault(damage=0),
        Fault(status=403),
    ],
    ids=str,
)
def test_a_fault_that_passes_leaves_no_trace(
    server: RangeServer, shards: ShardSet, tmp_path: Path, fault: Fault
) -> None:
    remote = open_ranges(server, tmp_path / "cache")
    server.fault = first(2 if fault.damage is None and fault.status != 403 else 1, fault)
    sample, here = Reader(remote).read(6, FRAMES), Reader(shards).read(6, FRAMES)
    assert all(np.array_equal(sample.pictures[frame], here.pictures[frame]) for frame in (0, 5, 7, 23))


def test_a_burst_of_errors_changes_no_batch(server: RangeServer, shards: ShardSet, tmp_path: Path) -> None:
    local = take(open_loader(str(shards.root), tmp_path), 4)
    errors = iter([Fault(status=status) for status in (429, 500, 503) * 4])
    loader = open_loader(server.url, tmp_path / "cache", remote="ranges")
    server.fault = of_tars(lambda _: next(errors, None))
    remote = take(loader, 4)
    assert same(local, remote) and loader.stats.bad == 0


@pytest.mark.parametrize("fault", [Fault(status=429), Fault(status=500), Fault(send=5)], ids=str)
def test_a_store_that_refuses_every_third_request_still_gives_all_pieces(
    server: RangeServer, tmp_path: Path, fault: Fault
) -> None:
    remote = open_ranges(server, tmp_path / "cache", patience_s=30.0)
    reader, number = Reader(remote), itertools.count()
    reader.read(6, FRAMES)
    assert remote.ranges is not None
    pieces = remote.ranges.counts.requests
    assert pieces >= 4  # so that of all at once one is always refused
    server.fault = of_tars(lambda _: fault if next(number) % 3 == 0 else None)
    assert reader.read(6, FRAMES).bytes_read > 0
    assert remote.ranges.counts.requests <= 4 * pieces


@pytest.mark.parametrize("status", [403, 500])
def test_an_outage_that_ends_as_the_store_is_looked_at_is_no_fault_of_the_file(
    server: RangeServer, tmp_path: Path, status: int
) -> None:
    reader = Reader(open_ranges(server, tmp_path / "cache", patience_s=4.0))
    away = [Fault(status=status)]

    def fault(request: Request) -> Fault | None:
        if request.name == "dataset.json":
            away.clear()
        return away[0] if away and request.name.endswith(".tar") else None

    server.fault = fault
    assert reader.read(6, FRAMES).bytes_read > 0 and not away


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=404), "no such file"),
        (Fault(status=416), "416"),
        (Fault(status=403), "403"),
        (Fault(damage=0), "checksum mismatch"),
        (Fault(status=500), "500"),
        (Fault(short=1), "received .* of .* bytes"),
    ],
)
def test_a_tar_that_cannot_be_had_is_a_bad_sample_and_others_go_on(
    server: RangeServer, tmp_path: Path, fault: Fault, said: str
) -> None:
    reader = Reader(open_ranges(server, tmp_path / "cache"))
    server.fault = lambda request: fault if request.name == TAR else None
    began = time.monotonic()
    with pytest.raises(SampleError, match=said):
        reader.read(6, FRAMES)
    assert time.monotonic() - began < 5
    assert reader.read(0, FRAMES).bytes_read > 0


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_an_outage_is_waited_for_and_then_ends_the_run_not_the_sample(
    server: RangeServer, tmp_path: Path, status: int
) -> None:
    reader = Reader(open_ranges(server, tmp_path / "cache", patience_s=0.3))
    reader.read(6, FRAMES)
    server.fault = lambda _: Fault(status=status)
    with pytest.raises(MachineError, match=f"{TAR}: {status}") as caught:
        reader.read(6, FRAMES)
    assert "--resume" in str(caught.value)
    server.fault = lambda _: None
    assert reader.read(6, FRAMES).bytes_read > 0


def test_a_server_that_is_gone_for_a_while_changes_no_batch(
    server: RangeServer, shards: ShardSet, tmp_path: Path
) -> None:
    local = take(open_loader(str(shards.root), tmp_path), 4)
    with open_loader(server.url, tmp_path / "cache", remote="ranges", timeout_s=20) as loader:
        remote = [next(loader)]
        back = time.monotonic() + 1.5
        server.fault = lambda _: Fault(send=0) if time.monotonic() < back else None
        remote += [next(loader) for _ in range(3)]
    assert same(local, remote)


def test_closing_during_an_outage_is_quick(server: RangeServer, tmp_path: Path) -> None:
    with open_loader(server.url, tmp_path / "cache", remote="ranges") as loader:
        next(loader)
        server.fault = lambda _: Fault(status=503)
        time.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_a_late_answer_is_asked_for_again(server: RangeServer, shards: ShardSet, tmp_path: Path) -> None:
    remote = open_ranges(server, tmp_path / "cache")
    reader = Reader(remote)
    for _ in range(3):
        for sample in range(len(shards)):
            reader.read(sample, FRAMES)
    server.fault = first(4, Fault(late_s=30))
    began = time.monotonic()
    assert reader.read(6, FRAMES).bytes_read > 0
    assert remote.ranges is not None and remote.ranges.counts.hedged == 1
    assert time.monotonic() - began < 5


def test_one_slow_replica_does_not_hold_up_a_sample_of_many_pieces(
    server: RangeServer, shards: ShardSet, tmp_path: Path
) -> None:
    reader, number = Reader(open_ranges(server, tmp_path / "cache", patience_s=20.0)), itertools.count()
    for _ in range(3):
        for sample in range(len(shards)):
            reader.read(sample, FRAMES)
    server.fault = of_tars(lambda _: Fault(late_s=30) if next(number) % 3 == 0 else None)
    began = time.monotonic()
    assert reader.read(6, FRAMES).bytes_read > 0
    assert time.monotonic() - began < 5


def test_a_server_without_ranges_is_read_through_the_cache(server: RangeServer, tmp_path: Path) -> None:
    server.fault = lambda request: Fault(whole=True)
    remote = open_shards(server.url, data=DataConfig(cache=tmp_path / "cache"))
    assert "through the cache: the server of" in remote.transport and "ignores range requests" in remote.transport
    assert Reader(remote).read(6, FRAMES).bytes_read > 0
    with pytest.raises(ConfigError, match=r"data\.remote=ranges: the server of .* ignores range requests"):
        open_shards(server.url, data=DataConfig(cache=tmp_path / "cache", remote="ranges"))


def test_a_set_that_is_replaced_in_the_middle_ends_the_run(
    server: RangeServer, shards: ShardSet, tmp_path: Path
) -> None:
    reader = Reader(open_ranges(server, tmp_path / "cache"))
    reader.read(6, FRAMES)
    damage_unit(shards, 6, 5)
    with pytest.raises(SampleError, match="frame 5: checksum"):  # the set is the same, and damaged
        reader.read(6, FRAMES)
    description = shards.root / "dataset.json"
    description.write_text(description.read_text().replace(shards.info.shards[1].tar_sha256, "0" * 64))
    with pytest.raises(ShardFormatError, match="was replaced while it was read"):
        reader.read(6, FRAMES)


def test_damaged_samples_are_replaced_as_in_a_local_set(server: RangeServer, shards: ShardSet, tmp_path: Path) -> None:
    for unit in range(24):
        damage_unit(shards, 6, unit)
    local = take(open_loader(str(shards.root), tmp_path, max_bad=1.0), 6)
    with open_loader(server.url, tmp_path / "cache", remote="ranges", max_bad=1.0) as loader:
        remote = [next(loader) for _ in range(6)]
        assert loader.stats.bad > 0
    assert same(local, remote)


# ---- commands ----


def test_looking_at_a_sample_of_a_remote_set_costs_that_sample(server: RangeServer, tmp_path: Path) -> None:
    run = ["--set", f"data.cache={tmp_path}", "--set", "clips.num_frames=2", "--set", "augment.size=16"]
    assert run_program("show", server.url, "--key", "v6", "--out", tmp_path / "clips.png", *run) == 0
    assert (tmp_path / "clips.png").is_file()
    tars = {name: count for name, count in server.sent.items() if name.endswith(".tar")}
    assert list(tars) == [TAR] and tars[TAR] < (server.root / TAR).stat().st_size / 4
    assert run_program("inspect", server.url, *run[:2]) == 0
    assert {name for name in server.sent if name.endswith(".tar")} == {TAR}


def test_a_remote_set_is_verified_to_the_last_byte(
    server: RangeServer, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    damage_unit(shards, 6, 3)
    here, there = (
        [str(problem) for problem in verify_shards(one, workers=1)]
        for one in (shards, open_shards(server.url, data=DataConfig(cache=tmp_path / "cache")))
    )
    assert here == there and any("SHA-256" in problem for problem in here)


def test_an_outage_says_nothing_about_a_set_that_is_verified(
    server: RangeServer, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_ranges(server, tmp_path / "cache")
    monkeypatch.setattr(verify_shard, "_POLICY", replace(QUICK, outage_s=60.0))
    server.fault = first(10, Fault(status=503))
    assert [str(problem) for problem in verify_shards(remote)] == [str(problem) for problem in verify_shards(shards)]
    monkeypatch.setattr(verify_shard, "_POLICY", replace(QUICK, outage_s=0.1))
    server.fault = of_tars(lambda _: Fault(status=503))
    with pytest.raises(MachineError, match=r"shard-00000\d\.tar: 503 Service Unavailable.*verify the set again"):
        list(verify_shards(remote))


@pytest.fixture
def many(shards: ShardSet, tmp_path: Path) -> Iterator[RangeServer]:
    """A server, 100 ms away, of a set of 60 shards, which are links to three."""
    repeat(shards.root, tmp_path / "many", 20 * len(shards))
    with serving(RangeServer(tmp_path / "many", latency_s=0.1)) as running:
        yield running


def test_indices_that_are_opened_one_after_the_other_are_fetched_side_by_side(
    many: RangeServer, tmp_path: Path
) -> None:
    remote = open_ranges(many, tmp_path / "cache")
    assert [len(remote.index(number)) for number in range(len(remote.info.shards))] == [5, 5, 3] * 20
    assert many.together > 4
    many.requests.clear()
    with_gaps = open_ranges(many, tmp_path / "other")
    for number in range(0, 60, 7):  # no order that tells what comes next
        with_gaps.index(number)
    assert sum(count for name, count in many.requests.items() if name.endswith(".arrow")) == 9


def test_inspecting_a_large_remote_set_reads_some_of_its_indices(
    many: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "SHARDS", 10)
    assert run_program("inspect", many.url, "--set", f"data.cache={tmp_path / 'cache'}") == 0
    assert sum(many.requests.values()) == 12 and many.together > 4  # dataset.json, once more to see ranges, 10 indices
    assert "--all reads all of them" in " ".join(capfd.readouterr().out.split())
    assert run_program("inspect", many.url, "--all", "--set", f"data.cache={tmp_path / 'cache'}") == 0
    assert {name: count for name, count in many.requests.items() if count > 1} == {"dataset.json": 4}
    assert len(many.requests) == 61


def test_samples_are_looked_at_side_by_side(many: RangeServer, tmp_path: Path) -> None:
    run = ["--set", f"data.cache={tmp_path}", "--set", "clips.num_frames=2", "--set", "augment.size=16"]
    assert run_program("show", many.url, "--samples", "6", "--out", tmp_path / "clips.png", *run) == 0
    indices = {name: count for name, count in many.requests.items() if name.endswith(".arrow")}
    tars = {name: count for name, count in many.requests.items() if name.endswith(".tar")}
    assert len(indices) == len(tars) == 6 and set(indices.values()) == {1}
    assert many.together >= 6


def test_shards_are_copied_side_by_side_for_their_check(
    many: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    remote = open_ranges(many, tmp_path / "cache")
    here, there = ([str(problem) for problem in verify_shards(one)] for one in (open_folder(many.root), remote))
    assert here == there and len(here) > 60  # a wds2idx index is missing of each
    assert many.together > 4 and not list((tmp_path / "temporary").iterdir())


def test_copies_stay_until_their_check_is_done(many: RangeServer, tmp_path: Path) -> None:
    remote = open_ranges(many, tmp_path / "cache")
    known = {"root": remote.root, "classes": (), "deep": False, "address": many.url, "marker": tmp_path / "marker"}
    jobs = [
        VerifyJob(number=number, shard=shard, facts=index_facts(shard, remote.info), **known)  # type: ignore[arg-type]
        for number, shard in enumerate(remote.info.shards)
    ]
    (tmp_path / "copies").mkdir()
    for job in list(copied_ahead(jobs, tmp_path / "copies")):  # all are handed out before the first is checked
        assert job.copied is not None and (job.copied.folder / job.shard.tar).stat().st_size == job.shard.bytes
