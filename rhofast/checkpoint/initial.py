"""The weights that a run begins with: random ones, or those of a file (`train.init_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.checkpoint.backbone_file import load_with_notes
from rhofast.checkpoint.card import Notes
from rhofast.config.schema import Config
from rhofast.config.section import Section
from rhofast.errors import ConfigError
from rhofast.models.backbones import TRAINING_OPTIONS
from rhofast.storage.strict_json import parse_record
from rhofast.storage.tensor_file import read_tensor_header

_CLOSE = 1e-3  # means and standard deviations of pixels that differ by less are the same


def initial_backbone(config: Config) -> nn.Module:
    """Build the backbone that a new run begins with, with the weights of `train.init_from`, or else random ones.

    torch's generator is left where it is without the file, so that heads begin with the same weights.

    Args:
        config: The configuration of the run.

    Raises:
        ConfigError: The file cannot be read, or holds another network than the configuration describes.
    """
    backbone, path = untrained_backbone(config), config.train.init_from
    if path is not None:
        with torch.random.fork_rng(devices=[]):
            trained, notes = load_with_notes(path, named=config.backbone.name)
        _check_same(path, config, backbone, trained, notes)
        backbone.load_state_dict(trained.state_dict())
    return backbone


def initial_notes(config: Config) -> tuple[str, ...]:
    """Return what the user should know of the weights that a new run begins with, one line each.

    Args:
        config: The configuration of a run whose `initial_backbone` has been built.
    """
    path = config.train.init_from
    if path is None:
        return ()
    header = read_tensor_header(path, raises=ConfigError)
    notes = parse_record(header.metadata["rhofast"].encode(), Notes, where=str(path), raises=ConfigError)
    lines = [f"the backbone begins with {path}: {notes.card.origin}"]
    unlike = []
    for key, own in (("mean", config.augment.mean), ("std", config.augment.std)):
        theirs = getattr(notes.card.input, key)
        if theirs is not None and max(abs(one - other) for one, other in zip(own, theirs, strict=True)) > _CLOSE:
            unlike.append(f"augment.{key}={list(theirs)} (here {list(own)})")
    if unlike:
        lines.append(f"the weights of {path} were trained with {' and '.join(unlike)}")
    return tuple(lines)


def _check_same(path: Path, config: Config, backbone: nn.Module, trained: nn.Module, notes: Notes) -> None:
    """Raise ConfigError if two networks differ in more than options for training: equal shapes are not enough."""
    section = config.backbone
    if notes.backbone.name != section.name:
        raise ConfigError(
            f"backbone.name={section.name}: train.init_from={path} holds backbone.name={notes.backbone.name}",
            hint=f"set backbone.name={notes.backbone.name}",
        )
    own = _meaning(section.name, backbone, section.options)
    theirs = _meaning(section.name, trained, notes.options)
    unlike = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key)]
    if unlike:
        said = ", ".join(f"backbone.{key}={own.get(key)}" for key in unlike)
        held = ", ".join(f"backbone.{key}={theirs.get(key)}" for key in unlike)
        options = {key: value for key, value in notes.options.items() if key not in _of_training(section.name)}
        table = " ".join(f"{key}={value}" for key, value in options.items())
        raise ConfigError(
            f"{said}: train.init_from={path} holds {held}", hint=f"its options of [backbone] are: {table or 'none'}"
        )


def _meaning(name: str, network: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide what a network computes, with defaults where its class declares them.

    A size and the numbers that it stands for are the same.
    """
    section = getattr(network, "options", None)
    values = section.model_dump() if isinstance(section, Section) else dict(options)
    if isinstance(sizes := getattr(section, "sizes", None), tuple):
        values |= dict(zip(("width", "depth", "heads"), sizes, strict=True))
        values.pop("size", None)
    if "class_token" in values:
        values["class_token"] = bool(values["class_token"]) or values.get("pool") == "cls"
    return {key: value for key, value in values.items() if key not in _of_training(name)}


def _of_training(name: str) -> tuple[str, ...]:
    return TRAINING_OPTIONS.get(name, ())
