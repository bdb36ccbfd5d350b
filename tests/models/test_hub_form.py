"""A vit in the form of transformers: its own classes open what is written and give the same features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.vit import ViT
from rhofast.models.hub_form import POOLED_NORM_EPS, HubForm, hub_form

TINY: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "patch": 4, "mlp_ratio": 1.3}
PIXELS: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.25)}
ROPE = {"position": "rope", "rope_pairs": "tiled"}


def network(**options: Any) -> ViT:
    """A tiny network whose biases and normalizations are not the initial ones."""
    torch.manual_seed(0)
    built = build_backbone("vit", {**TINY, **options}).eval()
    assert isinstance(built, ViT)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def clips(frames: int = 4, size: int = 12) -> Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def opened(form: HubForm, folder: Path) -> Any:
    """What `from_pretrained` makes of the form, having found all entries but those of a predictor."""
    import transformers

    folder.joinpath("config.json").write_text(json.dumps(form.config))
    folder.joinpath("preprocessor_config.json").write_text(json.dumps(form.processor))
    save_file(form.state, folder / "model.safetensors", metadata={"format": "pt"})
    model, notes = getattr(transformers, form.model).from_pretrained(folder, output_loading_info=True)
    assert not notes["unexpected_keys"] and not notes["mismatched_keys"]
    assert all(name.startswith("predictor.") for name in notes["missing_keys"])
    return model.eval()


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({}, "VideoMAEModel"),
        ({"norm": "none", "norm_eps": 1e-3, "tubelet": 1}, "VideoMAEModel"),
        ({"norm": "pooled", "pooled_norm_eps": POOLED_NORM_EPS}, "VideoMAEForVideoClassification"),
        (ROPE, "VJEPA2Model"),
        ({**ROPE, "norm_eps": 1e-3, "mlp_ratio": 49 / 24}, "VJEPA2Model"),
    ],
)
def test_transformers_gives_the_same_features(options: dict[str, Any], model: str, tmp_path: Path) -> None:
    backbone, x = network(**options), clips()
    form = hub_form(backbone, num_frames=4, size=12, **PIXELS)
    assert form.model == model == form.config["architectures"][0]
    theirs = opened(form, tmp_path)
    with torch.inference_mode():
        features = eval(form.features, {"model": theirs, "clips": x.transpose(1, 2)})
        assert torch.allclose(features, backbone(x), atol=1e-5, rtol=1e-5)
    assert sum(value.numel() for value in form.state.values()) == sum(
        value.numel() for value in backbone.parameters()
    ) - (0 if model == "VJEPA2Model" else 2 * 24)  # the biases of keys


@pytest.mark.parametrize("options", [{}, ROPE])
def test_transformers_prepares_clips_as_the_network_wants_them(options: dict[str, Any], tmp_path: Path) -> None:
    """A video of one color: size and normalization, whatever way the frames are resized."""
    import transformers

    opened(hub_form(network(**options), num_frames=4, size=12, **PIXELS), tmp_path)
    processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    color = torch.tensor([51, 102, 204], dtype=torch.uint8)
    clip = next(iter(processor(color[None, :, None, None].expand(4, 3, 20, 30), return_tensors="pt").values()))
    expected = (color / 255 - torch.tensor(PIXELS["mean"])) / torch.tensor(PIXELS["std"])
    assert clip.shape == (1, 4, 3, 12, 12)
    assert torch.allclose(clip, expected[None, None, :, None, None].expand(1, 4, 3, 12, 12), atol=1e-5)


def test_v_jepa_takes_longer_clips_than_it_was_written_for(tmp_path: Path) -> None:
    backbone, x = network(**ROPE), clips(frames=8)
    theirs = opened(hub_form(backbone, num_frames=4, size=12, **PIXELS), tmp_path)
    with torch.inference_mode():
        features = theirs(x.transpose(1, 2), skip_predictor=True).last_hidden_state.mean(dim=1)
        assert torch.allclose(features, backbone(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"position": "sincos3d"}, "backbone.position=sincos3d"),
        ({"position": "learned", "position_side": 3}, "backbone.position=learned"),
        ({"position": "rope"}, "backbone.rope_pairs=adjacent"),
        ({**ROPE, "rope_side": 3}, "backbone.rope_side=3"),
        ({**ROPE, "norm": "pooled"}, "backbone.norm=pooled"),
        ({"pool": "cls"}, "a class token"),
        ({"class_token": True}, "a class token"),
        ({"modality_token": True}, "backbone.modality_token=true"),
        ({"norm": "pooled"}, "epsilon 1e-05, this network with 1e-06"),
    ],
)
def test_what_transformers_cannot_compute_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        hub_form(network(**options), num_frames=4, size=12, **PIXELS)
    assert "\n" not in str(caught.value)


def test_other_networks_and_clips_are_one_line() -> None:
    slow: nn.Module = build_backbone("slow_r18", {"width": 2})
    with pytest.raises(ConfigError, match=r"a Slow has no form in transformers .only backbone\.name=vit has one"):
        hub_form(slow, num_frames=4, size=32, **PIXELS)
    with pytest.raises(ConfigError, match="takes clips"):
        hub_form(network(), num_frames=3, size=12, **PIXELS)
