"""Backbones by name. Adding one: a function that builds it from its options, and a line in BACKBONES.

A backbone maps [N, 3, T, H, W] normalized pixels to [N, num_features] and has `num_features`. One that does not take
every clip has `limits` (ClipLimits), too.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.backbones.slow import Slow, SlowConfig
from rhofast.models.backbones.torchvision_video import NAMES, ClipLimits, TorchvisionConfig, torchvision_video


def _slow(**given: Any) -> Callable[[Mapping[str, Any]], nn.Module]:
    """A Slow network with some options given and the rest left to the user."""
    return lambda options: Slow(parse_section(SlowConfig, {**given, **options}, where="backbone"))


def _torchvision(name: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(options: Mapping[str, Any]) -> nn.Module:
        parse_section(TorchvisionConfig, options, where="backbone")
        return torchvision_video(name)

    return build


BACKBONES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "slow_r18": _slow(depth=18, block="basic"),
    "slow_r18_reference": _slow(depth=18, block="basic", wide_basic=True, width=16),
    "slow_r50": _slow(depth=50),
    "slow_r101": _slow(depth=101),
    **{name: _torchvision(name) for name in NAMES},
}


def build_backbone(
    name: str, options: Mapping[str, Any], *, num_frames: int | None = None, size: int | None = None
) -> nn.Module:
    """A fresh backbone. num_frames, size: the clips that will go in, frames and pixels a side, where they are known.
    Raises ConfigError for an unknown name or option, and for clips that the backbone does not take."""
    if name not in BACKBONES:
        raise ConfigError(f"backbone.name: {name!r} is not known", hint=f"known: {', '.join(BACKBONES)}")
    backbone = BACKBONES[name](options)
    limits = getattr(backbone, "limits", None)
    if isinstance(limits, ClipLimits) and num_frames is not None and size is not None:
        limits.check(num_frames, size, size)
    return backbone
