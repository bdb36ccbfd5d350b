"""rhofast: pretrain video backbones with MoCo, BYOL, SimCLR, SwAV, MoCo v3 and LeJEPA on rho clips per video.

Public names are imported when they are first used, so that `import rhofast` is cheap:

    rhofast.clips(shards, ...)       open a training loader, with defaults for everything
    rhofast.eval_clips(shards, ...)  open an evaluation loader, likewise
    rhofast.ClipDataset              a torch Dataset of stored frames, by (sample, frames)
    rhofast.draw_clips(views, ...)   draw a batch, or stored frames, as a picture
    rhofast.open_shards(where)       open a shard set in a folder or behind an address
    rhofast.TrainLoader              batches of augmented clips, for training
    rhofast.EvalLoader               every sample exactly once, for evaluation
    rhofast.Views                    a batch, by attributes or as a dict
    rhofast.load_config(source)      load a config from a TOML file, or a packaged one by name
    rhofast.load_backbone(where)     load an exported backbone: a file, a folder, hf://user/name
    rhofast.RhofastError             the root of all errors

`rhofast.training.trainer.train(config)` runs a whole training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhofast.analysis.draw import draw_clips
    from rhofast.checkpoint.backbone_file import load_backbone
    from rhofast.config.load import load_config
    from rhofast.data.loader.clip_dataset import ClipDataset
    from rhofast.data.loader.eval_loader import EvalLoader
    from rhofast.data.loader.open_loader import clips, eval_clips
    from rhofast.data.loader.train_loader import TrainLoader
    from rhofast.data.sources import open_shards
    from rhofast.data.types import Views
    from rhofast.errors import RhofastError

__version__ = "0.1.0"

_PUBLIC = {
    "ClipDataset": "rhofast.data.loader.clip_dataset",
    "EvalLoader": "rhofast.data.loader.eval_loader",
    "RhofastError": "rhofast.errors",
    "TrainLoader": "rhofast.data.loader.train_loader",
    "Views": "rhofast.data.types",
    "clips": "rhofast.data.loader.open_loader",
    "draw_clips": "rhofast.analysis.draw",
    "eval_clips": "rhofast.data.loader.open_loader",
    "load_backbone": "rhofast.checkpoint.backbone_file",
    "load_config": "rhofast.config.load",
    "open_shards": "rhofast.data.sources",
}

__all__ = [
    "ClipDataset",
    "EvalLoader",
    "RhofastError",
    "TrainLoader",
    "Views",
    "clips",
    "draw_clips",
    "eval_clips",
    "load_backbone",
    "load_config",
    "open_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rhofast' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
