"""The torchvision backbones: torchvision's own features, without the classifier."""

import pytest
import torch
from torchvision.models import video

from rhofast.backbones import build_backbone
from rhofast.backbones.torchvision_video import NAMES
from rhofast.errors import ConfigError


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_promised_number(name: str) -> None:
    backbone = build_backbone(name, {}).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 8, 32, 32))
    assert features.shape == (2, backbone.num_features)


def test_torchvision_s_classifier_on_the_features_gives_torchvision_s_scores() -> None:
    official = video.r2plus1d_18(weights=None).eval()
    backbone = build_backbone("r2plus1d_18", {}).eval()
    left = backbone.load_state_dict(official.state_dict(), strict=False)
    assert left.missing_keys == [] and set(left.unexpected_keys) == {"fc.weight", "fc.bias"}
    clip = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(official.fc(backbone(clip)), official(clip))


def test_an_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        build_backbone("r3d_18", {"width": 4})
