"""Whose features are asked for: any backbone by one word, with the configuration that feeds it.

    runs/first, runs/first/checkpoints/step-...   a run's newest checkpoint, or one of its checkpoints
    backbone.safetensors                          what `rhofast export` or `rhofast import` wrote
    SLOW_8x8.pyth                                 an official checkpoint; of what: --set backbone.name=... (slow_r50)
    r3d_18-b3b3357e.pth                           torchvision's weights, known by the file's name
    random                                        untrained: --set backbone.name=...

The clips that go in are those that the weights were trained with, as far as the file says; a page and `--set` come
after that. What it is not: it downloads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from rhofast.checkpoint.backbone import trained_backbone, untrained_backbone
from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
from rhofast.checkpoint.export import load_backbone
from rhofast.checkpoint.run_folder import RunFolder, run_of
from rhofast.config.load import dump_config, load_config
from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_conversion import read_weights
from rhofast.models.weight_formats import backbone_in, format_for, load_into

RANDOM = "random"
_DEFAULT = {"name": RANDOM, "backbone": {"name": "slow_r50"}}
_CLIPS = ("num_frames", "frame_stride", "fps")
_FILES = (".safetensors", ".pyth", ".pth", ".pt")
_PIXELS = ("size", "mean", "std")
# In `data`: a run's sets, and how it dealt them out.
_OF_THE_RUN = ("train", "test", "block_shards", "lanes", "fixed_lanes")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalModel:
    """backbone: in evaluation mode, on the CPU; config: what the weights say, then the page, then `--set`; origin: what
    the weights are, in words; step: optimizer steps behind them, where that is known; folder: where files about them
    go; run: of a checkpoint, its run's configuration."""

    backbone: nn.Module
    config: Config
    origin: str
    step: int | None
    folder: Path
    run: Config | None = None

    def untrained(self) -> nn.Module:
        """The same backbone before training; of a run, the very one that it began with."""
        return untrained_backbone(self.run or self.config).eval()


def open_model(source: str | Path, *, page: Path | None = None, overrides: Sequence[str] = ()) -> EvalModel:
    """The backbone that `source` means, and its configuration. page: a recipe of an evaluation. Raises ConfigError,
    ResumeError."""
    path = Path(source)
    if str(source) == RANDOM:
        folder = Path("runs") / RANDOM
        config = load_config(page, overrides, base={**_DEFAULT, "out": str(RunFolder(folder).evals)})
        backbone, origin = untrained_backbone(config).eval(), f"{config.backbone.name}, untrained, seed {config.seed}"
        return EvalModel(backbone=backbone, config=config, origin=origin, step=0, folder=folder)
    if path.suffix in _FILES and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _exported(path, page, overrides)
    if path.is_file():
        return _foreign(path, page, overrides)
    return _checkpoint(path, page, overrides)


def _checkpoint(path: Path, page: Path | None, overrides: Sequence[str]) -> EvalModel:
    """Without a page, everything is as in the run; with one, what the network sees and how data are read."""
    folder = find_checkpoint(path)
    backbone, run = trained_backbone(folder)
    saved, step = dump_config(run), load_checkpoint(folder).step
    base = saved
    if page is not None:
        base = {
            "name": run.name,
            "out": str(run_of(folder).evals),
            "seed": run.seed,
            "backbone": saved["backbone"],
            "clips": {key: saved["clips"][key] for key in (*_CLIPS, "rule", "short")},
            "augment": {key: saved["augment"][key] for key in _PIXELS},
            "data": {key: value for key, value in saved["data"].items() if key not in _OF_THE_RUN},
        }
    return EvalModel(
        backbone=backbone.eval(),
        config=_merged(base, page, overrides),
        origin=f"rhofast run {run.name}, step {step}",
        step=step,
        folder=run_of(folder).path,
        run=run,
    )


def _exported(path: Path, page: Path | None, overrides: Sequence[str]) -> EvalModel:
    backbone = load_backbone(path).eval()
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["rhofast"])
    card = notes["card"]
    return _of_file(path, backbone, notes["backbone"], card["input"], page, overrides, origin=card["origin"])


def _foreign(path: Path, page: Path | None, overrides: Sequence[str]) -> EvalModel:
    loaded = read_weights(path)
    options: dict[str, Any] = {}
    name = backbone_in(path, loaded)
    if name is None:
        configured = load_config(page, overrides, base=_DEFAULT).backbone
        name, options = configured.name, configured.options
    known = format_for(path, loaded, name)
    backbone = build_backbone(name, options)
    with _naming(path):
        load_into(backbone, name=name, known=known, loaded=loaded)
    expects, origin = known.expected_input(name, loaded), f"{known.title} {path.name}"
    return _of_file(path, backbone, {"name": name, **options}, expects, page, overrides, origin=origin)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error about what is in a file says in which."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message.removeprefix(f'{path}: ')}", hint=error.hint) from None


def _of_file(
    path: Path,
    backbone: nn.Module,
    section: Mapping[str, Any],
    expects: Mapping[str, Any],
    page: Path | None,
    overrides: Sequence[str],
    *,
    origin: str,
) -> EvalModel:
    """section: the backbone's, as in a page; expects: what goes in, None where it is not known."""
    known = {key: value for key, value in expects.items() if value is not None}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
    folder = Path("runs") / name
    base = {
        "name": name,
        "out": str(RunFolder(folder).evals),
        "backbone": dict(section),
        "clips": {key: known[key] for key in _CLIPS if key in known},
        "augment": {key: known[key] for key in _PIXELS if key in known},
    }
    config = _merged(base, page, overrides)
    return EvalModel(backbone=backbone.eval(), config=config, origin=origin, step=None, folder=folder)


def _merged(base: Mapping[str, Any], page: Path | None, overrides: Sequence[str]) -> Config:
    config = load_config(page, overrides, base=base)
    if {"name": config.backbone.name, **config.backbone.options} != dict(base["backbone"]):
        raise ConfigError(f"the weights are those of a {base['backbone']['name']}, and the backbone cannot be another")
    return config
