"""rhofast: self-supervised video pretraining through time, built around its data path.

Public names are imported when they are first used, so `import rhofast` costs nothing:

    rhofast.open_shards(where)      a shard set             rhofast.TrainLoader, rhofast.EvalLoader    batches of clips
    rhofast.load_config(page)       a run's configuration   rhofast.load_backbone(file)           an exported backbone
    rhofast.RhofastError            the root of all errors

A run itself is `rhofast.training.trainer.train(config)`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "TrainLoader": "rhofast.data.loader.train_loader",
    "RhofastError": "rhofast.errors",
    "EvalLoader": "rhofast.data.loader.eval_loader",
    "load_backbone": "rhofast.checkpoint.export",
    "load_config": "rhofast.config.load",
    "open_shards": "rhofast.data.sources",
}

__all__ = ["EvalLoader", "RhofastError", "TrainLoader", "load_backbone", "load_config", "open_shards"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rhofast' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
