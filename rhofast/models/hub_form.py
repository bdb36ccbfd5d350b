"""Write a `vit` in the form of `transformers`: names, tensors and configuration of its VideoMAE and V-JEPA 2 models.

    ViT --hub_form--> HubForm: config -> config.json, state -> model.safetensors, processor -> preprocessor_config.json

`transformers.AutoModel.from_pretrained` opens a folder with these files, and its model computes what the backbone
does on clips of the given size (of any length for V-JEPA 2). Clips are [N, T, 3, H, W] there, normalized in the same
way. Networks that neither model can compute are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.models.backbones.vit import ViT, ViTConfig
from rhofast.models.weight_formats.transformers import POOLED_NORM_EPS, videomae_names, vjepa2_names


@dataclass(frozen=True, kw_only=True, slots=True)
class HubForm:
    """A backbone in the form of `transformers`.

    Attributes:
        model: Name of the class in `transformers`: "VideoMAEModel", "VideoMAEForVideoClassification" (without
            classes, so that its `logits` are the features) or "VJEPA2Model".
        config: Content of `config.json`.
        state: Names and tensors, f32 on the CPU, contiguous, none shared: content of `model.safetensors`. For
            "VJEPA2Model" the predictor, which no backbone has, is left out.
        processor: Content of `preprocessor_config.json`: size and normalization of frames.
        features: Python expression that gives the features [N, D] from `model` and `clips` [N, T, 3, H, W].
    """

    model: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    processor: dict[str, Any]
    features: str


def hub_form(
    backbone: nn.Module, *, num_frames: int, size: int, mean: Sequence[float], std: Sequence[float]
) -> HubForm:
    """Return a `vit` in the form of `transformers`.

    Args:
        backbone: The network. It stays as it is.
        num_frames: Frames per clip: positions of VideoMAE are made for this number.
        size: Height and width of a frame in pixels.
        mean: What is subtracted from red, green and blue in [0, 1].
        std: By what the differences are divided.

    Returns:
        What to write.

    Raises:
        ConfigError: Neither of the two models computes this network.
    """
    if not isinstance(backbone, ViT):
        raise ConfigError(
            f"a {type(backbone).__name__} has no form in transformers", hint="only backbone.name=vit has one"
        )
    options = backbone.options
    backbone.limits.check(num_frames, size, size)
    state = {name: value.detach().float().cpu() for name, value in backbone.state_dict().items()}
    if options.position == "sincos1d":
        _refuse(options, {})
        return _videomae(backbone, state, num_frames, size, _processor(size, mean, std))
    _refuse(
        options,
        {
            f"backbone.position={options.position}": options.position != "rope",
            f"backbone.rope_pairs={options.rope_pairs}": options.rope_pairs != "tiled",
            f"backbone.rope_side={options.rope_side}": options.rope_side is not None,
            f"backbone.norm={options.norm}": options.norm != "tokens",
        },
    )
    return _vjepa2(backbone, state, num_frames, size, _processor(size, mean, std))


def _refuse(options: ViTConfig, more: dict[str, bool]) -> None:
    """Raise ConfigError if an option is one that the model does not have."""
    unknown = {
        "a class token": options.pool == "cls" or bool(options.class_token),
        "backbone.modality_token=true": options.modality_token,
        **more,
    }
    found = [what for what, holds in unknown.items() if holds]
    if found:
        raise ConfigError(
            f"transformers has no model of a vit with {', '.join(found)}",
            hint="its VideoMAE has backbone.position=sincos1d, its V-JEPA 2 position=rope with rope_pairs=tiled, and "
            "neither a class token",
        )


def _videomae(
    backbone: ViT, state: dict[str, Tensor], num_frames: int, size: int, processor: dict[str, Any]
) -> HubForm:
    """Return the form of VideoMAE.

    It has no bias of keys. That of this network changes nothing: it adds the same to all scores of a query.
    """
    options = backbone.options
    width, depth, heads = options.sizes
    pooled = options.norm == "pooled"
    if pooled and options.pooled_norm_eps != POOLED_NORM_EPS:
        raise ConfigError(
            f"transformers' VideoMAE normalizes pooled features with epsilon {POOLED_NORM_EPS:g}, this network with "
            f"{options.pooled_norm_eps or options.norm_eps:g}",
            hint=f"a vit with backbone.pooled_norm_eps={POOLED_NORM_EPS:g}, or with norm=tokens, has this form",
        )
    prefix = "videomae." if pooled else ""
    out = _renamed(state, videomae_names(backbone, prefix))
    for number in range(depth):
        place = f"{prefix}encoder.layer.{number}.attention.attention."
        out |= _split(state, number, place, biases=("query", "value"))
    config: dict[str, Any] = {
        "architectures": ["VideoMAEForVideoClassification" if pooled else "VideoMAEModel"],
        "model_type": "videomae",
        "image_size": size,
        "patch_size": options.patch,
        "num_channels": 3,
        "num_frames": num_frames,
        "tubelet_size": options.tubelet,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": options.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": options.norm_eps,
        "qkv_bias": True,
        "use_mean_pooling": options.norm != "tokens",
        **({"id2label": {}, "label2id": {}} if pooled else {}),
    }
    features = "model(clips).logits" if pooled else "model(clips).last_hidden_state.mean(dim=1)"
    processor |= {"image_processor_type": "VideoMAEImageProcessor", "video_processor_type": "VideoMAEVideoProcessor"}
    return HubForm(model=config["architectures"][0], config=config, state=out, processor=processor, features=features)


def _vjepa2(backbone: ViT, state: dict[str, Tensor], num_frames: int, size: int, processor: dict[str, Any]) -> HubForm:
    options = backbone.options
    width, depth, heads = options.sizes
    out = _renamed(state, vjepa2_names(backbone, ""))
    for number in range(depth):
        place = f"encoder.layer.{number}.attention."
        out |= _split(state, number, place, biases=("query", "key", "value"))
    config: dict[str, Any] = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "crop_size": size,
        "patch_size": options.patch,
        "in_chans": 3,
        "frames_per_clip": num_frames,
        "tubelet_size": options.tubelet,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_ratio": _ratio(options.mlp_width, width),
        "hidden_act": "gelu",
        "layer_norm_eps": options.norm_eps,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    features = "model(clips, skip_predictor=True).last_hidden_state.mean(dim=1)"
    processor |= {"video_processor_type": "VJEPA2VideoProcessor"}
    return HubForm(model="VJEPA2Model", config=config, state=out, processor=processor, features=features)


def _processor(size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return what both models' processors are told: the shorter side is resized, and the center cropped."""
    return {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _ratio(hidden: int, width: int) -> float:
    """Return a ratio that, times the width and rounded down as transformers does it, gives the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Return copies of the entries that have another name and nothing else, by their names in transformers."""
    return {theirs: state[own].clone(memory_format=torch.contiguous_format) for theirs, own in names.items()}


def _split(state: dict[str, Tensor], number: int, place: str, *, biases: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the three layers of queries, keys and values of a block."""
    out = {}
    for part in ("weight", "bias"):
        thirds = state[f"blocks.{number}.attn.qkv.{part}"].chunk(3)
        for layer, third in zip(("query", "key", "value"), thirds, strict=True):
            if part == "weight" or layer in biases:
                out[f"{place}{layer}.{part}"] = third.clone(memory_format=torch.contiguous_format)
    return out
