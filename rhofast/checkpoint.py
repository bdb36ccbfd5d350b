"""Checkpoints: folders that are either whole or not there, without a pickle anywhere.

    RUN/checkpoints/step-00000500/
        method.safetensors      parameters and buffers of the method: backbone, heads, key network, counters
        optimizer.safetensors   its tensors, as NUMBER.NAME
        state.json              step, loader position, optimizer's plain values, the run's configuration
    RUN/checkpoints/latest      the name of the newest one

A folder is written under another name, flushed to the disk, and renamed; `latest` moves only then. What it is not: it
does not decide when to save (train.py).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rhofast.backbones import build_backbone
from rhofast.config import Config, dump_config, parse_config
from rhofast.errors import ResumeError
from rhofast.files import flush, write_atomically
from rhofast.rng import Stream, bits

VERSION = 1
_FOLDER, _LATEST = "checkpoints", "latest"
_METHOD, _OPTIMIZER, _STATE = "method.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint in memory. step: optimizer steps done; loader, method, optimizer: what their state_dict gave."""

    step: int
    config: Config
    loader: dict[str, Any]
    method: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, make it the latest, and delete all but the newest `keep`. Returns its folder. Raises OSError
    (a full disk, say); the older checkpoints are untouched then."""
    folder = run / _FOLDER / f"step-{checkpoint.step:08d}"
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors, plain = _split_optimizer(checkpoint.optimizer)
    state = {
        "version": VERSION,
        "step": checkpoint.step,
        "loader": checkpoint.loader,
        "optimizer": plain,
        "config": dump_config(checkpoint.config),
    }
    try:
        save_file(_storable(checkpoint.method), aside / _METHOD)
        save_file(_storable(tensors), aside / _OPTIMIZER)
        (aside / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in aside.iterdir():
            flush(path)
        if folder.exists():  # a run that went back to an older checkpoint comes here again
            shutil.rmtree(folder)
        aside.rename(folder)
        write_atomically(folder.parent / _LATEST, folder.name)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in sorted(folder.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run folder, or None. A folder that misses a file is passed over."""
    folders = sorted((run / _FOLDER).glob("step-*"), reverse=True)
    named = run / _FOLDER / _LATEST
    if named.is_file():
        first = run / _FOLDER / named.read_text(encoding="utf-8").strip()
        folders = [first, *(folder for folder in folders if folder != first)]
    whole = (folder for folder in folders if all((folder / name).is_file() for name in (_METHOD, _OPTIMIZER, _STATE)))
    return next(whole, None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Raises ResumeError if it is not one, is of another version, or is damaged."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        method, tensors = load_file(folder / _METHOD), load_file(folder / _OPTIMIZER)
    except (OSError, ValueError, SafetensorError) as error:
        raise ResumeError(f"{folder}: not a whole checkpoint: {error}") from None
    if state.get("version") != VERSION:
        raise ResumeError(f"{folder}: checkpoint version {state.get('version')}, this rhofast reads {VERSION}")
    return Checkpoint(
        step=state["step"],
        config=parse_config(state["config"], where=str(folder / _STATE)),
        loader=state["loader"],
        method=method,
        optimizer=_join_optimizer(tensors, state["optimizer"]),
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a user means by a run folder or a checkpoint folder. Raises ResumeError."""
    if (path / _STATE).is_file():
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise ResumeError(
            f"{path}: neither a checkpoint nor a run with one", hint="give runs/NAME or a step-... folder"
        )
    return found


def untrained_backbone(config: Config) -> nn.Module:
    """The backbone that a run of this configuration begins with, to the bit; leaves torch's generator where the run
    leaves it, so that what else has weights comes after."""
    torch.manual_seed(int(bits(config.seed, 0, 0, Stream.MODEL, 1)[0] >> 1))
    return _build(config)


def trained_backbone(folder: Path) -> tuple[nn.Module, Config]:
    """The trained backbone of a checkpoint folder, and the configuration of its run. Raises ResumeError."""
    checkpoint = load_checkpoint(folder)
    backbone = _build(checkpoint.config)
    prefix = "backbone."
    weights = {key.removeprefix(prefix): value for key, value in checkpoint.method.items() if key.startswith(prefix)}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        name = checkpoint.config.backbone.name
        raise ResumeError(f"{folder}: its weights do not fit backbone {name!r}: {error}") from None
    return backbone, checkpoint.config


def _build(config: Config) -> nn.Module:
    """Raises ConfigError where the backbone does not take the run's clips."""
    section, num_frames, size = config.backbone, config.clips.num_frames, config.augment.size
    return build_backbone(section.name, section.options, num_frames=num_frames, size=size)


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors `NUMBER.NAME` and plain values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                values.setdefault(str(number), {})[name] = value
    return tensors, {"values": values, "groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(number): dict(slots) for number, slots in plain["values"].items()}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous, on the CPU, sharing nothing: what safetensors asks for."""
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
