"""Weights across the border: names of the official PySlowFast checkpoints, and single-file backbones.

Key tables are explicit and go both ways. Nothing is skipped silently: what matched, what was dropped and what is
missing is said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rhofast.backbones import build_backbone
from rhofast.backbones.slow import Slow
from rhofast.errors import ConfigError

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def slow_keys(backbone: Slow) -> dict[str, str]:
    """Official name (without `backbone.`) -> name here, for every entry of a Slow network's state dict."""
    pairs = {"s1.pathway0_stem.conv.weight": "stem.weight"}
    pairs |= {f"s1.pathway0_stem.bn.{part}": f"stem_bn.{part}" for part in _NORM}
    for stage, blocks in enumerate(backbone.stages):
        assert isinstance(blocks, nn.Sequential)
        for number, block in enumerate(blocks):
            official, here = f"s{stage + 2}.pathway0_res{number}", f"stages.{stage}.{number}"
            for letter in "abc":
                if getattr(block, f"conv_{letter}", None) is not None:
                    pairs[f"{official}.branch2.{letter}.weight"] = f"{here}.conv_{letter}.weight"
                    for part in _NORM:
                        pairs[f"{official}.branch2.{letter}_bn.{part}"] = f"{here}.bn_{letter}.{part}"
            if block.shortcut is not None:
                pairs[f"{official}.branch1.weight"] = f"{here}.shortcut.weight"
                pairs |= {f"{official}.branch1_bn.{part}": f"{here}.shortcut_bn.{part}" for part in _NORM}
    return pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of a foreign state dict: entries taken over, entries dropped (heads, key networks, queues), and
    entries of the backbone that it did not have."""

    matched: list[str]
    dropped: list[str]
    missing: list[str]


def import_pyslowfast(backbone: Slow, state: dict[str, Tensor]) -> Imported:
    """Fill a Slow backbone from an official `model_state`, in place: entries `backbone.*` of a pretraining checkpoint,
    or entries without that prefix of a classification one. Raises ConfigError where nothing matches, or not in shape.
    """
    prefix = "backbone." if any(key.startswith("backbone.s1.") for key in state) else ""
    own, table = backbone.state_dict(), slow_keys(backbone)
    taken: dict[str, Tensor] = {}
    matched, dropped = [], []
    for key, value in state.items():
        here = table.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if here is None:
            dropped.append(key)
            continue
        if own[here].shape != value.shape:
            raise ConfigError(f"{key} has shape {list(value.shape)}, this backbone has {list(own[here].shape)}")
        taken[here] = value
        matched.append(key)
    if not matched:
        raise ConfigError("no entry of the checkpoint belongs to a Slow backbone")
    backbone.load_state_dict(taken, strict=False)
    missing = [official for official, here in table.items() if here not in taken]
    return Imported(matched=matched, dropped=dropped, missing=missing)


def export_backbone(
    backbone: nn.Module, path: Path, *, name: str, options: dict[str, Any], card: dict[str, Any]
) -> None:
    """Write a backbone as one safetensors file. Its metadata holds what builds it again (name, options) and a card:
    anything worth knowing, as JSON (geometry, normalization, training data, metrics)."""
    notes = {"rhofast": json.dumps({"backbone": {"name": name, **options}, "card": card})}
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    save_file(weights, path, metadata=notes)


def load_backbone(path: str | Path) -> nn.Module:
    """The backbone of an exported file, in evaluation mode; its `card` is the JSON it was exported with. Raises
    ConfigError where the file is not such an export."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("rhofast", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if notes is None:
        raise ConfigError(f"{path}: not a backbone exported by rhofast")
    options = dict(notes["backbone"])
    backbone = build_backbone(options.pop("name"), options)
    backbone.load_state_dict(load_file(path))
    backbone.card = notes["card"]
    return backbone.eval()
