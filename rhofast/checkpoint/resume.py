"""Begin or continue a run: its folder, the newest whole checkpoint, and what has changed since.

Settings that say only where, how often or with how many threads something happens may change freely. Any other change
gives another result than the run would have had, and must be accepted (`--accept-changes`). That the data are the same
is checked by the loader, and nothing overrides that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rhofast.checkpoint.checkpoint import Checkpoint, checkpoints_of, find_damage, load_checkpoint
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError, ResumeError
from rhofast.models.weight_fit import find_misfit, shown
from rhofast.storage.files import write_atomically
from rhofast.storage.user_code import imported_digests

# Settings that a run's result does not depend on. The loader compares the data by their digest, wherever they are.
_FREE_SECTIONS = {"name", "out", "data", "eval"}
_FREE_IN_TRAIN = {
    *("channels_last", "checkpoint_activations", "checkpoint_steps", "compile", "keep_checkpoints", "keep_every"),
    *("knn_epochs", "knn_steps", "log_steps", "max_bad_steps", "max_hours", "profile_steps", "timeout_s"),
    *("tracker_project", "trackers"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A run folder that training may begin or continue in.

    Attributes:
        folder: The checkpoint folder to continue from, or None to begin.
        checkpoint: What it holds, or None.
        notes: What the user should know about it, one line each.
    """

    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()


def open_run(config: Config, *, resume: bool, accept_changes: bool = False) -> OpenedRun:
    """Find where to continue in a run folder, and record the configuration in it. One process does it for all.

    Args:
        config: The configuration of the run. Its folder exists, and its lock is held (`run_lock.claim_run`).
        resume: Continue from the newest whole checkpoint, or begin if there is none.
        accept_changes: Continue even if settings differ on which the result depends.

    Raises:
        ConfigError: The folder cannot be written.
        ResumeError: All checkpoints are damaged, or a change is not accepted.
    """
    run = config.folder
    opened = _find_whole(run) if resume else OpenedRun()
    notes = list(opened.notes)
    if opened.checkpoint is not None:
        notes += _accepted_changes(opened.checkpoint, config, accept=accept_changes)
    try:
        write_atomically(RunFolder(run).config, json.dumps(dump_config(config), indent=1))
    except OSError as error:
        raise ConfigError(f"{run}: {error.strerror or error}") from None
    return OpenedRun(folder=opened.folder, checkpoint=opened.checkpoint, notes=tuple(notes))


def check_resumable(checkpoint: Checkpoint, network: Mapping[str, Tensor], steps: int) -> None:
    """Check that a network can continue from a checkpoint, before anything is loaded.

    Args:
        checkpoint: The checkpoint.
        network: State dict of what is trained.
        steps: Steps of the whole run.

    Raises:
        ResumeError: The weights do not fit the network, or the step is beyond the run's last one.
    """
    misfit = find_misfit(network, checkpoint.method)
    if misfit is not None:
        raise ResumeError(f"the checkpoint's weights do not fit this configuration: {misfit}")
    if checkpoint.step > steps:
        raise ResumeError(
            f"step={checkpoint.step} of the checkpoint is beyond the last step of the run, {steps}",
            hint="set train.steps or train.epochs to at least as much",
        )


def check_scaler(state: Mapping[str, float], own: Mapping[str, float]) -> None:
    """Check the state of a loss scaler before it is loaded.

    Args:
        state: The state in the checkpoint.
        own: The state of this run's scaler.

    Raises:
        ResumeError: A value is missing or not known, or is not positive.
    """
    for key in {**own, **state}:
        value = state.get(key)
        if key not in own or value is None or isinstance(value, bool) or value < 0 or type(value) is not type(own[key]):
            raise ResumeError(f"the state of the loss scaler does not fit: scaler.{shown(key)}={value!r}")


@contextmanager
def naming(folder: Path | None) -> Iterator[None]:
    """Name the checkpoint in errors about what does not fit."""
    try:
        yield
    except ResumeError as error:
        raise ResumeError(f"{folder}: {error.message}", hint=error.hint) from None


def _find_whole(run: Path) -> OpenedRun:
    """Load the newest undamaged checkpoint; rename damaged ones that come before it, so that nothing picks them.

    Raises ResumeError if all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for folder in checkpoints_of(run):
        damage = find_damage(folder)
        if damage is not None:
            damaged.append((folder, damage))
            continue
        notes = [
            f"checkpoint {bad.name} is damaged ({why}): now {_put_aside(bad).name}; continuing from {folder.name}"
            for bad, why in damaged
        ]
        return OpenedRun(folder=folder, checkpoint=load_checkpoint(folder, check=False), notes=tuple(notes))
    if damaged:
        folder, damage = damaged[0]
        raise ResumeError(
            f"{folder}: the checkpoint is damaged ({damage}), and so are all others of the run",
            hint="begin a new run under another name: --set name=...",
        )
    return OpenedRun()


def _put_aside(folder: Path) -> Path:
    number = 0
    while (target := folder.with_name(f"damaged-{folder.name}" + (f"-{number}" if number else ""))).exists():
        number += 1
    try:
        return folder.rename(target)
    except OSError as error:
        raise ResumeError(
            f"{folder}: the checkpoint is damaged and cannot be renamed: {error.strerror or error}",
            hint="delete the folder, or make it writable",
        ) from None


def _accepted_changes(checkpoint: Checkpoint, new: Config, *, accept: bool) -> list[str]:
    """Return a line for each changed setting; raise ResumeError if the result depends on one and `accept` is off.

    The files that define a backbone or a method of the user's own are compared by their SHA-256.
    """
    before, now = _by_dotted_key(dump_config(checkpoint.config)), _by_dotted_key(dump_config(new))
    free: list[str] = []
    others: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            section, _, name = key.partition(".")
            allowed = section in _FREE_SECTIONS or (section == "train" and name in _FREE_IN_TRAIN)
            (free if allowed else others).append(f"{key} was {_text(before, key)}, is {_text(now, key)}")
    for kind, digest in imported_digests(backbone=new.backbone.name, method=new.method.name).items():
        if (saved := checkpoint.code.get(kind)) is not None and saved != digest:
            others.append(f"the file of {kind}.name={now[f'{kind}.name']} had SHA-256 {saved[:12]}, has {digest[:12]}")
    if others and not accept:
        raise ResumeError(
            "the checkpoint belongs to another configuration: " + "; ".join(others),
            hint="continue as another experiment with --accept-changes, or begin a new run: --set name=...",
        )
    return [f"changed: {line}" for line in free] + [f"changed, and accepted: {line}" for line in others]


def _by_dotted_key(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in values.items():
        flat |= (
            {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {section: value}
        )
    return flat


def _text(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
