"""Backbones by name.

A backbone is an `nn.Module` that maps clips to features:

    [N, C, T, H, W] normalized pixels -> [N, num_features]

It has the attribute `num_features`. It may also have

    limits               ClipLimits: the clips that it accepts, if not any
    no_weight_decay()    names of parameters that the optimizer must not decay
    tokens(x)            [N, L, num_features]: what the features are pooled from
    last_map(x)          [N, num_features, T', H', W']: the same as maps, in which detection looks at boxes
    map_stride           pixels per place of these maps, if not a power of two near the ratio of their sides
    layers()             names of its modules and parameters by layer, from input to output, for optim.layer_decay

To add one, write a function that builds it from its options and add a line to BACKBONES. A backbone outside the package
is named by its function (user_backbone.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones.clip_limits import ClipLimits
from rhofast.models.backbones.s3d import S3D, S3DConfig
from rhofast.models.backbones.slow import SLOW_TRAINING_OPTIONS, VARIANTS, Slow, SlowConfig
from rhofast.models.backbones.torchvision_video import NAMES, TorchvisionConfig, torchvision_video
from rhofast.models.backbones.user_backbone import check_clips, user_backbone
from rhofast.models.backbones.vit import VIT_TRAINING_OPTIONS, ViT, ViTConfig
from rhofast.storage.user_code import FORMS, is_reference


def _slow(preset: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], nn.Module]:
    """Return a function that builds a Slow network from a preset and the user's options, which come first."""
    return lambda options: Slow(parse_section(SlowConfig, {**preset, **options}, where="backbone"))


def _s3d(preset: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], nn.Module]:
    return lambda options: S3D(parse_section(S3DConfig, {**preset, **options}, where="backbone"))


def _torchvision(name: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(options: Mapping[str, Any]) -> nn.Module:
        parse_section(TorchvisionConfig, options, where="backbone")
        return torchvision_video(name)

    return build


BACKBONES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    **{name: _slow(preset) for name, preset in VARIANTS.items()},
    "s3d": _s3d({}),
    "s3dg": _s3d({"gating": True}),
    **{name: _torchvision(name) for name in NAMES},
    "vit": lambda options: ViT(parse_section(ViTConfig, options, where="backbone")),
}

# Options that no weight depends on. Trained weights fit every value of them, so that each training of the same weights
# has its own.
TRAINING_OPTIONS: dict[str, tuple[str, ...]] = {
    "vit": VIT_TRAINING_OPTIONS,
    **dict.fromkeys(VARIANTS, SLOW_TRAINING_OPTIONS),
}


def build_backbone(
    name: str, options: Mapping[str, Any], *, num_frames: int | None = None, size: int | None = None
) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: one of BACKBONES, or a function of the user's own code, which is imported (storage/user_code.py).
        options: the options of that backbone.
        num_frames: number of frames of the clips that it will see, or None where that is not known yet.
        size: height and width of these clips in pixels, or None where that is not known yet.

    Returns:
        The backbone: [N, C, T, H, W] -> [N, num_features].

    Raises:
        ConfigError: for an unknown name or option, or for clips that the backbone does not accept; for code of the
            user's own that cannot be imported or breaks the contract.
    """
    if is_reference(name):
        backbone = user_backbone(name, options)
    elif name in BACKBONES:
        backbone = BACKBONES[name](options)
    else:
        hint = f"known: {', '.join(BACKBONES)}; or {FORMS}"
        raise ConfigError(f"backbone.name={name!r} is not known", hint=hint)
    limits = getattr(backbone, "limits", None)
    if isinstance(limits, ClipLimits) and num_frames is not None and size is not None:
        limits.check(num_frames, size, size)
    if is_reference(name) and num_frames is not None and size is not None:
        check_clips(backbone, name, num_frames=num_frames, size=size)
    return backbone
