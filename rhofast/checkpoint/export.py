"""Export and import of weights: PySlowFast checkpoints, torchvision's state dicts, and single-file backbones.

rhofast run  ->  NAME.safetensors (with a card), NAME.pyth (as PySlowFast writes it)      export_checkpoint
a file of another program (models/weight_formats)  ->  NAME.safetensors                   import_weights
NAME.safetensors  ->  an nn.Module, in one line                                           backbone_file.py
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rhofast.checkpoint.backbone import SavedWeights, backbone_of, with_named_code
from rhofast.checkpoint.backbone_file import save_backbone
from rhofast.checkpoint.card import InputCard
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.schema import Config, DataConfig
from rhofast.config.section import parse_section
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_source
from rhofast.errors import ConfigError, NotFiniteError, ShardError
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_conversion import Imported
from rhofast.models.weight_file import open_weights
from rhofast.models.weight_fit import find_not_finite
from rhofast.models.weight_formats import WEIGHT_FORMATS, backbone_in, format_for, load_into, options_for
from rhofast.storage.address import is_remote
from rhofast.storage.files import check_writable, replacing

_BACKBONE = "backbone."  # what the backbone's entries in a method begin with


class SavedRun(SavedWeights, Protocol):
    """What export reads of a checkpoint; `rhofast.checkpoint.checkpoint.Checkpoint` has it."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def loader(self) -> dict[str, Any]:
        """State of the loader."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """A file of weights that was written.

    Attributes:
        origin: Where the weights came from, in words.
        target: The file.
        backbone: Name of the backbone.
        options: Its options.
        entries: Which entries were taken, left behind, or missing.
        card: What the file says about itself.
        load: Python code that loads it; empty where it is one line that everybody knows.
    """

    origin: str
    target: Path
    backbone: str
    options: Mapping[str, Any]
    entries: Imported
    card: dict[str, Any]
    load: str = ""


def export_checkpoint(
    saved: SavedRun, target: Path, *, format: str, run: Path | None = None, named: str | None = None
) -> Transfer:
    """Write the trained backbone of a checkpoint to a file.

    Args:
        saved: The checkpoint.
        target: The file to write; one that is there is replaced.
        format: "safetensors" or one of WEIGHT_FORMATS. "pyslowfast" writes {"model_state", "cfg", "epoch"}, for
            PySlowFast's fine-tuning and tests (which count epochs anew).
        run: The run folder, for the metrics that were logged at this very step; None: without them.
        named: The `backbone.name` that the user gave, without which no code of a user is imported.

    Raises:
        ConfigError: The file cannot be written, or the format does not hold this backbone.
        ResumeError: The checkpoint's weights do not fit its configuration.
        NotFiniteError: The weights have values that are not finite.
    """
    check_writable(target)
    config, backbone, card = trained(saved, run=run, named=named)
    name, options = config.backbone.name, config.backbone.options
    if format == "safetensors":
        save_backbone(backbone, target, name=name, options=options, card=card)
    else:
        known = WEIGHT_FORMATS[format]
        if known.write is None or name not in known.backbones:
            raise ConfigError(
                f"backbone.name={name} cannot be written as a {known.title}",
                hint="export it with --format safetensors",
            )
        content = known.write(backbone, config, saved.loader.get("epoch", 0))
        with replacing(target) as aside:
            torch.save(content, aside)
    entries = taken_over(saved)
    return Transfer(origin=card["origin"], target=target, backbone=name, options=options, entries=entries, card=card)


def trained(
    saved: SavedRun, *, run: Path | None = None, named: str | None = None
) -> tuple[Config, nn.Module, dict[str, Any]]:
    """Return the trained backbone of a checkpoint with all that is said about it.

    Args:
        saved: The checkpoint.
        run: The run folder, for the metrics that were logged at this very step; None: without them.
        named: The `backbone.name` that the user gave, without which no code of a user is imported.

    Returns:
        The configuration, the backbone, and its card.

    Raises:
        ConfigError: The backbone is code of a user that is not named or does not fit.
        ResumeError: The checkpoint's weights do not fit its configuration.
        NotFiniteError: The weights have values that are not finite.
    """
    config = with_named_code(saved, named, "the checkpoint")
    backbone = backbone_of(saved, "the checkpoint", named=named)
    broken = find_not_finite(backbone.state_dict())
    if broken is not None:
        raise NotFiniteError(
            f"the checkpoint's weights are not finite: {broken}", hint="export an earlier checkpoint of the run"
        )
    card: dict[str, Any] = {
        "origin": f"rhofast run {config.name}, step {saved.step}",
        "input": _input_card(
            num_frames=config.clips.num_frames,
            frame_stride=config.clips.frame_stride,
            fps=config.clips.fps,
            size=config.augment.size,
            mean=list(config.augment.mean),
            std=list(config.augment.std),
        ),
        "num_features": backbone.num_features,
        "training": {
            "method": {"name": config.method.name, **config.method.options},
            "num_clips": config.clips.num_clips,
            "batch_size": config.train.batch_size,
            "seed": config.seed,
            "data": _data_card(config.data, saved.loader.get("digest")),
            **({"code": dict(saved.code)} if saved.code else {}),
        },
        "metrics": {} if run is None else _metrics_at(RunFolder(run).metrics, saved.step),
    }
    return config, backbone, card


def taken_over(saved: SavedRun) -> Imported:
    """Return which entries of a checkpoint's method are the backbone's."""
    matched = [key for key in saved.method if key.startswith(_BACKBONE)]
    return Imported(matched=matched, dropped=[key for key in saved.method if not key.startswith(_BACKBONE)], missing=[])


def import_weights(
    source: Path, target: Path, *, backbone: str | None = None, options: Mapping[str, Any] | None = None
) -> Transfer:
    """Convert another program's weights to a safetensors file that `load_backbone` opens.

    Args:
        source: A file of one of the formats of models/weight_formats. A `config.json` beside a safetensors file is
            read, too.
        target: The file to write; one that is there is replaced.
        backbone: Name of the backbone, as in a config's [backbone]. None: the one that the file says.
        options: Its options, as there. Those that the file determines can be left out.

    Raises:
        ConfigError: The file has no known format, belongs to another network, or cannot be read without running what
            is pickled in it; or nobody says which backbone it is.
    """
    check_writable(target)
    file = open_weights(source)
    name = backbone_in(file) if backbone is None else backbone
    if name is None:
        raise ConfigError(f"{source}: does not say which backbone it holds", hint="name it: --backbone NAME")
    known = format_for(file, name)
    options = options_for(file, known, options or {})
    network = build_backbone(name, options)
    entries = load_into(network, name=name, known=known, file=file)
    expects = known.expected_input(name, file)
    parse_section(InputCard, expects, where=f"{source}: the input of the network")
    card: dict[str, Any] = {
        "origin": f"{known.title} {source.name}, SHA-256 {_sha256(source)}",
        "input": _input_card(**expects),
        "num_features": network.num_features,
    }
    save_backbone(network, target, name=name, options=options, card=card)
    return Transfer(origin=card["origin"], target=target, backbone=name, options=options, entries=entries, card=card)


def _input_card(
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    size: int | None = None,
    num_frames: int | None = None,
    frame_stride: int | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    frames = "T" if num_frames is None else num_frames
    side = "H" if size is None else size
    apart = "" if frame_stride is None or fps is None else f", {frame_stride} frames apart at {fps:g} frames per second"
    values = "normalized as the network was trained, which is not known"
    if mean is not None and std is not None:
        values = f"minus {mean}, divided by {std}"
    text = f"[N, 3, {frames}, {side}, {'W' if size is None else size}] float32, RGB in [0, 1] {values}{apart}"
    known = {"num_frames": num_frames, "frame_stride": frame_stride, "fps": fps, "size": size, "mean": mean, "std": std}
    return {"text": text, **known}


def _data_card(data: DataConfig, digest: str | None) -> dict[str, Any]:
    """Return name and digest of the training data.

    The name is known only if the sets are on this machine, where the run found them.
    """
    name = None
    if data.train and not any(is_remote(source.shards) for source in data.train):
        with contextlib.suppress(ShardError, ConfigError):
            sets = [open_source(source, data=data, check_files=False) for source in data.train]
            if Mixture(sets, [source.weight for source in data.train]).digest == digest:
                name = " + ".join(shards.info.name for shards in sets)
    return {"name": name, "digest": digest}


def _metrics_at(path: Path, step: int) -> dict[str, float]:
    """Return the kNN accuracy that a run logged at a step, or nothing."""
    found = [line for line in read_metrics(path) if line["kind"] == "knn" and line["step"] == step]
    return {f"knn_{key}": found[-1][key] for key in ("top1", "top5", "samples") if key in found[-1]} if found else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
