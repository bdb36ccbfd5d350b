"""Trackers: names, missing packages, the same run on resume, how a run ended, and failures that cost it nothing."""

import importlib.util
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rhofast.training.trackers as trackers
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.config.training import TRACKERS
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, DependencyError
from rhofast.training.known_trackers import KNOWN_TRACKERS, KnownTracker
from rhofast.training.tracker import EndState, TrackedRun
from rhofast.training.trackers import RunTrackers, check_trackers
from rhofast.training.trainer import train
from tests.helpers.shards import TINY_PAGE

OWN = """
import json

class Lines:
    def __init__(self, run):
        self.path = run.folder / "lines.jsonl"
        self.write(begins=run.id, resumed=run.resumed, name=run.name, project=run.project, step=run.step,
                   batch=run.config["train"]["batch_size"])

    def write(self, **line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\\n")

    def log(self, values, step):
        self.write(step=step, loss=values.get("loss"), knn=values.get("knn_top1"))

    def finish(self, state):
        self.write(ends=state)

class Offline(Lines):
    def log(self, values, step):
        raise ConnectionError("https://me:secret@host: no route to host\\nmore")

class LoggedOut(Lines):
    def __init__(self, run):
        raise PermissionError("no key: log in first")

class Mute:
    def __init__(self, run):
        pass

    def log(self, values, step):
        pass

class Idle(Lines):
    def __init__(self):
        pass
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(shards: ShardSet, tmp_path: Path) -> Callable[..., Config]:
    """Return the tiny configuration with overrides, over the tiny set, and with it a file of trackers of its own."""
    path, name = tmp_path / "tiny.toml", f"own_{tmp_path.name}"  # a module is imported once per process
    path.write_text(TINY_PAGE)
    (tmp_path / f"{name}.py").write_text(OWN)

    def build(*own: str, **options: Any) -> Config:
        options["trackers"] = [*(f"{tmp_path / name}.py:{one}" for one in own), *options.get("trackers", [])]
        sets = {"out": tmp_path, "data.train": shards.root}
        sets |= {f"train.{key}": json.dumps(value) for key, value in options.items()}
        return load_config(path, [f"{key}={value}" for key, value in sets.items()])

    return build


def lines_of(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.folder / "lines.jsonl").read_text().splitlines()]


def warnings_of(config: Config) -> list[str]:
    return [line["text"] for line in read_metrics(config.folder / "metrics.jsonl") if line["kind"] == "warning"]


def test_every_tracker_that_accelerate_knows_can_be_named() -> None:
    assert set(TRACKERS) == set(KNOWN_TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


def test_a_name_that_is_none_is_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"trackers='wadnb' is not one of tensorboard, wandb, .*package.module:Class"):
        tiny(trackers=["wadnb"])
    with pytest.raises(ConfigError, match="tracker_project"):
        tiny(tracker_project="a/b")


@pytest.mark.parametrize("name", sorted(set(TRACKERS) - {"tensorboard"}))
def test_one_that_is_not_installed_is_said_before_anything_is_made(
    name: str, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *_: None if wanted == name else find(wanted))
    config = tiny(trackers=[name])
    with pytest.raises(DependencyError, match=name) as caught:
        train(config)
    assert caught.value.hint == f"pip install {name}" and not config.folder.exists()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("Mute", "it has no method 'finish'"),
        ("Idle", r"it takes \(\), and is called with one argument, the run"),
        ("Absent", "'Absent' does not exist"),
    ],
)
def test_a_class_that_is_no_tracker_is_said_before_anything_is_made(
    own: str, said: str, tiny: Callable[..., Config]
) -> None:
    config = tiny(own)
    with pytest.raises(ConfigError, match=rf"train\.trackers=.*:{own}: {said}"):
        train(config)
    assert not config.folder.exists()


def test_a_class_of_the_user_s_own_is_told_everything(tiny: Callable[..., Config]) -> None:
    first = tiny("Lines", steps=3, log_steps=1, max_hours=1e-9, tracker_project="mine")
    assert not train(first).finished
    second = tiny("Lines", steps=3, log_steps=1, tracker_project="mine")
    assert train(second, resume=True).finished

    def fail(line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        train(tiny("Lines", steps=4, log_steps=1), resume=True, accept_changes=True, on_log=fail)
    lines = lines_of(first)
    begins = [line for line in lines if "begins" in line]
    told = {"name": "tiny", "project": "mine", "batch": 4}
    assert begins[0] == {"begins": begins[0]["begins"], "resumed": False, "step": 0, **told}
    assert begins[1] == {"begins": begins[0]["begins"], "resumed": True, "step": 1, **told}
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert all(line["loss"] is not None for line in lines if "loss" in line)
    assert [line["ends"] for line in lines if "ends" in line] == ["stopped", "finished", "failed"]
    assert warnings_of(first) == []


def test_one_that_fails_costs_its_numbers_and_one_line(tiny: Callable[..., Config]) -> None:
    config = tiny("Offline", trackers=["tensorboard"], steps=3, log_steps=1)
    assert train(config).finished
    assert warnings_of(config) == [
        f"tracker {config.train.trackers[0]}: numbers are lost, which metrics.jsonl has: ConnectionError: "
        "https://host: no route to host",
        f"tracker {config.train.trackers[0]} lacks 3 windows of numbers",
    ]
    assert [line["ends"] for line in lines_of(config) if "ends" in line] == ["finished"]
    shown = EventAccumulator(str(config.folder / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3]
    assert '"batch_size": 4' in shown.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_one_that_does_not_begin_ends_a_run_that_begins_and_no_other(tiny: Callable[..., Config]) -> None:
    config = tiny("Lines", "LoggedOut", steps=2)
    with pytest.raises(ConfigError, match=r"LoggedOut does not begin: PermissionError: no key: log in first") as caught:
        train(config)
    assert "leave it out of train.trackers" in str(caught.value.hint)
    assert [line["ends"] for line in lines_of(config) if "ends" in line] == ["failed"]
    train(tiny(steps=2), resume=True)
    again = tiny("LoggedOut", steps=3)
    assert train(again, resume=True, accept_changes=True).finished
    assert [text.partition(", and gets")[0] for text in warnings_of(again)] == [
        f"tracker {again.train.trackers[0]} does not begin"
    ]


class Slow:
    """A tracker whose network hangs until a test lets it go."""

    released = threading.Event()

    def __init__(self, run: TrackedRun) -> None:
        self.taken: list[int] = []

    def log(self, values: Any, step: int) -> None:
        self.released.wait()
        self.taken.append(step)

    def finish(self, state: EndState) -> None:
        pass


def test_nothing_waits_for_one_that_hangs(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "KnownTracker", lambda name, run: Slow(run))
    monkeypatch.setattr(trackers, "_FINISH_S", 0.1)
    config = tiny(trackers=["wandb"])
    config.folder.mkdir()
    run = RunTrackers(config)
    run.open(0)
    began = time.perf_counter()
    for step in range(1, 1101):
        run.log({"loss": 1.0}, step)
    run.finish("finished")
    assert time.perf_counter() - began < 5  # each of them would wait for ever
    first, second, third = run.news()
    assert first == "tracker wandb: numbers are lost, which metrics.jsonl has: 1000 windows wait for it"
    assert second == "tracker wandb has not ended within 0.1 s, and may lack the last numbers"
    assert third in ("tracker wandb lacks 99 windows of numbers", "tracker wandb lacks 100 windows of numbers")
    Slow.released.set()


def test_one_that_hangs_when_it_begins_is_said(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    leave = threading.Event()
    ended: list[EndState] = []

    def begin(name: str, run: TrackedRun) -> Any:
        leave.wait()
        return SimpleNamespace(finish=ended.append)

    monkeypatch.setattr(trackers, "KnownTracker", begin)
    monkeypatch.setattr(trackers, "_START_S", 0.05)
    config = tiny(trackers=["wandb"])
    config.folder.mkdir()
    run = RunTrackers(config)
    with pytest.raises(ConfigError, match=r"trackers=wandb does not begin: no answer within 0\.05 s"):
        run.open(0)
    run.open(7)
    assert run.news() == ["tracker wandb does not begin, and gets nothing of this process: no answer within 0.05 s"]
    leave.set()
    for thread in threading.enumerate():
        if thread.name == "tracker wandb":
            thread.join(5)
    assert ended == ["failed", "failed"]  # what began too late is not left open


def test_a_damaged_file_of_ids_is_refused(tiny: Callable[..., Config]) -> None:
    config = tiny(trackers=["tensorboard"])
    config.folder.mkdir()
    (config.folder / "trackers.json").write_text('{"id": "x"}')
    with pytest.raises(ConfigError, match=r"trackers\.json.*delete the file"):
        RunTrackers(config).open(0)


RUN = TrackedRun(
    project="rhofast",
    name="tiny",
    id="0123456789abcdef" * 2,
    folder=Path("runs/tiny"),
    config={"name": "tiny", "train": {"steps": 3, "trackers": ["mlflow"]}},
    step=2,
    resumed=True,
    given_id="theirs",
)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tensorboard", {"purge_step": 3}),
        ("wandb", {"name": "tiny", "id": RUN.id, "resume": "allow"}),
        ("mlflow", {"run_name": "tiny", "run_id": "theirs"}),
        ("trackio", {"name": "tiny-01234567", "resume": "allow", "config": RUN.config}),
        ("comet_ml", {"experiment_key": RUN.id, "mode": "get_or_create"}),
        ("aim", {"run_hash": "theirs", "force_resume": True, "experiment": "rhofast"}),
        ("clearml", {"task_name": "tiny", "reuse_last_task_id": "theirs", "continue_last_task": 0}),
        ("swanlab", {"name": "tiny", "id": RUN.id, "resume": "allow"}),
        ("dvclive", {"dir": "runs/tiny/dvclive", "resume": True, "save_dvc_exp": False}),
    ],
)
def test_each_continues_the_same_run(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kind = MagicMock()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    tracker = KnownTracker(name, RUN)
    places, given = kind.call_args
    assert {key: given[key] for key in options} == options
    assert places[0] == ("" if name == "tensorboard" else "rhofast")
    assert kind.return_value.method_calls[0][0] == "start"
    stored = kind.return_value.store_init_configuration.call_args
    if name in ("comet_ml", "dvclive"):
        assert stored.args[0] == {"name": "tiny", "train.steps": 3, "train.trackers": '["mlflow"]'}
    elif name in ("tensorboard", "mlflow", "trackio"):
        assert stored is None
    else:
        assert stored.args[0] == RUN.config
    tracker.log({"loss": 1.0}, 3)
    kind.return_value.log.assert_called_once_with({"loss": 1.0}, step=3)


@pytest.mark.parametrize(
    ("name", "called", "ends"),
    [
        ("wandb", "run.finish", [{"exit_code": 0}, {"exit_code": 1}, {"exit_code": 1}]),
        ("swanlab", "run.finish", [{"state": "success"}, {"state": "aborted"}, {"state": "crashed"}]),
        ("wandb", "run.mark_preempting", [None, {}, None]),
        ("clearml", "task.mark_stopped", [None, {}, None]),
        ("clearml", "task.mark_failed", [None, None, {}]),
        ("aim", "writer.report_successful_finish", [{}, None, None]),
    ],
)
def test_each_says_how_the_run_ended(
    name: str, called: str, ends: list[dict[str, Any] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: tuple[EndState, ...] = ("finished", "stopped", "failed")
    for state, end in zip(states, ends, strict=True):
        kind = MagicMock()
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
        KnownTracker(name, RUN).finish(state)
        calls = [call for call in kind.return_value.method_calls if call[0] == called]
        assert len(calls) == (end is not None)
        assert end is None or end.items() <= calls[0].kwargs.items()
        if name in ("aim", "clearml"):
            kind.return_value.finish.assert_called_once_with()


def test_trackio_shows_a_resumed_run_as_one(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported, here for the first time
    pytest.importorskip("trackio")
    Accelerator(cpu=True)
    config = tiny(trackers=["trackio"], tracker_project="shown")
    config.folder.mkdir()
    for step in (0, 2):
        run = RunTrackers(config)
        run.open(step)
        for later in (1, 2):
            run.log({"loss": 1.0 / (step + later)}, step + later)
        run.finish("finished")
        assert run.news() == []
    identity = json.loads((config.folder / "trackers.json").read_text())["id"]
    with sqlite3.connect(tmp_path / "trackio" / "shown.db") as base:
        rows = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step, json.loads(values)["loss"]) for name, step, values in rows] == [
        (f"tiny-{identity[:8]}", step, 1.0 / step) for step in (1, 2, 3, 4)
    ]


def test_nothing_is_checked_or_made_without_trackers(tiny: Callable[..., Config]) -> None:
    config = tiny()
    check_trackers(config.train)
    run = RunTrackers(config)
    run.open(0)
    run.log({"loss": 1.0}, 1)
    run.finish("finished")
    assert run.news() == [] and not config.folder.exists()
