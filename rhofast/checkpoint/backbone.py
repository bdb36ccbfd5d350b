"""Build the backbone of a run, untrained or with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rhofast.checkpoint.checkpoint import load_checkpoint
from rhofast.config.schema import Config
from rhofast.data.sampling.rng import Stream, bits
from rhofast.errors import ResumeError
from rhofast.models.backbones import build_backbone


def untrained_backbone(config: Config) -> nn.Module:
    """Build the backbone that a run of this configuration begins with, bit for bit.

    torch's generator is left where the run leaves it, so that what else has weights can be built after it.
    """
    torch.manual_seed(int(bits(config.seed, 0, 0, Stream.MODEL, 1)[0] >> 1))
    return _build(config)


def trained_backbone(folder: Path) -> tuple[nn.Module, Config]:
    """Return the trained backbone of a checkpoint folder, and the configuration of its run.

    Raises:
        ResumeError: The folder is not a whole checkpoint, or its weights do not fit its configuration.
    """
    checkpoint = load_checkpoint(folder)
    backbone = _build(checkpoint.config)
    prefix = "backbone."
    weights = {key.removeprefix(prefix): value for key, value in checkpoint.method.items() if key.startswith(prefix)}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        name = checkpoint.config.backbone.name
        raise ResumeError(f"{folder}: its weights do not fit backbone.name={name}: {error}") from None
    return backbone, checkpoint.config


def _build(config: Config) -> nn.Module:
    """Build the backbone of a configuration; raise ConfigError if it does not take the run's clips."""
    section, num_frames, size = config.backbone, config.clips.num_frames, config.augment.size
    return build_backbone(section.name, section.options, num_frames=num_frames, size=size)
