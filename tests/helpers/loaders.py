"""Loaders of training for the tests of stores and of remote sets: small clips, batches of 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_training


def open_loader(
    train: Any, cache: Path, rank: int = 0, world_size: int = 1, *, seed: int = 5, **data: Any
) -> TrainLoader:
    """Open a set, or a mixture, for training.

    Args:
        train: Its folder or address, or a mixture as `data.train` has it.
        cache: Folder of the cache.
        rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the run.
        data: More options of the `data` config.
    """
    config = DataConfig(train=train, cache=cache, **{"prefetch": 2, "threads": 2, **data})
    sources = open_training(config, world_size=world_size)
    return TrainLoader(
        Mixture(sources.sets, sources.weights),
        clips=ClipConfig(num_frames=2, frame_stride=2, fps=12),
        augment=AugmentConfig(size=16),
        data=config,
        batch_size=4,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
