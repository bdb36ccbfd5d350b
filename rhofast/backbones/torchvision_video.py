"""Video networks of torchvision without classifiers: R(2+1)D-18, R3D-18, MC3-18 (arXiv 1711.11248), S3D (1712.04851).

State-dict names are torchvision's own, so its weights go in and out as they are, but for the classifier's. What it is
not: it downloads nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rhofast.config import Section

NAMES = ("r2plus1d_18", "r3d_18", "mc3_18", "s3d")


class TorchvisionOptions(Section):
    """There is nothing to choose."""


def torchvision_video(name: str) -> nn.Module:
    """One of NAMES with random weights: [N, 3, T, H, W] -> [N, num_features], the mean over T, H, W. S3D, which
    halves time three times, needs T of 5 or more."""
    from torchvision.models import video  # here, because it takes a second and most runs do without

    network: Any = getattr(video, name)(weights=None)
    if name == "s3d":
        network.num_features = network.classifier[1].in_channels
        network.avgpool, network.classifier = nn.Identity(), nn.Identity()  # its forward ends with a mean over all
    else:
        network.num_features = network.fc.in_features
        network.fc = nn.Identity()
    built: nn.Module = network
    return built
