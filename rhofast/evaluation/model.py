"""Open any backbone by one argument, with the configuration of its input.

    runs/first, runs/first/checkpoints/step-...   newest checkpoint of a run, or one of its checkpoints
    backbone.safetensors                          a file of `rhofast export` or `rhofast import`
    hf://user/name, hf://user/name@revision       what `rhofast export --hub` has uploaded, which is downloaded
    SLOW_8x8.pyth                                 a PySlowFast checkpoint; set backbone.name (default: slow_r50)
    r3d_18-b3b3357e.pth                           torchvision's weights, recognized by the file name
    vitl.pt, videomae/model.safetensors           weights of VideoMAE, V-JEPA or timm, recognized by their names
    random                                        an untrained backbone; set backbone.name

The clips have the geometry that the weights were trained with, as far as the file says. A configuration file and
`--set` override it. So they do with the backbone's options for training (`TRAINING_OPTIONS`), which are otherwise the
defaults, not those of the weights: a network that was pretrained on some of the tokens is fine-tuned on all of them.
Nothing else is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rhofast.checkpoint.backbone import backbone_of, untrained_backbone, with_named_code
from rhofast.checkpoint.backbone_file import load_with_notes, naming_source
from rhofast.checkpoint.card import InputCard
from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
from rhofast.checkpoint.run_folder import RunFolder, run_of
from rhofast.config.load import dump_config, find_value, load_config
from rhofast.config.schema import Config
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones import TRAINING_OPTIONS, build_backbone
from rhofast.models.weight_file import open_weights
from rhofast.models.weight_formats import backbone_in, format_for, load_into, options_for
from rhofast.storage.hub import is_hub_address, local_weights, parse_repository
from rhofast.storage.tensor_file import read_tensor_header

RANDOM = "random"
_DEFAULT = {"name": RANDOM, "backbone": {"name": "slow_r50"}}
_CLIPS = ("num_frames", "frame_stride", "fps")
_FILES = (".safetensors", ".pyth", ".pth", ".pt", ".bin")
_PIXELS = ("size", "mean", "std")
# Keys of `data` that name the sets of a run and how they are divided among nodes.
_RUN_DATA_KEYS = ("train", "test", "block_shards", "lanes", "fixed_lanes")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalModel:
    """A backbone to evaluate.

    Attributes:
        backbone: The network, in evaluation mode, on the CPU.
        config: What the weights say, overridden by the configuration file, then by `--set`.
        origin: Where the weights come from, in words.
        step: Number of optimizer steps behind the weights. None where it is not known.
        folder: Folder for result files.
        run: Configuration of the pretraining run. None unless the weights are a checkpoint of rhofast.
    """

    backbone: nn.Module
    config: Config
    origin: str
    step: int | None
    folder: Path
    run: Config | None = None

    def untrained(self) -> nn.Module:
        """Return the same backbone before training. For a run it has the run's exact initial weights."""
        return untrained_backbone(self.run or self.config).eval()


def open_model(
    source: str | Path, *, config_file: str | Path | None = None, overrides: Sequence[str] = ()
) -> EvalModel:
    """Open a backbone and its configuration.

    Args:
        source: One of the forms that the module docstring lists.
        config_file: Configuration of an evaluation.
        overrides: Settings `key=value` that are applied after the configuration file.

    Returns:
        The backbone with its configuration.

    Raises:
        ConfigError: If the file does not exist, its weights are of no known format, or they do not fit the backbone.
        ResumeError: If the checkpoint cannot be read.
        StoreError: If the hub cannot be reached, or refuses.
    """
    if is_hub_address(str(source)):
        repository, path = parse_repository(str(source), where="CHECKPOINT"), local_weights(source)
        with naming_source(source, path):
            return _exported(path, config_file, overrides, name=repository.name.replace("/", "--"))
    path = Path(source)
    if str(source) == RANDOM:
        folder = Path("runs") / RANDOM
        config = load_config(config_file, overrides, base={**_DEFAULT, "out": str(RunFolder(folder).evals)})
        backbone, origin = untrained_backbone(config).eval(), f"{config.backbone.name}, untrained, seed {config.seed}"
        return EvalModel(backbone=backbone, config=config, origin=origin, step=0, folder=folder)
    if path.suffix in _FILES and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".safetensors" and "rhofast" in read_tensor_header(path, raises=ConfigError).metadata:
        return _exported(path, config_file, overrides)
    if path.is_file():
        return _foreign(path, config_file, overrides)
    return _checkpoint(path, config_file, overrides)


