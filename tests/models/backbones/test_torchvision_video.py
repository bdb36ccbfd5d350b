"""The torchvision backbones: torchvision's own features, without the classifier."""

import copy

import pytest
import torch
from torchvision.models import video

from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.clip_limits import ClipLimits
from rhofast.models.backbones.torchvision_video import CLASSIFIERS, NAMES, published_input

TRANSFORMERS = {"mvit_v1_b", "mvit_v2_s"}


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_promised_number_and_only_the_classifier_s_names_are_gone(name: str) -> None:
    frames, size = (16, 224) if name in TRANSFORMERS else (8, 32)
    with torch.device("meta"):  # shapes alone, at no cost
        backbone = build_backbone(name, {}, num_frames=frames, size=size).eval()
        official = getattr(video, name)(weights=None)
        clips = torch.zeros(2, 3, frames, size, size)
        features, tokens = backbone(clips), backbone.tokens(clips)
    assert tokens.shape[::2] == (2, backbone.num_features) and tokens.shape[1] > 1
    assert features.shape == (2, backbone.num_features)
    ours, theirs = backbone.state_dict(), official.state_dict()
    assert all(theirs[key].shape == value.shape for key, value in ours.items())
    assert all(key.startswith(f"{CLASSIFIERS[name]}.") for key in set(theirs) - set(ours))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("r3d_18", (1, 3, 4, 32, 32)),
        ("mc3_18", (2, 3, 3, 24, 40)),
        ("r2plus1d_18", (1, 3, 4, 32, 32)),
        ("mvit_v2_s", (1, 3, 16, 224, 224)),
        ("swin3d_t", (1, 3, 3, 30, 48)),
    ],
)
def test_torchvision_s_classifier_on_the_features_gives_torchvision_s_scores(name: str, shape: tuple[int, ...]) -> None:
    official = getattr(video, name)(weights=None).eval()
    backbone = build_backbone(name, {}).eval()
    left = backbone.load_state_dict(official.state_dict(), strict=False)
    assert left.missing_keys == [] and len(left.unexpected_keys) == 2
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(clip)
        scores = getattr(official, CLASSIFIERS[name])(features).flatten(1)
        assert torch.allclose(scores, official(clip), rtol=1e-4, atol=1e-5)
        tokens = copy.deepcopy(backbone).tokens(clip)
        if name in TRANSFORMERS:
            assert tokens.shape == (1, 8 * 7 * 7, backbone.num_features)
        else:
            assert torch.allclose(tokens.mean(dim=1), features, rtol=1e-4, atol=1e-5)
        for parameter in backbone.parameters():
            parameter.zero_()
        assert not torch.equal(backbone.tokens(clip), tokens)  # the copy had weights of its own


@pytest.mark.parametrize(
    ("name", "frames", "size", "said"),
    [
        ("mvit_v1_b", 8, 224, "16 frames of 224 x 224 pixels, not 8 frames of 224 x 224 .set clips.num_frames = 16"),
        ("mvit_v2_s", 16, 112, "16 frames of 224 x 224 pixels, not 16 frames of 112 x 112"),
    ],
)
def test_a_clip_that_does_not_go_in_is_refused_at_the_start(name: str, frames: int, size: int, said: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=said):
        build_backbone(name, {}, num_frames=frames, size=size)


def test_a_clip_that_does_not_go_in_is_refused_when_it_comes() -> None:
    with torch.device("meta"):
        backbone = copy.deepcopy(build_backbone("mvit_v1_b", {}))
        with pytest.raises(ConfigError, match="not 16 frames of 224 x 192"):
            backbone(torch.zeros(1, 3, 16, 224, 192))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRANSFORMERS])
def test_the_smallest_clip_that_is_promised_goes_in(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, {}).eval()
        limits = backbone.limits
        assert isinstance(limits, ClipLimits)
        clip = torch.zeros(1, 3, limits.num_frames, limits.size, limits.size)
        assert backbone(clip).shape == (1, backbone.num_features)


@pytest.mark.parametrize("name", [*NAMES, "s3d"])
def test_the_input_of_the_published_weights_is_known(name: str) -> None:
    expects = published_input(name)
    assert expects["size"] in (112, 224) and len(expects["mean"]) == len(expects["std"]) == 3


def test_an_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        build_backbone("r3d_18", {"width": 4})
