"""The state dicts that torchvision publishes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rhofast.models.backbones.s3d import S3D, torchvision_s3d_keys
from rhofast.models.backbones.torchvision_video import CLASSIFIERS, NAMES, published_input
from rhofast.models.weight_conversion import WHOLE, KeyTable, WeightFormat, is_state

_NAMES = (*NAMES, "s3d")  # the last is a network of our own, whose weights torchvision has


def _keys(name: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> KeyTable:
    """Names are the same, except for those of S3D; the classifier belongs to no backbone."""
    if isinstance(backbone, S3D):
        names, classifier = torchvision_s3d_keys(backbone), "classifier"
    else:
        names, classifier = {key: key for key in backbone.state_dict()}, CLASSIFIERS[name]
    return KeyTable(
        names=names,
        is_other=lambda key: key.startswith(f"{classifier}."),
        hint=f"the backbone is said to be {name}",
    )


def _name(file_name: str) -> str | None:
    """Return the network that torchvision's file names start with, such as r3d_18-b3b3357e.pth."""
    fitting = [name for name in _NAMES if file_name.startswith(name)]
    return max(fitting, key=len) if fitting else None


TORCHVISION = WeightFormat(
    title="torchvision state dict",
    backbones=_NAMES,
    part=lambda content: WHOLE if is_state(content) else None,
    keys_in=_keys,
    expected_input=lambda name, _: published_input(name),
    backbone_of=_name,
)
