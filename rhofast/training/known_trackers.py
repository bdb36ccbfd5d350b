"""The trackers that Accelerate knows: how each begins, continues and ends a run.

    name         a resumed run            configuration   how the run ended
    tensorboard  the same folder          as text         -
    wandb        the same id              yes             finished, preempted, failed
    mlflow       the id that it gave      once            FINISHED, KILLED, FAILED
    trackio      the same name            yes             -
    comet_ml     the same key             yes             as "state"
    aim          the hash that it gave    yes             success, or not
    clearml      the id that it gave      yes             completed, stopped, failed
    swanlab      the same id              yes             success, aborted, crashed
    dvclive      the same folder          yes             -

What a user sets by the tracker's own environment variables or login (server, team, tags, offline) is left to them. To
add one that Accelerate has learned, add a row to KNOWN_TRACKERS, and its name to rhofast/config/training.py.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.training.tracker import EndState, TrackedRun


def _store_config(tracker: Any, run: TrackedRun) -> None:
    tracker.store_init_configuration(dict(run.config))


def _store_flat(tracker: Any, run: TrackedRun) -> None:
    tracker.store_init_configuration(flattened(run.config))


def _finish(tracker: Any, state: EndState) -> None:
    tracker.finish()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """How to drive one of Accelerate's trackers.

    Attributes:
        install: The package that pip installs.
        options: Keyword arguments of its class.
        places: Positional arguments of its class.
        begun: Called once it has begun: names and configuration.
        given_id: Reads the id that it gave the run.
        finish: Ends it.
    """

    install: str
    options: Callable[[TrackedRun], dict[str, Any]]
    places: Callable[[TrackedRun], tuple[str, ...]] = lambda run: (run.project,)
    begun: Callable[[Any, TrackedRun], None] = _store_config
    given_id: Callable[[Any], str | None] = lambda tracker: None
    finish: Callable[[Any, EndState], None] = _finish


class KnownTracker:
    """One of Accelerate's trackers, as a `Tracker`."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        """Begin the run there, or continue it.

        Args:
            name: A key of KNOWN_TRACKERS.
            run: The run.
        """
        self._known = KNOWN_TRACKERS[name]
        self._tracker = LOGGER_TYPE_TO_CLASS[name](*self._known.places(run), **self._known.options(run))
        self._tracker.start()
        self.given_id = self._known.given_id(self._tracker)
        self._known.begun(self._tracker, run)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a window."""
        self._tracker.log(dict(values), step=step)

    def finish(self, state: EndState) -> None:
        """Say how the run ended, where the tracker knows such a thing, and let it send what it has."""
        self._known.finish(self._tracker, state)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names ("train.batch_size"); lists become JSON texts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _tensorboard_begun(tracker: Any, run: TrackedRun) -> None:
    if not run.resumed:  # as a text; its table of hyperparameters would be a run of its own for every process
        text = json.dumps(run.config, indent=2).replace("\n", "\n    ")
        tracker.writer.add_text("config", f"    {text}", global_step=run.step)


def _finish_wandb(tracker: Any, state: EndState) -> None:
    if state == "stopped":
        tracker.run.mark_preempting()
    tracker.run.finish(exit_code=0 if state == "finished" else 1)


def _mlflow_begun(tracker: Any, run: TrackedRun) -> None:
    if not run.resumed:  # it refuses values that change
        _store_flat(tracker, run)


def _finish_mlflow(tracker: Any, state: EndState) -> None:
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state]
    importlib.import_module("mlflow").end_run(status=status)


def _comet_begun(tracker: Any, run: TrackedRun) -> None:
    tracker.writer.set_name(run.name)
    _store_flat(tracker, run)


def _finish_comet(tracker: Any, state: EndState) -> None:
    tracker.writer.log_other("state", state)
    tracker.finish()


def _aim_begun(tracker: Any, run: TrackedRun) -> None:
    tracker.writer.name = run.name
    _store_config(tracker, run)


def _finish_aim(tracker: Any, state: EndState) -> None:
    if state == "finished":
        tracker.writer.report_successful_finish()
    tracker.finish()


def _finish_clearml(tracker: Any, state: EndState) -> None:
    if state == "failed":
        tracker.task.mark_failed()
    elif state == "stopped":
        tracker.task.mark_stopped()
    tracker.finish()


def _finish_swanlab(tracker: Any, state: EndState) -> None:
    word = {"finished": "success", "stopped": "aborted", "failed": "crashed"}[state]
    tracker.run.finish(state=word, error="the run failed; its metrics.jsonl says why" if state == "failed" else None)


KNOWN_TRACKERS: dict[str, _Known] = {
    # The queue holds some windows. What an earlier process logged about steps that are now taken again is void.
    "tensorboard": _Known(
        install="tensorboard",
        places=lambda run: ("", str(RunFolder(run.folder).tensorboard)),
        options=lambda run: {"max_queue": 1000, "purge_step": run.step + 1},
        begun=_tensorboard_begun,
    ),
    "wandb": _Known(
        install="wandb",
        options=lambda run: {"name": run.name, "id": run.id, "resume": "allow", "dir": str(run.folder)},
        finish=_finish_wandb,
    ),
    "mlflow": _Known(
        install="mlflow",
        options=lambda run: {"run_name": run.name, "run_id": run.given_id},
        begun=_mlflow_begun,
        given_id=lambda tracker: str(tracker.active_run.info.run_id),
        finish=_finish_mlflow,
    ),
    # A run is found again by its name, so the name has to be its own.
    "trackio": _Known(
        install="trackio",
        options=lambda run: {
            "name": f"{run.name}-{run.id[:8]}",
            "resume": "allow",
            "config": dict(run.config),
            "embed": False,
        },
        begun=lambda tracker, run: None,
    ),
    "comet_ml": _Known(
        install="comet_ml",
        options=lambda run: {"experiment_key": run.id, "mode": "get_or_create"},
        begun=_comet_begun,
        finish=_finish_comet,
    ),
    # Its repository holds the runs of a folder, so that they can be compared.
    "aim": _Known(
        install="aim",
        places=lambda run: (run.project, str(run.folder.parent)),
        options=lambda run: {
            "experiment": run.project,
            "run_hash": run.given_id,
            "force_resume": run.given_id is not None,
            "capture_terminal_logs": False,
        },
        begun=_aim_begun,
        given_id=lambda tracker: str(tracker.writer.hash),
        finish=_finish_aim,
    ),
    # Its hooks in other packages would upload checkpoints. Steps are counted from 0 in a continued run, too.
    "clearml": _Known(
        install="clearml",
        options=lambda run: {
            "task_name": run.name,
            "reuse_last_task_id": run.given_id or False,
            "continue_last_task": 0 if run.given_id else False,
            "auto_connect_frameworks": False,
            "auto_connect_arg_parser": False,
            "auto_connect_streams": False,
        },
        given_id=lambda tracker: str(tracker.task.id),
        finish=_finish_clearml,
    ),
    "swanlab": _Known(
        install="swanlab",
        options=lambda run: {
            "name": run.name,
            "id": run.id,
            "resume": "allow",
            "log_dir": str(run.folder / "swanlog"),
        },
        finish=_finish_swanlab,
    ),
    # It would commit to the user's repository at the end.
    "dvclive": _Known(
        install="dvclive",
        options=lambda run: {
            "dir": str(run.folder / "dvclive"),
            "resume": run.resumed,
            "save_dvc_exp": False,
            "dvcyaml": False,
        },
        begun=_store_flat,
    ),
}
