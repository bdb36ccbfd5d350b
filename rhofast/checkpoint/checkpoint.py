"""Checkpoints: folders that are either whole or absent, without a pickle anywhere.

    RUN/checkpoints/step-00000500/
        method.safetensors      parameters and buffers of the method: backbone, heads, momentum network, counters
        optimizer.safetensors   tensors of the optimizer, as NUMBER.NAME
        state.json              step, loader position, the optimizer's plain values, the run's configuration
        manifest.json           length and SHA-256 of the other files, so that damage is noticed
    RUN/checkpoints/latest      the name of the newest checkpoint

A folder is written under a name that no other process uses, flushed to the disk, and renamed; `latest` moves only then.
So the files of a folder, and the digests in its manifest, are those of one writer. When to save is decided in
manager.py, async_writer.py saves in the background, and run_lock.py lets one process at a time into a run folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rhofast.checkpoint.records import FileRecord, Manifest, OptimizerRecord, State, Version
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config, parse_config
from rhofast.config.schema import Config
from rhofast.errors import ResumeError, RhofastError
from rhofast.models.weight_fit import shown
from rhofast.storage.files import flush, open_regular, write_atomically
from rhofast.storage.strict_json import parse_record, read_bounded
from rhofast.storage.tensor_file import read_tensors

VERSION = 2
_MANIFEST = "manifest.json"
_METHOD, _OPTIMIZER, _STATE = "method.safetensors", "optimizer.safetensors", "state.json"
_FILES = (_METHOD, _OPTIMIZER, _STATE)
_MAX_JSON = 16 << 20  # bytes of a JSON file
_MAX_NAME = 255  # bytes of the name in `latest`
_FOLDER = re.compile(r"step-[0-9]{8,16}")
_SLOT = re.compile(r"(0|[1-9][0-9]{0,8})\.[A-Za-z_][A-Za-z0-9_]{0,63}")  # the name of an optimizer's tensor
_OTHER = "give another checkpoint of the run, or the run folder for its newest whole one"


class _DamageError(RhofastError):
    """What is wrong with a manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: Optimizer steps done.
        config: The run's configuration.
        loader: State of the loader: the position after the last batch that was consumed.
        method: State dict of the method, or of a classifier.
        optimizer: State dict of the optimizer.
        scaler: State of the loss scaler in fp16, or None.
        code: The SHA-256 of the files that define `backbone` and `method`, where these are code of the user's own.
    """

    step: int
    config: Config
    loader: dict[str, Any]
    method: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SerializedCheckpoint:
    """A checkpoint as it is stored.

    Attributes:
        step: Optimizer steps done.
        state: The text of state.json.
        method: Tensors of method.safetensors by name.
        optimizer: Tensors of optimizer.safetensors by name.
    """

    step: int
    state: str
    method: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def serialize_checkpoint(checkpoint: Checkpoint) -> SerializedCheckpoint:
    """Return what is stored of a checkpoint: its plain values as text, its tensors without a copy."""
    tensors, plain = _split_optimizer(checkpoint.optimizer)
    state = {
        "version": VERSION,
        "step": checkpoint.step,
        "loader": checkpoint.loader,
        "optimizer": plain,
        "scaler": checkpoint.scaler,
        "config": dump_config(checkpoint.config),
        "code": dict(checkpoint.code),
    }
    text = json.dumps(state, indent=1)
    return SerializedCheckpoint(step=checkpoint.step, state=text, method=checkpoint.method, optimizer=tensors)


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int, keep_every: int | None = None) -> Path:
    """Write a checkpoint, make it the latest, and delete old ones.

    Args:
        run: The run folder.
        checkpoint: What to write.
        keep: How many of the newest checkpoints stay, this one included.
        keep_every: Checkpoints whose step is a multiple of this stay as well; None: no others.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: It could not be written, on a full disk for example; older checkpoints are intact then.
    """
    folder = write_serialized(run, serialize_checkpoint(checkpoint))
    prune_checkpoints(folder, keep=keep, keep_every=keep_every)
    return folder


def write_serialized(run: Path, serialized: SerializedCheckpoint) -> Path:
    """Write a checkpoint and make it the latest.

    Args:
        run: The run folder.
        serialized: What to write.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: It could not be written; nothing of it is left then.
    """
    folder = RunFolder(run).checkpoint(serialized.step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    aside.mkdir()
    try:
        save_file(_storable(serialized.method), aside / _METHOD)
        save_file(_storable(serialized.optimizer), aside / _OPTIMIZER)
        (aside / _STATE).write_text(serialized.state, encoding="utf-8")
        for name in (_METHOD, _OPTIMIZER):  # safetensors makes files that nobody else may read, whatever the umask
            shutil.copymode(aside / _STATE, aside / name)
        manifest = {name: _measure(aside / name).model_dump() for name in _FILES}
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            flush(path)
        if folder.exists():  # a run that went back to an older checkpoint comes here again
            shutil.rmtree(folder)
        aside.rename(folder)
        write_atomically(RunFolder(run).latest, folder.name)  # flushes the names in the folder, too
    except SafetensorError as error:  # how it says that the disk is full
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{folder}: {error}") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def prune_checkpoints(folder: Path, *, keep: int, keep_every: int | None = None) -> None:
    """Delete old checkpoints; what cannot be deleted stays for the next time.

    Args:
        folder: The newest checkpoint; only older ones are deleted.
        keep: How many of the newest checkpoints stay, `folder` included.
        keep_every: Checkpoints whose step is a multiple of this stay as well; None: no others.
    """
    so_far = [other for other in _folders(folder.parent) if other.name <= folder.name]
    for old in so_far[:-keep]:
        if keep_every is None or step_of(old) % keep_every:
            shutil.rmtree(old, ignore_errors=True)


def _folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoint folders in a folder, whole or not, the oldest first."""
    return sorted(folder for folder in checkpoints.glob("step-*") if _FOLDER.fullmatch(folder.name))


