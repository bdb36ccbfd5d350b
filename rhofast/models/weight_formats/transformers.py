"""The models of `transformers` (model.safetensors beside config.json): VideoMAE and V-JEPA 2.

Queries, keys and values are three layers there, which are joined to one. The classes with a head or a decoder have a
prefix (`videomae.`, `vjepa2.`); heads, decoders, predictors and poolers are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rhofast.models.backbones.vit import ViT
from rhofast.models.weight_conversion import WHOLE, Computed, KeyTable, WeightFormat, is_state
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_formats.vit_keys import ABSENT, joined, joined_without_key
from rhofast.models.weight_formats.vit_options import (
    IMAGENET,
    check_config,
    epsilon,
    find_prefix,
    read_sizes,
    settle,
    whole,
)

# The epsilon of the normalization of pooled features in transformers' VideoMAE, whatever its configuration says.
POOLED_NORM_EPS = 1e-5

_VIDEOMAE_PATCHES = "embeddings.patch_embeddings.projection"
_VJEPA2_PATCHES = "encoder.embeddings.patch_embeddings.proj"
_VIDEOMAE_OTHER = re.compile(r"decoder\.|encoder_to_decoder\.|mask_token$|classifier\.")
_VJEPA2_OTHER = re.compile(r"(vjepa2\.)?(predictor\.|pooler\.|classifier\.)")
_VIDEOMAE_LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VJEPA2_LAYERS = {
    "norm1": "norm1",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _videomae_prefix(state: Mapping[str, Tensor]) -> str | None:
    return _prefix(state, r"videomae\.", _VIDEOMAE_PATCHES)


def _vjepa2_prefix(state: Mapping[str, Tensor]) -> str | None:
    return _prefix(state, r"vjepa2\.", _VJEPA2_PATCHES)


def _prefix(state: Mapping[str, Tensor], pattern: str, patches: str) -> str | None:
    prefix = find_prefix(state, pattern, f"{patches}.weight")
    return prefix if prefix is not None and state[f"{prefix}{patches}.weight"].ndim == 5 else None


def _sizes(file: WeightFile, *, patches: str, blocks: str, hidden: str, model_type: str) -> dict[str, Any]:
    """Return the options that tensors and configuration tell, which must agree."""
    sizes = read_sizes(file, file.content, patches=patches, blocks=blocks, hidden=hidden)
    keys = {"hidden_size": "width", "num_hidden_layers": "depth", "patch_size": "patch", "tubelet_size": "tubelet"}
    check_config(file, model_type, {key: sizes[own] for key, own in keys.items()})
    common = {"class_token": False, "modality_token": False, "heads": whole(file, "num_attention_heads")}
    return sizes | common


def _videomae_options(file: WeightFile, given: Mapping[str, Any]) -> dict[str, Any]:
    prefix = _videomae_prefix(file.content) or ""
    places = (("pooled", "fc_norm.weight"), ("tokens", f"{prefix}layernorm.weight"))
    norms = [place for place, key in places if key in file.content]
    said = _sizes(
        file,
        patches=f"{prefix}{_VIDEOMAE_PATCHES}.weight",
        blocks=f"{prefix}encoder.layer.",
        hidden="intermediate.dense.weight",
        model_type="videomae",
    )
    said |= {
        "position": "sincos1d",
        "norm": norms[0] if norms else "none",
        "norm_eps": epsilon(file, 1e-12),
        "pooled_norm_eps": POOLED_NORM_EPS if norms[:1] == ["pooled"] else None,
    }
    return settle(file, said, given)


def _vjepa2_options(file: WeightFile, given: Mapping[str, Any]) -> dict[str, Any]:
    prefix = _vjepa2_prefix(file.content) or ""
    said = _sizes(
        file,
        patches=f"{prefix}{_VJEPA2_PATCHES}.weight",
        blocks=f"{prefix}encoder.layer.",
        hidden="mlp.fc1.weight",
        model_type="vjepa2",
    )
    said |= {
        "position": "rope",
        "rope_pairs": "tiled",
        "rope_side": None,
        "norm": "tokens",
        "norm_eps": epsilon(file, 1e-6),
    }
    return settle(file, said, given)


def videomae_names(backbone: ViT, prefix: str) -> dict[str, str]:
    """Return VideoMAE's names -> the backbone's, for layers that differ by their names alone.

    Args:
        backbone: The network.
        prefix: What VideoMAE's names begin with: "videomae." in classes with a head.
    """
    layers = {"patch_embed.proj": prefix + _VIDEOMAE_PATCHES, "norm": f"{prefix}layernorm", "fc_norm": "fc_norm"}
    return _names(backbone, layers, f"{prefix}encoder.layer.", _VIDEOMAE_LAYERS)


def vjepa2_names(backbone: ViT, prefix: str) -> dict[str, str]:
    """Return V-JEPA 2's names -> the backbone's, for layers that differ by their names alone.

    Args:
        backbone: The network.
        prefix: What V-JEPA 2's names begin with: "vjepa2." in classes with a head.
    """
    layers = {"patch_embed.proj": prefix + _VJEPA2_PATCHES, "norm": f"{prefix}encoder.layernorm"}
    return _names(backbone, layers, f"{prefix}encoder.layer.", _VJEPA2_LAYERS)


def _videomae_keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    prefix = _videomae_prefix(state) or ""
    blocks = f"{prefix}encoder.layer."
    assert isinstance(backbone, ViT)

    def bias(place: str) -> Computed:
        """Return the bias: of two layers, or as older files have it; keys have none."""
        pairs = [tuple(f"{place}{part}" for part in pair) for pair in _BIASES]
        found = [pair for pair in pairs if any(key in state for key in pair)]
        return Computed(names=found[0], compute=joined_without_key) if found else ABSENT

    attention = {
        f"blocks.{number}.attn.qkv": f"{blocks}{number}.attention.attention." for number in range(len(backbone.blocks))
    }
    return KeyTable(
        names=videomae_names(backbone, prefix),
        computed=_joined_weights(attention) | {f"{own}.bias": bias(place) for own, place in attention.items()},
        is_other=lambda key: _VIDEOMAE_OTHER.match(key) is not None,
        hint=f"it is a {TRANSFORMERS_VIDEOMAE.title}",
    )


def _vjepa2_keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    prefix = _vjepa2_prefix(state) or ""
    blocks = f"{prefix}encoder.layer."
    assert isinstance(backbone, ViT)
    attention = _attention(backbone, blocks, "attention.")
    biased = any(f"{place}query.bias" in state for place in attention.values())
    biases = _joined_weights(attention, "bias") if biased else {f"{own}.bias": ABSENT for own in attention}
    return KeyTable(
        names=vjepa2_names(backbone, prefix),
        computed=_joined_weights(attention) | biases,
        is_other=lambda key: _VJEPA2_OTHER.match(key) is not None,
        hint=f"it is a {TRANSFORMERS_VJEPA2.title}",
    )


_BIASES = (("query.bias", "value.bias"), ("q_bias", "v_bias"))


def _names(backbone: ViT, layers: Mapping[str, str], blocks: str, within: Mapping[str, str]) -> dict[str, str]:
    places = dict(layers)
    for number in range(len(backbone.blocks)):
        places |= {f"blocks.{number}.{own}": f"{blocks}{number}.{theirs}" for own, theirs in within.items()}
    own = [(name, *name.rpartition(".")) for name in backbone.state_dict()]
    return {f"{places[layer]}.{part}": name for name, layer, _, part in own if layer in places}


def _attention(backbone: ViT, blocks: str, within: str) -> dict[str, str]:
    """Return the backbone's joined layer -> what its three layers' names begin with, for each block."""
    return {f"blocks.{number}.attn.qkv": f"{blocks}{number}.{within}" for number in range(len(backbone.blocks))}


def _joined_weights(attention: Mapping[str, str], part: str = "weight") -> dict[str, Computed]:
    return {
        f"{own}.{part}": Computed(
            names=tuple(f"{place}{layer}.{part}" for layer in ("query", "key", "value")), compute=joined
        )
        for own, place in attention.items()
    }


def _videomae_input(name: str, file: WeightFile) -> dict[str, Any]:
    return {"num_frames": whole(file, "num_frames"), "size": whole(file, "image_size"), **_pixels(file)}


def _vjepa2_input(name: str, file: WeightFile) -> dict[str, Any]:
    return {"num_frames": whole(file, "frames_per_clip"), "size": whole(file, "crop_size"), **_pixels(file)}


def _pixels(file: WeightFile) -> dict[str, Any]:
    """Return mean and standard deviation of the input; those of both models' authors where no file says them."""
    return {key: file.processor.get(f"image_{key}", default) for key, default in IMAGENET.items()}


TRANSFORMERS_VIDEOMAE = WeightFormat(
    title="VideoMAE model of transformers",
    backbones=("vit",),
    part=lambda content: WHOLE if is_state(content) and _videomae_prefix(content) is not None else None,
    keys_in=_videomae_keys,
    options_in=_videomae_options,
    expected_input=_videomae_input,
)
TRANSFORMERS_VJEPA2 = WeightFormat(
    title="V-JEPA 2 model of transformers",
    backbones=("vit",),
    part=lambda content: WHOLE if is_state(content) and _vjepa2_prefix(content) is not None else None,
    keys_in=_vjepa2_keys,
    options_in=_vjepa2_options,
    expected_input=_vjepa2_input,
)
