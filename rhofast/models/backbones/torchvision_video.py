"""Video networks of torchvision without classifiers.

    r3d_18, mc3_18, r2plus1d_18     arXiv 1711.11248      any clip
    s3d                             1712.04851            6 frames of 17 x 17 pixels, or more
    mvit_v1_b, mvit_v2_s            2104.11227, 2112.01526     16 frames of 224 x 224 pixels, nothing else
    swin3d_t, swin3d_s, swin3d_b    2106.13230            any clip

Features are what torchvision feeds to its classifier. State-dict names are torchvision's own, so its weights go in and
out as they are, but for the classifier's. What it is not: it downloads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.config.section import Section
from rhofast.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLimits:
    """Which clips a network takes: `num_frames` and `size` pixels a side or more; exactly as many where `exact`."""

    name: str
    num_frames: int = 1
    size: int = 1
    exact: bool = False

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raises ConfigError, with what is possible, for a clip that does not go in."""
        if self.exact:
            fits = (num_frames, height, width) == (self.num_frames, self.size, self.size)
        else:
            fits = num_frames >= self.num_frames and min(height, width) >= self.size
        if fits:
            return
        possible = f"{self.num_frames} frames of {self.size} x {self.size} pixels{'' if self.exact else ' or more'}"
        raise ConfigError(
            f"backbone {self.name} takes clips of {possible}, not {num_frames} frames of {height} x {width}",
            hint=f"set clips.num_frames = {self.num_frames} and augment.size = {self.size}"
            if self.exact
            else f"set clips.num_frames >= {self.num_frames} and augment.size >= {self.size}",
        )

    def check_input(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """The same of what is about to go in, [N, 3, T, H, W]: a hook."""
        num_frames, height, width = arguments[0].shape[2:]
        self.check(num_frames, height, width)


# The limits of each network, and the attribute that is its classifier.
_NETWORKS = {
    "r2plus1d_18": (ClipLimits(name="r2plus1d_18"), "fc"),
    "r3d_18": (ClipLimits(name="r3d_18"), "fc"),
    "mc3_18": (ClipLimits(name="mc3_18"), "fc"),
    # 5 frames go in, too, but the gradient of its convolution over 7 then writes out of bounds (torch 2.15, CPU).
    "s3d": (ClipLimits(name="s3d", num_frames=6, size=17), "classifier"),
    "mvit_v1_b": (ClipLimits(name="mvit_v1_b", num_frames=16, size=224, exact=True), "head"),
    "mvit_v2_s": (ClipLimits(name="mvit_v2_s", num_frames=16, size=224, exact=True), "head"),
    "swin3d_t": (ClipLimits(name="swin3d_t"), "head"),
    "swin3d_s": (ClipLimits(name="swin3d_s"), "head"),
    "swin3d_b": (ClipLimits(name="swin3d_b"), "head"),
}
NAMES = tuple(_NETWORKS)
CLASSIFIERS = {name: classifier for name, (_, classifier) in _NETWORKS.items()}


class TorchvisionConfig(Section):
    """There is nothing to choose."""


def torchvision_video(name: str) -> nn.Module:
    """One of NAMES with random weights: [N, 3, T, H, W] -> [N, num_features]. Its `limits` say which clips it takes;
    others raise ConfigError when they come in."""
    from torchvision.models import video  # here, because it takes a second and most runs do without

    limits, classifier = _NETWORKS[name]
    network: Any = without_classifier(getattr(video, name)(weights=None), classifier)
    if name == "s3d":
        network.avgpool = _ClippedWindow(network.avgpool.kernel_size)
    network.limits = limits
    network.register_forward_pre_hook(limits.check_input)
    built: nn.Module = network
    return built


def without_classifier(network: nn.Module, classifier: str) -> nn.Module:
    """A network of torchvision, in place: its classifier, an attribute, lets everything through, and `num_features` is
    what went in there."""
    [last] = [layer for layer in getattr(network, classifier).modules() if isinstance(layer, nn.Linear | nn.Conv3d)]
    width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    network.num_features = width  # type: ignore[assignment]
    setattr(network, classifier, nn.Identity())
    return network


def published_input(name: str) -> dict[str, Any]:
    """What the published weights of one of NAMES were trained on: `size` in pixels, `mean` and `std` of each channel,
    `num_frames` where nothing else goes in or None."""
    from torchvision.models import get_model_weights

    expects: Any = next(iter(get_model_weights(name))).transforms()
    limits, _ = _NETWORKS[name]
    return {
        "num_frames": limits.num_frames if limits.exact else None,
        "size": expects.crop_size[0],
        "mean": list(expects.mean),
        "std": list(expects.std),
    }


class _ClippedWindow(nn.Module):
    """torchvision's average over sliding windows; on a map smaller than the window, which torchvision refuses, over all
    of it."""

    def __init__(self, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        kernel = [min(pair) for pair in zip(self.window, x.shape[2:], strict=True)]
        return F.avg_pool3d(x, kernel, stride=1)
