"""A trained backbone as a folder of the Hugging Face Hub: config.json, model.safetensors, README.md.

It has one of two forms:

    hub            rhofast's own: `rhofast.load_backbone(folder)`, for every backbone
    transformers   that of `transformers`: `AutoModel.from_pretrained(folder)`, for a `vit` (models/hub_form.py)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn

from rhofast.checkpoint.backbone_file import VERSION, save_backbone
from rhofast.checkpoint.export import SavedRun, Transfer, taken_over, trained
from rhofast.checkpoint.model_card import model_card, public_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.hub_form import hub_form
from rhofast.models.weight_file import PROCESSOR
from rhofast.storage.files import check_unicode, write_atomically
from rhofast.storage.hub import CARD, CONFIG, WEIGHTS

FolderForm = Literal["hub", "transformers"]
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")


def check_folder(folder: Path, license: str | None) -> None:
    """Check what can be checked before a checkpoint is read.

    Args:
        folder: The folder to write. It does not exist, or is empty.
        license: Identifier of a license, or None.

    Raises:
        ConfigError: There is something at that place, there is no folder for it, or the license is no identifier.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(
            f"--license {license!r}: not an identifier of a license",
            hint="such as apache-2.0, mit, cc-by-nc-4.0, other",
        )
    check_unicode(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something there already", hint="name a new folder")
    if not folder.parent.is_dir():
        raise ConfigError(f"{folder}: there is no folder {folder.parent}", hint=f"create it: mkdir -p {folder.parent}")


def write_folder(
    saved: SavedRun,
    folder: Path,
    *,
    form: FolderForm,
    run: Path | None = None,
    named: str | None = None,
    address: str | None = None,
    license: str | None = None,
) -> Transfer:
    """Write the trained backbone of a checkpoint as a folder.

    Args:
        saved: The checkpoint.
        folder: The folder to write; it does not exist, or is empty.
        form: "hub" or "transformers".
        run: The run folder, for the metrics that were logged at this very step; None: without them.
        named: The `backbone.name` that the user gave, without which no code of a user is imported.
        address: user/name of the repository, or user/name@revision, for the model card; None: the folder.
        license: Identifier of a license, for the model card; None: a line to fill in.

    Raises:
        ConfigError: The folder cannot be written, or the form does not hold this backbone.
        ResumeError: The checkpoint's weights do not fit its configuration.
        NotFiniteError: The weights have values that are not finite.
    """
    check_folder(folder, license)
    config, backbone, card = trained(saved, run=run, named=named)
    try:
        write = _write_own if form == "hub" else _write_transformers
        content, load, library = write(folder, config, backbone, card, address)
        write_atomically(folder / CONFIG, json.dumps(content, indent=2) + "\n")
        text = model_card(
            title=(address or folder.resolve().name).rpartition("/")[2].partition("@")[0],
            config=config,
            step=saved.step,
            card=card,
            load=load,
            license=license,
            code=saved.code.get("backbone"),
            library=library,
        )
        write_atomically(folder / CARD, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return Transfer(
        origin=card["origin"],
        target=folder,
        backbone=config.backbone.name,
        options=config.backbone.options,
        entries=taken_over(saved),
        card=card,
        load=load,
    )


def _write_own(
    folder: Path, config: Config, backbone: nn.Module, card: dict[str, Any], address: str | None
) -> tuple[dict[str, Any], str, str]:
    """Write the weights in rhofast's form; return content of config.json, code that loads it, and its library."""
    name, options = config.backbone.name, config.backbone.options
    folder.mkdir(exist_ok=True)
    save_backbone(backbone, folder / WEIGHTS, name=name, options=options, card=card)
    content = {"rhofast": {"version": VERSION, "backbone": {"name": name, **options}, "card": card}}
    place = f"hf://{address}" if address else str(folder.resolve().name)
    also = ', backbone="path/to/file.py:function"' if ":" in name else ""
    load = (
        "import rhofast\n\n"
        f'backbone = rhofast.load_backbone("{place}"{also})\n'
        f"features = backbone(clips)  # {_shape(card)} -> [N, {backbone.num_features}]"
    )
    return {**content, "config": public_config(config)}, load, "rhofast"


def _write_transformers(
    folder: Path, config: Config, backbone: nn.Module, card: dict[str, Any], address: str | None
) -> tuple[dict[str, Any], str, str]:
    """Write the weights in the form of `transformers`; return the same as `_write_own`."""
    augment = config.augment
    form = hub_form(backbone, num_frames=config.clips.num_frames, size=augment.size, mean=augment.mean, std=augment.std)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / PROCESSOR, json.dumps(form.processor, indent=2) + "\n")
    save_file(form.state, folder / WEIGHTS, metadata={"format": "pt"})
    shape = f"[N, {config.clips.num_frames}, 3, {config.augment.size}, {config.augment.size}]"
    place, _, revision = (address or folder.resolve().name).partition("@")
    also = f', revision="{revision}"' if revision else ""
    load = (
        f"from transformers import {form.model}\n\n"
        f'model = {form.model}.from_pretrained("{place}"{also}).eval()\n'
        f"features = {form.features}  # clips {shape} -> [N, {backbone.num_features}]"
    )
    return form.config, load, "transformers"


def _shape(card: dict[str, Any]) -> str:
    return str(card["input"]["text"]).partition("]")[0] + "]"
