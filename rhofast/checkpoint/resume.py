"""How a run is begun or continued: its folder, the checkpoint that is whole, and what has changed since.

Settings that only say where, how often or with how many hands may change freely. Any other change gives another result
than the run would have had, and must be accepted by name (`--accept-changes`). What it is not: the loader's own check
that the data are the same, which nothing overrides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhofast.checkpoint.checkpoint import Checkpoint, checkpoints_of, find_damage, load_checkpoint
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError, ResumeError
from rhofast.storage.files import write_atomically

# What a run's result does not depend on. The data are the loader's to compare: by their digest, wherever they are.
_FREE = {"name", "out", "data", "eval"}
_FREE_IN_TRAIN = {
    *("channels_last", "checkpoint_activations", "checkpoint_steps", "compile", "keep_checkpoints", "keep_every"),
    *("knn_epochs", "knn_steps", "log_steps", "max_bad_steps", "max_hours", "profile_steps", "timeout_s", "trackers"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A run folder that training may go on in. folder, checkpoint: where to continue from, or None: from the beginning;
    notes: what the user should know of it, a line each."""

    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()


def open_run(config: Config, *, resume: bool, accept_changes: bool = False) -> OpenedRun:
    """Make the run folder, or find where to continue. One process does it. Raises ConfigError where the folder exists
    and `resume` is off, or cannot be made; ResumeError for a change that is not accepted."""
    run = config.folder
    if run.exists() and not resume:
        raise ConfigError(
            f"{run}: the run folder exists", hint="continue it with --resume, or choose another name: --set name=..."
        )
    opened = _find_whole(run) if resume else OpenedRun()
    notes = list(opened.notes)
    if opened.checkpoint is not None:
        notes += _accepted_changes(opened.checkpoint.config, config, accept=accept_changes)
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(RunFolder(run).config, json.dumps(dump_config(config), indent=1))
    except OSError as error:
        raise ConfigError(f"{run}: {error.strerror or error}") from None
    return OpenedRun(folder=opened.folder, checkpoint=opened.checkpoint, notes=tuple(notes))


def _find_whole(run: Path) -> OpenedRun:
    """The newest checkpoint that is undamaged; damaged ones that come before it get another name, so that nothing takes
    them for one. Raises ResumeError where all are damaged."""
    damaged: list[tuple[Path, str]] = []
    for folder in checkpoints_of(run):
        damage = find_damage(folder)
        if damage is not None:
            damaged.append((folder, damage))
            continue
        notes = [
            f"checkpoint {bad.name} is not whole ({why}): now {_put_aside(bad).name}; continuing from {folder.name}"
            for bad, why in damaged
        ]
        return OpenedRun(folder=folder, checkpoint=load_checkpoint(folder, check=False), notes=tuple(notes))
    if damaged:
        folder, damage = damaged[0]
        raise ResumeError(f"{folder}: not whole ({damage}), and no other is", hint="choose another name for a new run")
    return OpenedRun()


def _put_aside(folder: Path) -> Path:
    number = 0
    while (kept := folder.with_name(f"damaged-{folder.name}" + (f"-{number}" if number else ""))).exists():
        number += 1
    try:
        return folder.rename(kept)
    except OSError as error:
        raise ResumeError(f"{folder}: damaged, and cannot be renamed: {error.strerror or error}") from None


def _accepted_changes(old: Config, new: Config, *, accept: bool) -> list[str]:
    """A line for each setting that differs. Raises ResumeError where one matters and `accept` is off."""
    before, now = _flat(dump_config(old)), _flat(dump_config(new))
    free: list[str] = []
    others: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            section, _, name = key.partition(".")
            allowed = section in _FREE or (section == "train" and name in _FREE_IN_TRAIN)
            (free if allowed else others).append(f"{key} was {_text(before, key)}, is {_text(now, key)}")
    if others and not accept:
        raise ResumeError(
            "the checkpoint belongs to another configuration: " + "; ".join(others),
            hint="--accept-changes continues nevertheless, as another experiment; or choose another name for a new run",
        )
    return [f"changed: {line}" for line in free] + [f"changed, and accepted: {line}" for line in others]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key."""
    flat: dict[str, Any] = {}
    for section, value in values.items():
        flat |= {f"{section}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _text(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
