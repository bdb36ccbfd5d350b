"""rhofast: pretrain video backbones with MoCo, BYOL, SimCLR, SwAV, MoCo v3 and LeJEPA on rho clips per video.

Public names are imported when they are first used, so that `import rhofast` is cheap:

    rhofast.open_shards(where)       open a shard set in a folder or behind an address
    rhofast.TrainLoader              endless batches of augmented clips, for training
    rhofast.EvalLoader               every sample exactly once, for evaluation
    rhofast.load_config(source)      load a config from a TOML file, or a packaged one by name
    rhofast.load_backbone(file)      load an exported backbone
    rhofast.RhofastError             the root of all errors

`rhofast.training.trainer.train(config)` runs a whole training.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "EvalLoader": "rhofast.data.loader.eval_loader",
    "RhofastError": "rhofast.errors",
    "TrainLoader": "rhofast.data.loader.train_loader",
    "load_backbone": "rhofast.checkpoint.export",
    "load_config": "rhofast.config.load",
    "open_shards": "rhofast.data.sources",
}

__all__ = ["EvalLoader", "RhofastError", "TrainLoader", "load_backbone", "load_config", "open_shards"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rhofast' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
