"""One file per backbone: NAME.safetensors, whose metadata holds what builds the network again, and its card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rhofast.checkpoint.card import Notes
from rhofast.checkpoint.records import Version
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_fit import find_misfit, find_not_finite, state_on_meta
from rhofast.storage.files import replacing
from rhofast.storage.hub import local_weights
from rhofast.storage.strict_json import parse_record
from rhofast.storage.tensor_file import read_tensor_header, read_tensors
from rhofast.storage.user_code import imported_digest, renamed

VERSION = 1


def save_backbone(
    backbone: nn.Module, path: Path, *, name: str, options: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """Write a backbone as one safetensors file, whose metadata holds what builds it again.

    Args:
        backbone: The network.
        path: The file to write; one that is there is replaced.
        name: Name of the backbone, as in a config's [backbone].
        options: Its options, as there.
        card: Anything worth knowing that JSON can hold: what goes in, training data, metrics.

    Raises:
        OSError: The file cannot be written.
    """
    notes = {"version": VERSION, "backbone": {"name": name, **options}, "card": card, "code": imported_digest(name)}
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    with replacing(path) as aside:
        save_file(weights, aside, metadata={"rhofast": json.dumps(notes)})


def load_backbone(path: str | Path, *, backbone: str | None = None) -> nn.Module:
    """Load a backbone that was exported or imported, in evaluation mode: [N, 3, T, H, W] -> [N, num_features].

    Its `card` is a dict; `card["input"]` says what goes in: num_frames, frame_stride, fps, size, mean, std, each None
    if it is not known, and as a sentence (`text`).

    Args:
        path: The file, a folder that holds it as `model.safetensors`, or a repository of the Hugging Face Hub as
            `hf://user/name` or `hf://user/name@revision`.
        backbone: For a backbone of a user's own code: `package.module:function` or `path/to/file.py:function`. The
            file holds no code, and the name in it is not imported.

    Raises:
        ConfigError: The file is no such export, or cannot be read.
        StoreError: The hub cannot be reached, or refuses.
    """
    file = local_weights(path)
    with naming_source(path, file):
        network, notes = load_with_notes(file, named=backbone, python=True)
    network.card = notes.card.model_dump(exclude_unset=True)  # type: ignore[assignment]
    return network


@contextlib.contextmanager
def naming_source(source: str | Path, file: Path) -> Iterator[None]:
    """Let errors name the address that the user gave, not the file in a cache that it stands for."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.message.replace(str(file), str(source)), hint=error.hint) from None


def load_with_notes(path: Path, *, named: str | None = None, python: bool = False) -> tuple[nn.Module, Notes]:
    """Load a backbone in evaluation mode, and what its file says about it.

    Args:
        path: The file.
        named: The `backbone.name` that the user gave, without which no code of a user is imported.
        python: Whether a hint is about `load_backbone`, not about the command line.

    Returns:
        The backbone, and the notes with the name under which it was imported.

    Raises:
        ConfigError: The file is no export, cannot be read, or holds the weights of another network than it says.
    """
    header = read_tensor_header(path, raises=ConfigError)
    text = header.metadata.get("rhofast")
    if text is None:
        raise ConfigError(
            f"{path}: not a backbone exported by rhofast", hint="make one: rhofast export, rhofast import"
        )
    where = f"{path}: metadata"
    version = parse_record(text.encode(), Version, where=where, raises=ConfigError).version
    if version != VERSION:
        raise ConfigError(
            f"{path}: export version {version}, and this rhofast reads version {VERSION}",
            hint="export or import it again with this rhofast",
        )
    notes = parse_record(text.encode(), Notes, where=where, raises=ConfigError)
    recorded, options = notes.backbone.name, notes.options
    name = renamed(recorded, notes.code, named, where=str(path), python=python)
    notes = notes.model_copy(update={"backbone": notes.backbone.model_copy(update={"name": name})})
    weights = read_tensors(path, raises=ConfigError)
    try:
        misfit = find_misfit(state_on_meta(lambda: build_backbone(name, options)), weights)
    except ValueError as error:
        misfit = str(error)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
    if misfit is None and (broken := find_not_finite(weights)) is not None:
        raise ConfigError(f"{path}: its weights are not finite: {broken}", hint="export an earlier checkpoint")
    if misfit is not None:
        raise ConfigError(f"{path}: its weights do not fit backbone.name={name}: {misfit}")
    backbone = build_backbone(name, options)
    backbone.load_state_dict(weights)
    return backbone.eval(), notes