def remove_unfinished(run: Path) -> None:
    """Delete what killed writers have left of checkpoints. No other process may be writing (see run_lock.py)."""
    for aside in RunFolder(run).checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(aside, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run folder whose files are as long as they should be, or None."""
    return next((folder for folder in checkpoints_of(run) if find_damage(folder, deep=False) is None), None)


def checkpoints_of(run: Path) -> list[Path]:
    """Return a run's checkpoint folders, whole or not: the one to continue from first, then those before it."""
    folders = _folders(RunFolder(run).checkpoints)[::-1]
    try:
        with open_regular(RunFolder(run).latest) as file:
            name = file.read(_MAX_NAME).decode(errors="replace").strip()
    except OSError:
        return folders
    return sorted(folders, key=lambda folder: folder.name > name)  # newer ones were left behind by going back


def find_damage(folder: Path, *, deep: bool = True) -> str | None:
    """Return what is wrong with the files of a checkpoint folder, or None.

    Args:
        folder: The checkpoint.
        deep: Compare every byte (SHA-256), not only lengths.

    Raises:
        ResumeError: The files cannot be read, which says nothing about what they hold.
    """
    try:
        content = _read_small(folder / _MANIFEST)
        manifest = parse_record(content, Manifest, where=_MANIFEST, raises=_DamageError)
        for name, record in manifest.files.items():
            length = (folder / name).stat().st_size
            if length != record.bytes:
                return f"{name} has {length} bytes instead of {record.bytes}"
            if deep and _measure(folder / name) != record:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        raise ResumeError(f"{error.filename or folder}: {error.strerror or error}") from None
    except _DamageError as error:
        return f"{_MANIFEST} is damaged: {error.message.removeprefix(f'{_MANIFEST}: ')}"
    return None


def load_checkpoint(folder: Path, *, check: bool = True) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Args:
        folder: The checkpoint.
        check: Verify first that its files are undamaged.

    Raises:
        ResumeError: The folder is no checkpoint, is damaged, or is of another version.
    """
    damage = find_damage(folder) if check else None
    if damage is not None:
        raise ResumeError(f"{folder}: not a whole checkpoint: {damage}", hint=_OTHER)
    path = folder / _STATE
    content = read_bounded(path, raises=ResumeError, max_bytes=_MAX_JSON, hint=_OTHER)
    version = parse_record(content, Version, where=path, raises=ResumeError, hint=_OTHER).version
    if version != VERSION:
        raise ResumeError(
            f"{folder}: checkpoint version {version}, and this rhofast reads version {VERSION}",
            hint="use the rhofast that wrote it, or begin a new run",
        )
    state = parse_record(content, State, where=path, raises=ResumeError, hint=_OTHER)
    tensors = read_tensors(folder / _OPTIMIZER, raises=ResumeError, hint=_OTHER)
    for key in tensors:
        if not _SLOT.fullmatch(key):
            raise ResumeError(f"{folder / _OPTIMIZER}: {shown(key)} is no entry of an optimizer", hint=_OTHER)
    return Checkpoint(
        step=state.step,
        config=parse_config(state.config, where=str(path)),
        loader=dict(state.loader),
        method=read_tensors(folder / _METHOD, raises=ResumeError, hint=_OTHER),
        optimizer=_join_optimizer(tensors, state.optimizer),
        scaler=state.scaler,
        code={str(kind): digest for kind, digest in state.code.items()},
    )


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that a path (of a run, or of a checkpoint) stands for; raise ResumeError if none."""
    if (path / _STATE).is_file():
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise ResumeError(
            f"{path}: neither a checkpoint nor a run with a whole one", hint="give runs/NAME or a step-... folder"
        )
    return found


def _read_small(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_MAX_JSON)


def _measure(path: Path) -> FileRecord:
    """Return what the manifest records about a file."""
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        return FileRecord(bytes=length, sha256=hashlib.file_digest(cast(Any, file), "sha256").hexdigest())


def step_of(folder: Path) -> int:
    """Return the number of optimizer steps in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors by `NUMBER.NAME`, and plain values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                values.setdefault(str(number), {})[name] = value
    return tensors, {"values": values, "groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], plain: OptimizerRecord) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(number): dict(slots) for number, slots in plain.values.items()}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": [dict(group) for group in plain.groups]}


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors needs them: detached, contiguous, on the CPU, sharing no memory."""
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
