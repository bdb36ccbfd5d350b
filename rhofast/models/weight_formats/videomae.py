"""Checkpoints of VideoMAE and VideoMAE v2 (.pth; arXiv 2203.12602, 2303.16727).

    {"model" or "module": {"encoder.blocks.0.attn.q_bias": ...}, "optimizer": ..., "epoch": ...}

Pretraining writes the backbone with the prefix `encoder.` beside a decoder, fine-tuning without a prefix or with
`backbone.`, and a head. Positions are a fixed table, which is not stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rhofast.models.backbones.vit import ViT
from rhofast.models.weight_conversion import WHOLE, Computed, KeyTable, WeightFormat, is_state
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_formats.vit_keys import ABSENT, folded_scales, joined_without_key
from rhofast.models.weight_formats.vit_options import IMAGENET, find_prefix, read_sizes, settle

_PATCHES = "patch_embed.proj.weight"
_OTHER = re.compile(r"(module\.)?(decoder\.|encoder_to_decoder\.|mask_token$|((encoder|backbone)\.)?head\.)")
# Heads by width and depth: S, B, L, H, and the g of VideoMAE v2.
_PUBLISHED = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16}


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    """Return what stands before the backbone's names; None if the state dict is not VideoMAE's."""
    prefix = find_prefix(state, r"module\.|encoder\.|backbone\.", _PATCHES)
    if prefix is None or state[prefix + _PATCHES].ndim != 5 or f"{prefix}blocks.0.attn.qkv.bias" in state:
        return None
    return prefix


def _part(content: Mapping[Any, Any]) -> str | None:
    for name in ("model", "module"):
        if is_state(content.get(name)) and _prefix(content[name]) is not None:
            return name
    return WHOLE if is_state(content) and _prefix(content) is not None else None


def _options(file: WeightFile, given: Mapping[str, Any]) -> dict[str, Any]:
    state = VIDEOMAE.unwrap(file.content)
    prefix = _prefix(state) or ""
    norms = [place for place, name in (("pooled", "fc_norm"), ("tokens", "norm")) if f"{prefix}{name}.weight" in state]
    said = {
        **read_sizes(file, state, patches=prefix + _PATCHES, blocks=f"{prefix}blocks.", hidden="mlp.fc1.weight"),
        "position": "sincos1d",
        "class_token": False,
        "modality_token": False,
        "norm": norms[0] if norms else "none",
        "norm_eps": 1e-6,
    }
    return settle(file, said, given, published=_PUBLISHED)


def _keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    assert isinstance(backbone, ViT)
    prefix, depth = _prefix(state) or "", len(backbone.blocks)
    computed: dict[str, Computed] = {}
    for number in range(depth):
        place = f"{prefix}blocks.{number}.attn."
        biases = (f"{place}q_bias", f"{place}v_bias")
        has_biases = any(bias in state for bias in biases)
        bias = Computed(names=biases, compute=joined_without_key) if has_biases else ABSENT
        computed[f"blocks.{number}.attn.qkv.bias"] = bias
    computed |= folded_scales(state, f"{prefix}blocks.", depth, ("gamma_1", "gamma_2"))
    return KeyTable(
        names={prefix + own: own for own in backbone.state_dict() if own not in computed},
        computed=computed,
        is_other=lambda key: _OTHER.match(key) is not None,
        hint=f"it is a {VIDEOMAE.title}",
    )


VIDEOMAE = WeightFormat(
    title="VideoMAE checkpoint",
    backbones=("vit",),
    part=_part,
    keys_in=_keys,
    options_in=_options,
    expected_input=lambda name, file: {"num_frames": 16, "size": 224, **IMAGENET},
)
