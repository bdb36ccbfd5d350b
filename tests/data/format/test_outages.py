"""A store that goes away, or no longer knows who asks, in the middle of a run: the same batches, or a resumable end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from benchmarks.data_loading.range_server import Fault, RangeServer, Request, serving
from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import RemoteShardSet
from rhofast.data.loader import outage_news
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sources import open_shards
from rhofast.errors import MachineError, SampleError
from rhofast.storage import outages
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.network import RetryPolicy
from rhofast.storage.object_store import ObjectFolder
from rhofast.storage.outages import set_outage_handler
from rhofast.storage.request_error import Kind, RequestError
from tests.helpers import object_server
from tests.helpers.loaders import open_loader
from tests.helpers.program import run as run_program

pytest.importorskip("obstore")

ONE = {"prefetch": 1, "threads": 1}
QUICK = RetryPolicy(attempts=2, first_pause_s=0.01, max_pause_s=0.02, timeout_s=1.0, failed_for_s=0.0, outage_s=0.5)


def batches(loader: TrainLoader, count: int) -> list[torch.Tensor]:
    return [next(loader).pixels for _ in range(count)]


def local_batches(shards: ShardSet, folder: Path, count: int) -> list[torch.Tensor]:
    with open_loader(str(shards.root), folder, **ONE) as loader:
        return batches(loader, count)


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        (Fault(send=0), True),
        (Fault(status=403), True),
        (Fault(status=429), True),
        (Fault(status=500), True),
        (Fault(status=503), True),
        (Fault(status=404), False),
    ],
    ids=str,
)
def test_an_outage_of_the_store_is_no_fault_of_a_whole_tar(
    shards: ShardSet, tmp_path: Path, fault: Fault, waited: bool
) -> None:
    with serving(RangeServer(shards.root)) as server:
        remote = RemoteShardSet(RemoteFolder(server.url, QUICK), Cache(tmp_path / "cache", max_bytes=10**9))
        server.fault = lambda _: fault
        began = time.monotonic()
        with pytest.raises(MachineError if waited else SampleError) as caught:
            Reader(remote).read_json(0)
        assert (time.monotonic() - began >= QUICK.outage_s) == waited and "\n" not in str(caught.value)
        assert ("--resume" in str(caught.value)) == waited
        server.fault = lambda request: fault if request.name.startswith("shard-000000") else None
        with pytest.raises(SampleError if fault.status != 429 and fault.status != 503 else MachineError):
            Reader(remote).read_json(0)
        server.fault = lambda _: None
        assert Reader(remote).read_json(0)


@pytest.mark.parametrize("remote", ["ranges", "cache"])
@pytest.mark.parametrize("name", ["dataset.json", "shard-000000.arrow", "shard-000000.tar"])
def test_whatever_is_waited_for_is_told_once_and_so_is_its_end(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remote: str
) -> None:
    told: list[tuple[str, str, float]] = []
    monkeypatch.setattr(outages, "FIRST_S", 0.0)
    monkeypatch.setattr("rhofast.data.sources.RetryPolicy", partial(RetryPolicy, first_pause_s=0.01, max_pause_s=0.02))
    left = [Fault(status=503)] * 3

    def fault(request: Request) -> Fault | None:
        return left.pop() if left and request.name == name else None

    set_outage_handler(lambda *news: told.append(news))
    try:
        with serving(RangeServer(shards.root, fault=fault)) as server:
            data = DataConfig(cache=tmp_path / "cache", remote=remote, timeout_s=20.0)
            Reader(open_shards(server.url, data=data)).read_json(0)
    finally:
        set_outage_handler(None)
    (store, fault_text, limit_s), end = told
    assert store == server.url.removesuffix("/set") and "503" in fault_text and 15 <= limit_s <= 20
    assert end == (store, "", 0.0)


def test_every_command_says_that_it_waits_for_a_store(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outages, "FIRST_S", 0.0)
    left = [Fault(status=503)]
    with serving(RangeServer(shards.root, fault=lambda _: left.pop() if left else None)) as server:
        assert run_program("inspect", server.url, "--set", f"data.cache={tmp_path}") == 0
    said = capfd.readouterr().err
    store = server.url.removesuffix("/set")
    assert said.count(f"waiting for {store}: 503") == 1 and said.count(f"{store} answers again") == 1


@pytest.mark.parametrize("remote", ["ranges", "cache"])
def test_a_store_that_is_gone_for_a_while_changes_no_batch(
    shards: ShardSet, tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = local_batches(shards, tmp_path, 5)
    monkeypatch.setattr("rhofast.data.sources.RetryPolicy", partial(RetryPolicy, first_pause_s=0.05, max_pause_s=0.1))
    monkeypatch.setattr(outage_news, "_FIRST_S", 0.5)
    said: list[str] = []
    with serving(RangeServer(shards.root)) as server:
        loader = open_loader(server.url, tmp_path / "cache", remote=remote, **ONE, timeout_s=30)
        with loader, ThreadPoolExecutor(1) as pool, loader.outages.told_to(lambda text: said.append(text)):
            gone = Event()

            def be_away() -> None:
                with server.away():
                    gone.set()
                    time.sleep(2)

            away = pool.submit(be_away)
            gone.wait()
            assert same(batches(loader, 5), local) and loader.stats.bad == 0
            away.result()
            stats = loader.stats
    assert 0 < stats.outage_s <= stats.wait_s
    assert "a store did not answer for" in stats.advise(threads=1, decode_threads=1, cores=2)
    assert [text.partition(";")[0] for text in said[:-1]] == [
        f"waiting for {server.url}: Cannot connect: Connection refused"
    ]
    assert said[-1].startswith("the batch is there, after")


@pytest.mark.parametrize("address", ["http://no-such-host.invalid/set", "http://127.0.0.1:1/set"])
@pytest.mark.parametrize("library", [ObjectFolder, FsspecFolder])
def test_no_dns_and_no_server_are_known_as_what_they_are(address: str, library: Any) -> None:
    with pytest.raises(RequestError) as caught, library(address, 2.0).stream("shard-000000.tar"):
        pass
    assert caught.value.kind is Kind.AWAY and "\n" not in caught.value.text


@pytest.fixture
def store(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_server.ObjectServer]:
    """A store that holds the set in `BUCKET/set`."""
    with object_server.serving(f"bucket-{uuid.uuid4().hex[:8]}") as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        for path in shards.root.iterdir():
            server.objects[f"{next(iter(server.buckets))}/set/{path.name}"] = path.read_bytes()
        yield server


@pytest.mark.parametrize("remote", ["ranges", "cache"])
def test_credentials_that_expire_are_looked_up_anew(
    store: object_server.ObjectServer, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    local = local_batches(shards, tmp_path, 6)
    loader = open_loader(
        f"s3://{next(iter(store.buckets))}/set", tmp_path / "cache", remote=remote, **ONE, timeout_s=30
    )
    store.accepted = "Credential=second"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "second")
    with loader:
        assert same(batches(loader, 3), local[:3])
        store.accepted = "Credential=third"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "third")
        assert same(batches(loader, 3), local[3:]) and loader.stats.bad == 0


@pytest.mark.parametrize("remote", ["ranges", "cache"])
@pytest.mark.parametrize("refusal", [(400, b"<Error><Code>ExpiredToken</Code></Error>"), (401, b""), (403, b"")])
def test_credentials_that_are_late_are_waited_for_and_then_end_the_run_resumably(
    store: object_server.ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str, refusal: Any
) -> None:
    monkeypatch.setattr("rhofast.data.sources.RetryPolicy", partial(RetryPolicy, first_pause_s=0.05, max_pause_s=0.1))
    address = f"gs://{next(iter(store.buckets))}/set"
    loader = open_loader(address, tmp_path / "cache", remote=remote, **ONE, timeout_s=1.5)
    store.fault = lambda method, target: (refusal[0], {}, refusal[1])
    with loader, pytest.raises(MachineError, match=str(refusal[0])) as caught:
        batches(loader, 6)
    assert "--resume" in str(caught.value) and address in str(caught.value)