def _checkpoint(path: Path, config_file: str | Path | None, overrides: Sequence[str]) -> EvalModel:
    """Open a checkpoint of a run.

    Without a configuration file all settings are those of the run. With one, only the input geometry and the way data
    are read are taken from the run.
    """
    folder = find_checkpoint(path)
    checkpoint = load_checkpoint(folder)
    seen = {"num_frames": checkpoint.config.clips.num_frames, "size": checkpoint.config.augment.size}
    parse_section(InputCard, seen, where=f"{folder}: the input of the run")
    named = find_value(config_file, overrides, "backbone", "name")
    run = with_named_code(checkpoint, named, str(folder))
    backbone = backbone_of(checkpoint, str(folder), named=named)
    saved, step = dump_config(run), checkpoint.step
    saved["backbone"] = _without_training_options(saved["backbone"])
    base = saved
    if config_file is not None:
        base = {
            "name": run.name,
            "out": str(run_of(folder).evals),
            "seed": run.seed,
            "backbone": saved["backbone"],
            "clips": {key: saved["clips"][key] for key in (*_CLIPS, "rule", "short")},
            "augment": {key: saved["augment"][key] for key in _PIXELS},
            "data": {key: value for key, value in saved["data"].items() if key not in _RUN_DATA_KEYS},
        }
    config = _merged(base, config_file, overrides)
    return EvalModel(
        backbone=_as_configured(backbone, run.backbone.options, config).eval(),
        config=config,
        origin=f"rhofast run {run.name}, step {step}",
        step=step,
        folder=run_of(folder).path,
        run=run,
    )


def _exported(
    path: Path, config_file: str | Path | None, overrides: Sequence[str], *, name: str | None = None
) -> EvalModel:
    backbone, notes = load_with_notes(path, named=find_value(config_file, overrides, "backbone", "name"))
    kind, expects, origin = notes.backbone.name, notes.card.input, notes.card.origin
    return _of_file(path, backbone, kind, notes.options, expects, config_file, overrides, origin=origin, name=name)


def _foreign(path: Path, config_file: str | Path | None, overrides: Sequence[str]) -> EvalModel:
    file = open_weights(path)
    found = backbone_in(file)
    base = _DEFAULT if found is None else {**_DEFAULT, "backbone": {"name": found}}
    given = load_config(config_file, overrides, base=base).backbone
    if found not in (None, given.name):
        raise _belongs("name", given.name, found)
    known = format_for(file, given.name)
    options = options_for(file, known, given.options)
    backbone = build_backbone(given.name, options)
    load_into(backbone, name=given.name, known=known, file=file)
    expects = known.expected_input(given.name, file)
    card = parse_section(InputCard, expects, where=f"{path}: the input of the network")
    origin = f"{known.title} {path.name}"
    return _of_file(path, backbone, given.name, options, card, config_file, overrides, origin=origin)


def _of_file(
    path: Path,
    backbone: nn.Module,
    backbone_name: str,
    options: Mapping[str, Any],
    expects: InputCard,
    config_file: str | Path | None,
    overrides: Sequence[str],
    *,
    origin: str,
    name: str | None = None,
) -> EvalModel:
    """Build the model of a weight file.

    Args:
        path: The weight file.
        backbone: The network with its weights.
        backbone_name: Name of the backbone.
        options: Options with which it was built.
        expects: Input that the weights expect. A value is None where it is not known.
        config_file: Configuration of an evaluation.
        overrides: Settings `key=value`.
        origin: Where the weights come from, in words.
        name: Name of the folder for results; None: that of the file.

    Returns:
        The model, without step and run.
    """
    known = expects.model_dump(exclude_none=True)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name or path.stem)
    folder = Path("runs") / name
    base = {
        "name": name,
        "out": str(RunFolder(folder).evals),
        "backbone": _without_training_options({"name": backbone_name, **options}),
        "clips": {key: known[key] for key in _CLIPS if key in known},
        "augment": {key: known[key] for key in _PIXELS if key in known},
    }
    config = _merged(base, config_file, overrides)
    backbone = _as_configured(backbone, options, config).eval()
    return EvalModel(backbone=backbone, config=config, origin=origin, step=None, folder=folder)


def _merged(base: Mapping[str, Any], config_file: str | Path | None, overrides: Sequence[str]) -> Config:
    config = load_config(config_file, overrides, base=base)
    found = _without_training_options({"name": config.backbone.name, **config.backbone.options})
    expected = _without_training_options(base["backbone"])
    for key in {**expected, **found}:
        if found.get(key) != expected.get(key):
            raise _belongs(key, found.get(key), expected.get(key))
    return config


def _belongs(key: str, found: Any, expected: Any) -> ConfigError:
    return ConfigError(
        f"backbone.{key}={found!r}: the weights belong to backbone.{key}={expected!r}",
        hint="remove the backbone section from the configuration file and from --set",
    )


def _without_training_options(section: Mapping[str, Any]) -> dict[str, Any]:
    left_out = TRAINING_OPTIONS.get(section["name"], ())
    return {key: value for key, value in section.items() if key not in left_out}


def _as_configured(backbone: nn.Module, options: Mapping[str, Any], config: Config) -> nn.Module:
    """Return a backbone with the options for training that a configuration says, and the same weights.

    Args:
        backbone: The backbone.
        options: The options with which it was built.
        config: The configuration.
    """
    section = config.backbone
    if all(options.get(key) == section.options.get(key) for key in TRAINING_OPTIONS.get(section.name, ())):
        return backbone
    with torch.device("meta"):
        rebuilt = build_backbone(section.name, section.options)
    trainable = {name for name, parameter in rebuilt.named_parameters() if parameter.requires_grad}
    rebuilt.load_state_dict(backbone.state_dict(), assign=True)
    for name, parameter in rebuilt.named_parameters():
        parameter.requires_grad_(name in trainable)
    return rebuilt
