"""The trackers of a run: services and programs that show its numbers, besides metrics.jsonl.

    check_trackers      before anything is opened: names, packages, the user's own classes
    RunTrackers.open    each tracker in a thread of its own (tracker_thread.py)
    RunTrackers.log     hands a window's numbers on; never waits, never raises
    RunTrackers.finish  says how the run ended, and waits for a limited time

Those that Accelerate knows are in known_trackers.py. A class of the user's own follows `Tracker` (tracker.py).
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config
from rhofast.config.schema import Config, TrainConfig
from rhofast.errors import ConfigError, DependencyError
from rhofast.storage.address import redacted
from rhofast.storage.files import open_regular, write_atomically
from rhofast.storage.strict_json import parse_record
from rhofast.storage.user_code import failures_of, import_function, is_reference
from rhofast.training.known_trackers import KNOWN_TRACKERS, KnownTracker
from rhofast.training.tracker import EndState, TrackedRun
from rhofast.training.tracker_thread import TrackerThread

_START_S = 120.0  # for a tracker to begin; the other ranks wait for it
_FINISH_S = 60.0  # for all trackers together to send what they still have
_HURRIED_S = 2.0  # the same, when somebody waits
_MAX_BYTES = 1 << 20  # of trackers.json


class _Ids(BaseModel):
    """The file trackers.json: the run's id, and what each tracker calls it (None: by that very id)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    trackers: dict[str, str | None] = Field(default_factory=dict)


def check_trackers(section: TrainConfig) -> None:
    """Check that the trackers can be made: their packages are installed, the user's own classes can be imported.

    Raises:
        ConfigError: A class of the user's own cannot be imported, or lacks a method.
        DependencyError: A package is not installed.
    """
    for name in section.trackers:
        if is_reference(name):
            _check_class(import_function(name, "train.trackers").call, f"train.trackers={name}")
        elif importlib.util.find_spec(name) is None:
            command = f"pip install {KNOWN_TRACKERS[name].install}"
            raise DependencyError(f'train.trackers="{name}" needs a package that is not installed.', hint=command)


class RunTrackers:
    """The trackers of a run on rank 0; on other ranks, and without trackers, nothing."""

    def __init__(self, config: Config) -> None:
        """Prepare for the run of a configuration; nothing is opened before `open`."""
        self._config = config
        self._threads: list[TrackerThread] = []
        self._news: list[str] = []

    def open(self, step: int) -> None:
        """Begin, or continue where an earlier process of this run was.

        A tracker that does not begin is an error for a run that begins, and a warning for one that continues, whose
        checkpoints may be worth days.

        Args:
            step: Optimizer steps done.

        Raises:
            ConfigError: At step 0, a tracker does not begin.
        """
        path = RunFolder(self._config.folder).trackers
        ids = _read_ids(path) or _Ids(id=uuid.uuid4().hex)
        kept = dict(ids.trackers)
        for name in dict.fromkeys(self._config.train.trackers):
            run = TrackedRun(
                project=self._config.train.tracker_project,
                name=self._config.name,
                id=ids.id,
                folder=self._config.folder,
                config=dump_config(self._config),
                step=step,
                resumed=name in kept,
                given_id=kept.get(name),
            )
            thread = TrackerThread(name, functools.partial(_make, name, run))
            problem = thread.start(_START_S)
            if problem is None:
                kept[name] = thread.given_id
                self._threads.append(thread)
            elif step == 0:
                self.finish("failed")
                hint = "log in, or set it up as its manual says; or leave it out of train.trackers"
                raise ConfigError(f"train.trackers={redacted(name)} does not begin: {problem}", hint=hint)
            else:
                self._news.append(f"tracker {name} does not begin, and gets nothing of this process: {problem}")
        if self._threads:
            try:
                write_atomically(path, json.dumps({"id": ids.id, "trackers": kept}) + "\n")
            except OSError as error:
                text = f"{path.name} cannot be written: {error.strerror or error}"
                self._news.append(f"{text}; when the run is resumed, trackers will show another one")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand the numbers after `step` optimizer steps to every tracker; this waits for none of them."""
        for thread in self._threads:
            thread.log(dict(values), step)

    def news(self) -> list[str]:
        """Return lines about what has gone wrong with trackers since the last call."""
        news, self._news = [*self._news, *(line for thread in self._threads for line in thread.news())], []
        return news

    def finish(self, state: EndState, *, hurried: bool = False) -> None:
        """Tell every tracker how the run ended, and wait for a limited time until they have sent what they have."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.request_finish(state)
        self._news += TrackerThread.join_all(threads, _HURRIED_S if hurried else _FINISH_S)


def _make(name: str, run: TrackedRun) -> Any:
    """Return a tracker that has begun."""
    if not is_reference(name):
        return KnownTracker(name, run)
    tracker = import_function(name, "train.trackers").call(run)
    for method in ("log", "finish"):
        if not callable(getattr(tracker, method, None)):
            raise TypeError(f"it has no method {method!r}")
    return tracker


def _check_class(call: Callable[..., Any], where: str) -> None:
    """Raise ConfigError for a class that is no `Tracker`; what a function returns is checked when it is called."""
    with failures_of(f"{where}: its parameters cannot be read"):
        signature = inspect.signature(call)
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigError(f"{where}: it takes {signature}, and is called with one argument, the run") from None
    missing = [name for name in ("log", "finish") if inspect.isclass(call) and not callable(getattr(call, name, None))]
    if missing:
        raise ConfigError(
            f"{where}: it has no method {missing[0]!r}", hint="it needs log(values, step) and finish(state)"
        )


def _read_ids(path: Path) -> _Ids | None:
    """Return the ids of a run that had trackers before; raise ConfigError if the file was damaged."""
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    hint = "delete the file: the trackers will then show a new run"
    return parse_record(content, _Ids, where=path, raises=ConfigError, hint=hint)
