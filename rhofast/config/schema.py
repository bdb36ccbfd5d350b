"""The schema of a config: every option of a run, with its type, default and description.

    Config                 name, seed, out
      data, clips, augment     config/data.py        shard sets, temporal sampling, augmentation
      optim, train, eval       config/training.py    optimizer, training loop, evaluations
      backbone, method         ComponentConfig       a name, and options that the component's own code declares

Every key has one place and one type. An unknown key, a wrong type or a value out of range is refused before anything
is opened. The schema knows no method's or backbone's name: their option classes (`Section`) stand beside their code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rhofast.config.augment import AugmentConfig
from rhofast.config.data import ClipConfig, DataConfig, ShardsConfig, SourceConfig
from rhofast.config.section import PathField, Section
from rhofast.config.training import EvalConfig, OptimConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "ClipConfig",
    "ComponentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "OptimConfig",
    "ShardsConfig",
    "SourceConfig",
    "TrainConfig",
]


class ComponentConfig(BaseModel):
    """A method or a backbone: its name, and options that its own code declares and checks."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    name: str
    """Name of the component."""

    @property
    def options(self) -> dict[str, Any]:
        """Every key except `name`, as written in the config."""
        return dict(self.model_extra or {})


class Config(Section):
    """The configuration of one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run and of its folder: letters, digits, dots, underscores and hyphens."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random numbers of the run, in [0, 2^63)."""

    out: PathField = Path("runs")
    """Folder in which the run folder `name` is created."""

    data: DataConfig = DataConfig()
    """Where the shards are and how they are loaded."""

    clips: ClipConfig = ClipConfig()
    """Temporal sampling of the clips."""

    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the pixels."""

    backbone: ComponentConfig = ComponentConfig(name="slow_r50")
    """The backbone: its `name` and its own options."""

    method: ComponentConfig = ComponentConfig(name="byol")
    """The pretraining method: its `name` and its own options."""

    optim: OptimConfig = OptimConfig()
    """Optimizer and learning rate schedule."""

    train: TrainConfig = TrainConfig(epochs=200)
    """The training loop."""

    eval: EvalConfig = EvalConfig()
    """Evaluations on held-out videos."""

    @property
    def folder(self) -> Path:
        """The folder of the run: `out` / `name`."""
        return self.out / self.name
