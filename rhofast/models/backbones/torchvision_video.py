"""Video networks of torchvision without their classifiers.

    r3d_18, mc3_18, r2plus1d_18     arXiv 1711.11248          any clip
    mvit_v1_b, mvit_v2_s            2104.11227, 2112.01526    16 frames of 224 x 224 pixels, nothing else
    swin3d_t, swin3d_s, swin3d_b    2106.13230                any clip

Features are the input of torchvision's classifier; tokens are the places of the map that is pooled before it, or all
tokens but the class token (mvit). The names in the state dict are torchvision's, so its weights can be
loaded and exported without conversion, except for the classifier's. This module downloads no weights.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rhofast.config.section import Section
from rhofast.models.backbones.clip_limits import ClipLimits

# For each network, the clips that it accepts and the attribute that holds its classifier.
_NETWORKS = {
    "r2plus1d_18": (ClipLimits(name="r2plus1d_18"), "fc"),
    "r3d_18": (ClipLimits(name="r3d_18"), "fc"),
    "mc3_18": (ClipLimits(name="mc3_18"), "fc"),
    "mvit_v1_b": (ClipLimits(name="mvit_v1_b", num_frames=16, size=224, exact=True), "head"),
    "mvit_v2_s": (ClipLimits(name="mvit_v2_s", num_frames=16, size=224, exact=True), "head"),
    "swin3d_t": (ClipLimits(name="swin3d_t"), "head"),
    "swin3d_s": (ClipLimits(name="swin3d_s"), "head"),
    "swin3d_b": (ClipLimits(name="swin3d_b"), "head"),
}
NAMES = tuple(_NETWORKS)
_STRIDES = {"fc": 16, "head": 32}  # pixels per place of the last map: ResNets, and Swin
CLASSIFIERS = {name: classifier for name, (_, classifier) in _NETWORKS.items()}


class TorchvisionConfig(Section):
    """Options of a torchvision network. There are none."""


def torchvision_video(name: str) -> nn.Module:
    """Build one of NAMES with random weights: [N, 3, T, H, W] -> [N, num_features].

    Its `limits` say which clips it accepts. Other clips raise ConfigError in the forward pass.
    """
    from torchvision.models import video  # imported here, because it takes a second and most runs do not need it

    limits, classifier = _NETWORKS[name]
    network: Any = without_classifier(getattr(video, name)(weights=None), classifier)
    network.limits = limits
    network.register_forward_pre_hook(limits.check_input)
    network.tokens = types.MethodType(_tokens, network)  # a method: a copy of the network has one of its own
    if not limits.exact:
        network.last_map = types.MethodType(_last_map, network)
        network.map_stride = _STRIDES[classifier]
    built: nn.Module = network
    return built


def _tokens(network: Any, x: Tensor) -> Tensor:
    """Return what the features are made of: [N, 3, T, H, W] -> [N, L, num_features]."""
    if hasattr(network, "avgpool"):
        return _last_map(network, x).flatten(2).transpose(1, 2)
    return _seen(network, x, network.norm, lambda _, made: made[:, 1:])


def _last_map(network: Any, x: Tensor) -> Tensor:
    """Return the map that is pooled: [N, 3, T, H, W] -> [N, num_features, T', H', W']."""
    return _seen(network, x, network.avgpool, lambda given, _: given[0])


def _seen(network: Any, x: Tensor, layer: nn.Module, pick: Callable[[Any, Any], Tensor]) -> Tensor:
    """Return what `pick` makes of the inputs and the output of a layer in a forward pass."""
    seen = list[Tensor]()
    hook = layer.register_forward_hook(lambda _, given, made: seen.append(pick(given, made)))
    try:
        network(x)
    finally:
        hook.remove()
    [found] = seen
    return found


def without_classifier(network: nn.Module, classifier: str) -> nn.Module:
    """Replace the classifier of a torchvision network by the identity, in place.

    Args:
        network: the network.
        classifier: the attribute that holds its classifier.

    Returns:
        The same network, with `num_features`, the number of the classifier's inputs.
    """
    [last] = [layer for layer in getattr(network, classifier).modules() if isinstance(layer, nn.Linear | nn.Conv3d)]
    width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    network.num_features = width  # type: ignore[assignment]
    setattr(network, classifier, nn.Identity())
    return network


def published_input(name: str) -> dict[str, Any]:
    """Return the input that the published weights of one of NAMES, or of s3d, were trained with.

    The keys are `size` in pixels, `mean` and `std` of each channel, and `num_frames`, which is None unless the network
    accepts nothing else.
    """
    from torchvision.models import get_model_weights

    expects: Any = next(iter(get_model_weights(name))).transforms()
    limits = _NETWORKS[name][0] if name in _NETWORKS else None
    return {
        "num_frames": limits.num_frames if limits is not None and limits.exact else None,
        "size": expects.crop_size[0],
        "mean": list(expects.mean),
        "std": list(expects.std),
    }
