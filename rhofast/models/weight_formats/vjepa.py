"""Checkpoints of V-JEPA 2 and V-JEPA 2.1 (.pt; arXiv 2506.09985 and its code).

    {"target_encoder": {"module.backbone.blocks.0.attn.qkv.weight": ...}, "encoder": ..., "predictor": ..., ...}

The trained network is `ema_encoder` (the distilled B and L of 2.1), `target_encoder`, or else `encoder`. Both rotate
queries and keys; a table of positions that V-JEPA 2 stores is not used by it, and dropped by name. V-JEPA 2.1 is known
by its normalizations of four layers (`norms_block`), of which the last is used. It adds a vector that marks videos.
What it has for images (`patch_embed_img`, `img_mod_embed`) is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rhofast.models.backbones.vit import ViT
from rhofast.models.weight_conversion import KeyTable, WeightFormat, is_state
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_formats.vit_options import IMAGENET, find_prefix, read_sizes, settle

_PARTS = ("ema_encoder", "target_encoder", "encoder")
_PATCHES = "patch_embed.proj.weight"
_FRAMES = 64  # of a clip, in the last phase of training
_TABLE_TUBELET = 2
# Heads by width and depth: B, L, H, g, G.
_PUBLISHED = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 22, (1664, 48): 26}
# Patches per side of the frames, of 256 pixels (252 for patches of 14), to which 2.1 stretches all places.
_SIDES = {14: 18, 16: 16}


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    """Return what stands before the backbone's names; None if the state dict is not V-JEPA's."""
    prefix = find_prefix(state, r"module\.|backbone\.", _PATCHES)
    if prefix is None or state[prefix + _PATCHES].ndim != 5 or f"{prefix}blocks.0.attn.qkv.bias" not in state:
        return None
    return prefix


def _part(content: Mapping[Any, Any]) -> str | None:
    for name in _PARTS:
        if is_state(content.get(name)) and _prefix(content[name]) is not None:
            return name
    return None


def _last_norm(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """Return the name of the last of the normalizations of layers, which V-JEPA 2.1 has."""
    pattern = re.compile(rf"{re.escape(prefix)}norms_block\.(\d{{1,3}})\.weight")
    numbers = [int(found[1]) for key in state if (found := pattern.fullmatch(key))]
    return f"{prefix}norms_block.{max(numbers)}" if numbers else None


def _options(file: WeightFile, given: Mapping[str, Any]) -> dict[str, Any]:
    state = VJEPA.unwrap(file.content)
    prefix = _prefix(state) or ""
    sizes = read_sizes(file, state, patches=prefix + _PATCHES, blocks=f"{prefix}blocks.", hidden="mlp.fc1.weight")
    newer = _last_norm(state, prefix) is not None
    side = _SIDES.get(sizes["patch"], 256 // sizes["patch"])
    said = {
        **sizes,
        "position": "rope",
        "rope_pairs": "adjacent" if newer else "tiled",
        "rope_side": max(2, side) if newer else None,
        "class_token": False,
        "modality_token": f"{prefix}video_mod_embed" in state,
        "norm": "tokens",
        "norm_eps": 1e-6,
    }
    return settle(file, said, given, published=_PUBLISHED)


def _keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    assert isinstance(backbone, ViT)
    prefix = _prefix(state) or ""
    norm = _last_norm(state, prefix)
    names = {prefix + own: own for own in backbone.state_dict()}
    others = rf"{re.escape(prefix)}pos_embed$"
    if norm is not None:
        names = {(key if own.partition(".")[0] != "norm" else f"{norm}{own[4:]}"): own for key, own in names.items()}
        others = rf"{re.escape(prefix)}(norms_block\.\d+\.|img_mod_embed$|patch_embed_img\.)"
    return KeyTable(
        names=names,
        is_other=lambda key: re.match(others, key) is not None,
        hint=f"it is a {VJEPA.title} of version {'2' if norm is None else '2.1'}",
    )


def _input(name: str, file: WeightFile) -> dict[str, Any]:
    """Return the input: 2.1 was trained with 384 pixels; a table of positions tells the size of V-JEPA 2's frames."""
    state = VJEPA.unwrap(file.content)
    prefix = _prefix(state) or ""
    table, patch = state.get(f"{prefix}pos_embed"), state[prefix + _PATCHES].shape[-1]
    size = 384 if _last_norm(state, prefix) is not None else 256
    if table is not None and table.ndim == 3:
        side = math.isqrt(table.shape[1] * _TABLE_TUBELET // _FRAMES)
        if side and side * side * _FRAMES == table.shape[1] * _TABLE_TUBELET:
            size = side * patch
    return {"num_frames": _FRAMES, "size": size, **IMAGENET}


VJEPA = WeightFormat(
    title="V-JEPA checkpoint",
    backbones=("vit",),
    part=_part,
    keys_in=_keys,
    options_in=_options,
    expected_input=_input,
)
