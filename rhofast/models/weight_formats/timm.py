"""Image transformers of timm (safetensors beside config.json, or .pth), and of others with its names (DINO, MAE, DeiT).

The projection of patches is repeated over the frames of a tubelet and divided by their number, so that a still clip
gives the tokens of the image. The table of positions is repeated over time. The place of the class token in that table
is added to the token, and the vectors of LayerScale are multiplied into the layers before them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.models.backbones.vit import ViT, ViTConfig
from rhofast.models.weight_conversion import WHOLE, Computed, KeyTable, WeightFormat, is_state
from rhofast.models.weight_file import CONFIG, WeightFile
from rhofast.models.weight_formats.vit_keys import ABSENT, folded_scales
from rhofast.models.weight_formats.vit_options import find_prefix, read_sizes, settle

_PATCHES = "patch_embed.proj.weight"
_OTHER = re.compile(r"head\.|head_dist\.|attn_pool\.|pre_logits\.|mask_token$|decoder_")
# Heads by width and depth: tiny, small, base, large, huge.
_PUBLISHED = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
# Arguments of timm's VisionTransformer that make another network, and names of networks that have such.
_FOREIGN_ARGUMENTS = ("act_layer", "mlp_layer", "norm_layer", "block_fn", "attn_layer", "qk_norm", "pre_norm")
_FOREIGN_NAMES = re.compile(r"siglip|so150m|so400m|quickgelu|clip")


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    """Return what stands before the names; None if the state dict is not an image transformer's."""
    prefix = find_prefix(state, r"module\.|backbone\.|encoder\.", _PATCHES)
    image = prefix is not None and state[prefix + _PATCHES].ndim == 4 and f"{prefix}blocks.0.norm1.weight" in state
    return prefix if image else None


def _part(content: Mapping[Any, Any]) -> str | None:
    for name in ("model", "state_dict", "teacher"):
        if is_state(content.get(name)) and _prefix(content[name]) is not None:
            return name
    return WHOLE if is_state(content) and _prefix(content) is not None else None


def _options(file: WeightFile, given: Mapping[str, Any]) -> dict[str, Any]:
    state = TIMM.unwrap(file.content)
    prefix = _prefix(state) or ""
    arguments = _arguments(file)
    norms = [place for place, name in (("pooled", "fc_norm"), ("tokens", "norm")) if f"{prefix}{name}.weight" in state]
    has_class_token = f"{prefix}cls_token" in state
    said = {
        **read_sizes(file, state, patches=prefix + _PATCHES, blocks=f"{prefix}blocks.", hidden="mlp.fc1.weight"),
        "heads": arguments.get("num_heads"),
        "position": "learned",
        "position_side": _side(file, state, prefix),
        "class_token": has_class_token,
        "modality_token": False,
        "norm": norms[0] if norms else "none",
        "norm_eps": 1e-6,
    }
    pooled = file.config.get("global_pool", "avg" if norms[:1] == ["pooled"] else "token")
    return settle(
        file, said, given, pool="cls" if has_class_token and pooled == "token" else "mean", published=_PUBLISHED
    )


def _arguments(file: WeightFile) -> Mapping[str, Any]:
    """Return the arguments of the network in `config.json`; raise ConfigError if they make another network."""
    arguments = file.config.get("model_args") or {}
    architecture = file.config.get("architecture", "")
    if not isinstance(arguments, dict) or not isinstance(architecture, str):
        raise ConfigError(f"{file.path.parent / CONFIG}: architecture or model_args are not as timm writes them")
    odd = [f"model_args.{name}={arguments[name]!r}" for name in _FOREIGN_ARGUMENTS if arguments.get(name)]
    if _FOREIGN_NAMES.search(architecture):
        odd.append(f"architecture={architecture}")
    heads = arguments.get("num_heads")
    if heads is not None and (type(heads) is not int or heads < 1):
        odd.append(f"model_args.num_heads={heads!r}")
    if odd:
        raise ConfigError(f"{file.path.parent / CONFIG}: {', '.join(odd)}: this is not a network that vit can be")
    return arguments


def _side(file: WeightFile, state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the patches per side of the table of positions, [1, side^2, D] or with the class token's place."""
    table = state.get(f"{prefix}pos_embed")
    if table is None or table.ndim != 3 or table.shape[1] < 1:
        raise ConfigError(
            f"{file.path}: has no table of positions (pos_embed)", hint="only image transformers with one are read"
        )
    side = math.isqrt(table.shape[1])
    if table.shape[1] not in (side * side, side * side + 1):
        raise ConfigError(f"{file.path}: its positions, {list(table.shape)}, are not those of a square image")
    return side


def _keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    assert isinstance(backbone, ViT)
    prefix, depth, options = _prefix(state) or "", len(backbone.blocks), backbone.options
    projection = Computed(names=(prefix + _PATCHES,), compute=partial(_inflated, frames=options.tubelet))
    computed = {_PATCHES: projection, **folded_scales(state, f"{prefix}blocks.", depth, ("ls1.gamma", "ls2.gamma"))}
    if f"{prefix}blocks.0.attn.qkv.bias" not in state:
        computed |= {f"blocks.{number}.attn.qkv.bias": ABSENT for number in range(depth)}
    if _has_class_place(state.get(f"{prefix}pos_embed"), options):
        table = f"{prefix}pos_embed"
        computed["pos_embed"] = Computed(names=(table,), compute=lambda whole: whole[:, 1:])
        computed["cls_token"] = Computed(
            names=(f"{prefix}cls_token", table), compute=lambda token, whole: token + whole[:, :1]
        )
    return KeyTable(
        names={prefix + own: own for own in backbone.state_dict() if own not in computed},
        computed=computed,
        is_other=lambda key: _OTHER.match(key.removeprefix(prefix)) is not None,
        hint=f"it is a {TIMM.title}",
    )


def _has_class_place(table: Tensor | None, options: ViTConfig) -> bool:
    """Return whether the table of positions begins with the place of the class token."""
    return table is not None and table.ndim == 3 and table.shape[1] == options.position_side**2 + 1


def _inflated(weight: Tensor, *, frames: int) -> Tensor:
    """Return the projection of tubelets: [D, 3, p, p] -> [D, 3, frames, p, p]."""
    return weight.float().unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames


def _input(name: str, file: WeightFile) -> dict[str, Any]:
    """Return size and normalization of `pretrained_cfg`; without it, the size that the table of positions is for."""
    state = TIMM.unwrap(file.content)
    prefix = _prefix(state) or ""
    told = file.config.get("pretrained_cfg")
    told = told if isinstance(told, dict) else {}
    shape = told.get("input_size")
    size = _side(file, state, prefix) * state[prefix + _PATCHES].shape[-1]
    if isinstance(shape, list) and len(shape) == 3 and shape[1] == shape[2]:
        size = shape[1]
    return {"size": size, "mean": told.get("mean"), "std": told.get("std")}


TIMM = WeightFormat(
    title="timm image transformer",
    backbones=("vit",),
    part=_part,
    keys_in=_keys,
    options_in=_options,
    expected_input=_input,
)
