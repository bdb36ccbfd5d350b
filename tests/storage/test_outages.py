"""A store that is away for a while is waited for, and that is told where somebody listens, once per outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.data_loading.range_server import Fault, RangeServer, Request, serving
from rhofast.cli.console import told_of_outages
from rhofast.ingest import ray_cluster
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.isolation import IsolatedProcess
from rhofast.storage import outages
from rhofast.storage.fetch import FetchError, fetch
from rhofast.storage.network import RetryPolicy
from rhofast.storage.outages import set_outage_handler, tell_outage
from rhofast.storage.request_error import Kind, RequestError

pytest.importorskip("obstore")

News = list[tuple[str, str, float]]
PATIENT = RetryPolicy(attempts=2, first_pause_s=0.01, max_pause_s=0.02, timeout_s=5.0, outage_s=60.0)


@pytest.fixture
def told() -> Iterator[News]:
    news: News = []
    set_outage_handler(lambda *one: news.append(one))
    yield news
    set_outage_handler(None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.mp4").write_bytes(b"content")
    with serving(RangeServer(tmp_path / "site")) as running:
        yield running


def busy(count: int) -> Callable[[Request], Fault | None]:
    left = [Fault(status=503)] * count
    return lambda _: left.pop() if left else None


def test_a_long_wait_is_told_once_and_so_is_its_end(
    server: RangeServer, told: News, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_S", 0.0)
    address, copy = f"{server.url}/a.mp4", tmp_path / "copy"
    place = server.url.removesuffix("/set")
    fetch(address, copy, PATIENT)
    assert not told
    server.fault = busy(12)
    fetch(address, copy, PATIENT)
    assert told == [(place, "503 Service Unavailable", 60.0), (place, "", 0.0)] and copy.read_bytes() == b"content"
    monkeypatch.setattr(outages, "FIRST_S", 10.0)
    server.fault = busy(12)
    fetch(address, copy, PATIENT)
    assert len(told) == 2  # nothing of a short one


def test_a_store_that_does_not_come_back_is_waited_for_once(server: RangeServer, tmp_path: Path) -> None:
    address, copy = f"{server.url}/a.mp4", tmp_path / "copy"
    fetch(address, copy, PATIENT)
    server.fault = lambda _: Fault(status=503)
    policy = replace(PATIENT, outage_s=0.3)

    def tries() -> int:
        server.requests.clear()
        with pytest.raises(FetchError) as caught:
            fetch(address, copy, policy)
        assert caught.value.kind is Kind.BUSY
        return server.requests["a.mp4"]

    assert tries() > policy.attempts and tries() == policy.attempts
    server.fault = lambda _: None
    fetch(address, copy, policy)
    server.fault = busy(4)
    fetch(address, copy, PATIENT)  # it has answered meanwhile


def test_stores_that_never_answered_are_waited_for_as_well_but_all_together_not_for_long(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have begun in an outage, and a list may have many dead links."""
    monkeypatch.setattr("rhofast.storage.fetch._answering", set())
    monkeypatch.setattr("rhofast.storage.fetch._in_vain", [0.0])
    copy, policy = tmp_path / "copy", replace(PATIENT, outage_s=60.0, unknown_s=0.5)
    server.fault = busy(12)
    fetch(f"{server.url}/a.mp4", copy, policy)
    assert copy.read_bytes() == b"content"
    asked: list[str] = []

    def never(place: str, _: float) -> Any:
        asked.append(place)
        raise RequestError(Kind.AWAY, "Name or service not known")

    monkeypatch.setattr("rhofast.storage.fetch.open_store_file", never)
    for number in range(5):
        with pytest.raises(FetchError, match="Name or service not known"):
            fetch(f"http://gone-{number}/a.mp4", copy, policy)
    counts = [asked.count(f"http://gone-{number}/a.mp4") for number in range(5)]
    assert counts[0] > policy.attempts and counts[1:] == [policy.attempts] * 4


def wait_in_vain(number: int) -> int:
    tell_outage("s3://bucket", f"fault {number}", 120.0)
    return number


def wait_in_a_process_of_a_process(number: int) -> int:
    process = IsolatedProcess()
    try:
        return process.call(wait_in_vain, number, seconds=60)
    finally:
        process.close()


def test_news_reach_the_process_that_began_the_work(told: News) -> None:
    assert sorted(LocalProcesses(2).run(wait_in_a_process_of_a_process, range(3))) == [0, 1, 2]
    assert sorted(told) == [("s3://bucket", f"fault {number}", 120.0) for number in range(3)]


class LateRay:
    """What is asked of an actor arrives there, and the answer only after so many that were too late."""

    exceptions = SimpleNamespace(GetTimeoutError=TimeoutError, RayActorError=ConnectionError)

    def __init__(self, late: int) -> None:
        self.late = late

    def get(self, answers: list[Any], timeout: float) -> list[Any]:
        self.late -= 1
        if self.late >= 0:
            raise TimeoutError
        return answers


def test_news_of_a_cluster_come_once_however_late_its_answers_are(told: News) -> None:
    ray, on_a_node, seen, all_news = LateRay(2), ray_cluster._ProgressActor(), 0, []
    actor = SimpleNamespace(read=SimpleNamespace(remote=on_a_node.read), news=SimpleNamespace(remote=on_a_node.news))
    for number in range(5):
        all_news.append(("s3://bucket", f"fault {number}", 120.0))
        on_a_node.tell(all_news[-1])
        _, seen = ray_cluster._read_progress(ray, actor, (), {}, seen)
        assert told == ([] if number < 2 else all_news)
    assert len(on_a_node._told) == 1  # those that have arrived are forgotten


def test_many_requests_that_meet_one_outage_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with told_of_outages():
        for _ in range(3):
            tell_outage("s3://bucket", "Cannot connect: dns error", 600.0)
        tell_outage("https://host", "503 Service Unavailable", 120.0)
        for _ in range(3):
            tell_outage("s3://bucket", "")
    tell_outage("s3://bucket", "Cannot connect: dns error", 600.0)  # nobody listens
    assert capsys.readouterr().err.splitlines() == [
        "waiting for s3://bucket: Cannot connect: dns error; for up to 600 s",
        "waiting for https://host: 503 Service Unavailable; for up to 120 s",
        "s3://bucket answers again, after 10 s",
    ]
