"""Open any backbone by one argument, with the configuration of its input.

    runs/first, runs/first/checkpoints/step-...   newest checkpoint of a run, or one of its checkpoints
    backbone.safetensors                          a file of `rhofast export` or `rhofast import`
    SLOW_8x8.pyth                                 a PySlowFast checkpoint; set backbone.name (default: slow_r50)
    r3d_18-b3b3357e.pth                           torchvision's weights, recognized by the file name
    random                                        an untrained backbone; set backbone.name

The clips have the geometry that the weights were trained with, as far as the file says. A configuration file and
`--set` override it. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rhofast.checkpoint.backbone import backbone_of, untrained_backbone, with_named_code
from rhofast.checkpoint.card import InputCard
from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
from rhofast.checkpoint.export import load_with_notes
from rhofast.checkpoint.run_folder import RunFolder, run_of
from rhofast.config.load import dump_config, find_value, load_config
from rhofast.config.schema import Config
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_file import read_weights
from rhofast.models.weight_formats import backbone_in, format_for, load_into

RANDOM = "random"
_DEFAULT = {"name": RANDOM, "backbone": {"name": "slow_r50"}}
_CLIPS = ("num_frames", "frame_stride", "fps")
_FILES = (".safetensors", ".pyth", ".pth", ".pt")
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
    """
    path = Path(source)
    if str(source) == RANDOM:
        folder = Path("runs") / RANDOM
        config = load_config(config_file, overrides, base={**_DEFAULT, "out": str(RunFolder(folder).evals)})
        backbone, origin = untrained_backbone(config).eval(), f"{config.backbone.name}, untrained, seed {config.seed}"
        return EvalModel(backbone=backbone, config=config, origin=origin, step=0, folder=folder)
    if path.suffix in _FILES and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".safetensors":
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
    return EvalModel(
        backbone=backbone.eval(),
        config=_merged(base, config_file, overrides),
        origin=f"rhofast run {run.name}, step {step}",
        step=step,
        folder=run_of(folder).path,
        run=run,
    )


def _exported(path: Path, config_file: str | Path | None, overrides: Sequence[str]) -> EvalModel:
    backbone, notes = load_with_notes(path, named=find_value(config_file, overrides, "backbone", "name"))
    section, expects = {"name": notes.backbone.name, **notes.options}, notes.card.input
    return _of_file(path, backbone, section, expects, config_file, overrides, origin=notes.card.origin)


def _foreign(path: Path, config_file: str | Path | None, overrides: Sequence[str]) -> EvalModel:
    loaded = read_weights(path)
    options: dict[str, Any] = {}
    name = backbone_in(path, loaded)
    if name is None:
        configured = load_config(config_file, overrides, base=_DEFAULT).backbone
        name, options = configured.name, configured.options
    known = format_for(path, loaded, name)
    backbone = build_backbone(name, options)
    with _naming(path):
        load_into(backbone, name=name, known=known, loaded=loaded)
    expects = parse_section(InputCard, known.expected_input(name, loaded), where=f"{path}: the input of the network")
    origin = f"{known.title} {path.name}"
    return _of_file(path, backbone, {"name": name, **options}, expects, config_file, overrides, origin=origin)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors about its contents."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message.removeprefix(f'{path}: ')}", hint=error.hint) from None


def _of_file(
    path: Path,
    backbone: nn.Module,
    section: Mapping[str, Any],
    expects: InputCard,
    config_file: str | Path | None,
    overrides: Sequence[str],
    *,
    origin: str,
) -> EvalModel:
    """Build the model of a weight file.

    Args:
        path: The weight file.
        backbone: The network with its weights.
        section: The `backbone` section of the configuration.
        expects: Input that the weights expect. A value is None where it is not known.
        config_file: Configuration of an evaluation.
        overrides: Settings `key=value`.
        origin: Where the weights come from, in words.

    Returns:
        The model, without step and run.
    """
    known = expects.model_dump(exclude_none=True)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
    folder = Path("runs") / name
    base = {
        "name": name,
        "out": str(RunFolder(folder).evals),
        "backbone": dict(section),
        "clips": {key: known[key] for key in _CLIPS if key in known},
        "augment": {key: known[key] for key in _PIXELS if key in known},
    }
    config = _merged(base, config_file, overrides)
    return EvalModel(backbone=backbone.eval(), config=config, origin=origin, step=None, folder=folder)


def _merged(base: Mapping[str, Any], config_file: str | Path | None, overrides: Sequence[str]) -> Config:
    config = load_config(config_file, overrides, base=base)
    found, expected = {"name": config.backbone.name, **config.backbone.options}, dict(base["backbone"])
    for key in {**expected, **found}:
        if found.get(key) != expected.get(key):
            raise ConfigError(
                f"backbone.{key}={found.get(key)!r}: the weights belong to backbone.{key}={expected.get(key)!r}",
                hint="remove the backbone section from the configuration file and from --set",
            )
    return config
