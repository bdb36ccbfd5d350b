"""Build the backbone of a run, untrained or with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.sampling.rng import Stream, bits
from rhofast.errors import ResumeError
from rhofast.models.backbones import build_backbone
from rhofast.models.weight_fit import find_misfit, state_on_meta
from rhofast.storage.user_code import renamed


class SavedWeights(Protocol):
    """What is read of a checkpoint; `rhofast.checkpoint.checkpoint.Checkpoint` has it."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        ...

    @property
    def method(self) -> dict[str, Tensor]:
        """State dict of the method."""
        ...

    @property
    def code(self) -> Mapping[str, str]:
        """The SHA-256 of the files that define `backbone` and `method`, where these are code of the user's own."""
        ...


def untrained_backbone(config: Config) -> nn.Module:
    """Build the backbone that a run of this configuration begins with, bit for bit.

    torch's generator is left where the run leaves it, so that what else has weights can be built after it.
    """
    torch.manual_seed(int(bits(config.seed, 0, 0, Stream.MODEL, 1)[0] >> 1))
    return _build(config)


def with_named_code(checkpoint: SavedWeights, named: str | None, where: str) -> Config:
    """Return the configuration of a checkpoint with the name under which the code of its backbone may be imported.

    Args:
        checkpoint: The checkpoint.
        named: The `backbone.name` that the user gave on the command line or in a config, or None.
        where: What the checkpoint is called in errors.

    Raises:
        ConfigError: The backbone is code of a user, and not named, or the code cannot be imported.
    """
    section = checkpoint.config.backbone
    name = renamed(section.name, checkpoint.code.get("backbone"), named, where=where)
    return checkpoint.config.model_copy(update={"backbone": section.model_copy(update={"name": name})})


def backbone_of(checkpoint: SavedWeights, where: str, *, named: str | None = None) -> nn.Module:
    """Build the backbone of a checkpoint; nothing is allocated that its weights do not fill.

    Args:
        checkpoint: The checkpoint.
        where: What the checkpoint is called in errors.
        named: The `backbone.name` that the user gave, without which no code of a user is imported.

    Raises:
        ConfigError: The backbone is code of a user, and not named or not fit.
        ResumeError: The weights do not fit the configuration.
    """
    config, prefix = with_named_code(checkpoint, named, where), "backbone."
    weights = {key.removeprefix(prefix): value for key, value in checkpoint.method.items() if key.startswith(prefix)}
    try:
        misfit = find_misfit(state_on_meta(lambda: _build(config)), weights)
    except ValueError as error:
        misfit = str(error)
    if misfit is not None:
        raise ResumeError(f"{where}: its weights do not fit backbone.name={config.backbone.name}: {misfit}")
    backbone = _build(config)
    backbone.load_state_dict(weights)
    return backbone


def _build(config: Config) -> nn.Module:
    """Build the backbone of a configuration; raise ConfigError if it does not take the run's clips."""
    section, num_frames, size = config.backbone, config.clips.num_frames, config.augment.size
    return build_backbone(section.name, section.options, num_frames=num_frames, size=size)
