"""Weights across the border: names of the official PySlowFast checkpoints, and single-file backbones.

Key tables are explicit and go both ways. Nothing is skipped silently: what matched, what was dropped and what is
missing is said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
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


def read_pyslowfast(path: Path) -> dict[str, Tensor]:
    """The `model_state` of an official .pyth checkpoint, on the CPU; nothing in the file is executed. Raises
    ConfigError where it is not one."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # What torch's restricted unpickler says of a file that is none depends on its first bytes.
    except (OSError, RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    state = loaded.get("model_state") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path}: has no model_state, so it is no PySlowFast checkpoint")
    return state


def export_pyslowfast(backbone: Slow) -> dict[str, Tensor]:
    """A Slow backbone's state under the official names of a classification network, without its head: what official
    fine-tuning takes from a `{"model_state": ...}` file."""
    state = backbone.state_dict()
    return {official: state[here].detach().cpu().clone() for official, here in slow_keys(backbone).items()}


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
