"""A run whose store goes away: it goes on, or ends resumably, and its steps are those of a run that saw no outage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from benchmarks.data_loading.range_server import RangeServer, serving
from rhofast.data import sources
from rhofast.data.format.dataset import ShardSet
from rhofast.storage.network import RetryPolicy
from rhofast.storage.object_store import ObjectFolder
from tests.helpers.program import run
from tests.helpers.shards import TINY_PAGE

pytest.importorskip("obstore")

STEPS, BEFORE = 40, 3  # of the run; of these before the store goes away


def steps(folder: Path, name: str) -> dict[int, float]:
    """Return the loss of each step."""
    path = folder / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


@contextmanager
def without_names() -> Iterator[None]:
    """Have each request ask the resolver of this machine for a host that no resolver knows."""
    nowhere = ObjectFolder("http://no-such-host.invalid/set", 5.0)._opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectFolder, "_opened", lambda _: nowhere)
        yield


@pytest.mark.parametrize(
    ("remote", "cause", "said"),
    [
        ("ranges", RangeServer.away, "Connection refused"),
        ("cache", RangeServer.away, "Connection refused"),
        ("cache", lambda _: without_names(), "failed to lookup address information"),
    ],
    ids=["ranges-server", "cache-server", "cache-dns"],
)
def test_a_run_outlives_an_outage_or_ends_resumably(
    shards: ShardSet,
    tmp_path: Path,
    remote: str,
    cause: Callable[[RangeServer], AbstractContextManager[None]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_PAGE)
    monkeypatch.setattr(sources, "RetryPolicy", partial(RetryPolicy, first_pause_s=0.05, max_pause_s=0.1))
    with serving(RangeServer(shards.root)) as server:

        def train(name: str, *more: str) -> int:
            options = [f"data.train={server.url}", f"data.remote={remote}", f"out={tmp_path}", f"name={name}"]
            options += [f"train.steps={STEPS}", "train.log_steps=1", "train.checkpoint_steps=100", "data.prefetch=1"]
            options += [f"data.cache={tmp_path / name}-cache", "data.timeout_s=60"]
            words = [word for option in options for word in ("--set", option)]
            return run("train", tmp_path / "tiny.toml", *words, *more)

        assert train("plain") == 0

        def be_away(name: str, back: threading.Event, seconds: float) -> None:
            while len(steps(tmp_path, name)) < BEFORE:
                time.sleep(0.01)
            for path in (tmp_path / f"{name}-cache").rglob("shard-*"):
                path.unlink(missing_ok=True)  # or nothing of a small set is asked for again
            with cause(server):
                back.wait(seconds)

        def train_with_outage(name: str, seconds: float) -> int:
            back = threading.Event()
            away = threading.Thread(target=be_away, args=(name, back, seconds))
            away.start()
            code = train(name)
            back.set()
            away.join()
            return code

        assert train_with_outage("above", 1.0) == 0
        monkeypatch.setattr(sources, "_PATIENCE", 0.01)
        monkeypatch.setattr(sources, "_PATIENCE_OF_FILES", 0.01)
        capfd.readouterr()
        assert train_with_outage("below", 60.0) == 75
        told = " ".join(capfd.readouterr().err.split())
        assert told.count("error:") == 1 and said in told and "--resume" in told
        assert BEFORE <= len(steps(tmp_path, "below")) < STEPS
        assert train("below", "--resume") == 0
    assert steps(tmp_path, "plain") == steps(tmp_path, "above") == steps(tmp_path, "below")
