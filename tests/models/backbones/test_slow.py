"""The slow network against the reference implementation's numbers and the published sizes."""

import pytest
import torch

from rhofast.errors import ConfigError
from rhofast.models.backbones import BACKBONES, build_backbone
from rhofast.models.backbones.slow import Slow, SlowConfig, slow_keys
from rhofast.models.weight_conversion import fill_backbone
from rhofast.models.weight_formats.pyslowfast import pyslowfast_keys
from tests.helpers.reference import needs_vectors, numbers, part, tensors

CLIP = torch.Size((1, 3, 4, 32, 32))


@needs_vectors
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_features_are_those_of_the_reference(dtype: torch.dtype, tolerance: float, mode: str) -> None:
    backbone = Slow(SlowConfig(depth=50, width=8)).to(dtype)
    vectors = tensors("backbone_r50_w8", dtype)
    state = part(vectors, "state/")
    imported = fill_backbone(backbone, state, pyslowfast_keys("slow_r50", backbone, state))
    assert not imported.missing and all(key.startswith("head.") for key in imported.dropped)
    backbone.train(mode == "train")
    clip = tensors("backbone_input", dtype)["input"]
    with torch.no_grad():
        maps = backbone.feature_maps(clip)
        for stage, features in enumerate(maps, start=1):
            expected = vectors[f"{mode}/s{stage}_chmean"]
            assert torch.allclose(features.mean(dim=(0, 2, 3, 4)), expected, rtol=tolerance, atol=tolerance)
        assert torch.allclose(maps[-1], vectors[f"{mode}/s5"], rtol=tolerance, atol=tolerance)
        pooled = maps[-1].mean(dim=(2, 3, 4))
        assert torch.allclose(pooled, vectors[f"{mode}/pool5"], rtol=tolerance, atol=tolerance)
    if mode == "train":
        state = {key: value for key, value in backbone.state_dict().items() if "running" in key}
        after = part(vectors, "after_train_forward/")
        table = {official: here for official, here in slow_keys(backbone).items() if official in after}
        assert len(table) == len(after)
        for official, here in table.items():
            assert torch.allclose(state[here], after[official], rtol=tolerance, atol=tolerance), official


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_the_last_stage_may_keep_its_resolution_with_the_same_weights(block: str) -> None:
    options = {"depth": 18, "width": 4, "block": block}
    plain = build_backbone("slow_r18", options).eval()
    fine = build_backbone("slow_r18", {**options, "last_stride": 1, "last_dilation": 2}).eval()
    fine.load_state_dict(plain.state_dict())
    assert isinstance(plain, Slow) and isinstance(fine, Slow)
    maps, finer = plain.feature_maps(torch.randn(CLIP)), fine.feature_maps(torch.zeros(1, 3, 2, 64, 96))
    assert maps[-1].shape[-2:] == (1, 1) and finer[-1].shape == (1, plain.num_features, 2, 4, 6)
    strides = [
        conv.dilation for conv in fine.modules() if isinstance(conv, torch.nn.Conv3d) and conv.kernel_size[1] == 3
    ]
    assert strides[-4 if block == "basic" else -2 :] == [(1, 2, 2)] * (4 if block == "basic" else 2)
    assert set(strides[: -4 if block == "basic" else -2]) == {(1, 1, 1)}
    # Of a map with values at even places only, a dilated block computes there what the plain one does of the values.
    for coarse, spread in zip(plain.stages[3][1:], fine.stages[3][1:], strict=True):
        wide = torch.zeros(1, plain.num_features, 2, 8, 8)
        wide[..., ::2, ::2] = torch.randn(1, plain.num_features, 2, 4, 4)
        with torch.no_grad():
            expected = coarse(wide[..., ::2, ::2].contiguous())
            assert torch.allclose(spread(wide)[..., ::2, ::2], expected, atol=1e-5)


@needs_vectors
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("r50_w8", {"depth": 50, "width": 8}),
        ("r101_w4", {"depth": 101, "width": 4}),
        ("r18bottleneck_w8", {"depth": 18, "width": 8}),
        ("r18basic_w8", {"depth": 18, "width": 8, "block": "basic", "wide_basic": True}),
    ],
)
def test_sizes_are_those_of_the_reference(file: str, options: dict[str, object]) -> None:
    meta = numbers("backbone_meta")
    if file not in meta:
        pytest.skip(f"no {file} among the vectors")
    backbone = Slow(SlowConfig.model_validate(options)).eval()
    shapes = meta[file]["eval_shapes"]
    with torch.no_grad():
        maps = backbone.feature_maps(torch.zeros(2, 3, 8, 48, 80))
    assert [list(features.shape) for features in maps] == [shapes[f"s{stage}"] for stage in range(1, 6)]


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        ("slow_r50", {}, 31.63),
        ("slow_r101", {}, 51.45 - 0.82),
        ("slow_r101", {"temporal_blocks": (3, 4, 23, 3)}, 60.36 - 0.82),
        ("slow_r18_reference", {}, 20.20 - 0.21),
        ("slow_r18_reference", {"width": 64}, 320.5 - 0.82),
    ],
)
def test_parameters_are_as_many_as_published(name: str, options: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, options)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_textbook_r18_has_its_widths() -> None:
    backbone = build_backbone("slow_r18", {})
    assert isinstance(backbone, Slow)
    with torch.no_grad():
        widths = [features.shape[1] for features in backbone.eval().feature_maps(torch.zeros(CLIP))]
    assert widths == [64, 64, 128, 256, 512] and backbone.num_features == 512


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("slow")])
def test_any_number_of_frames_goes_in_and_time_is_kept(name: str) -> None:
    backbone = build_backbone(name, {"width": 4}).eval()
    for frames in (1, 3, 8):
        with torch.no_grad():
            assert backbone(torch.zeros(2, 3, frames, 32, 32)).shape == (2, backbone.num_features)


def test_temporal_kernels_are_where_they_should_be() -> None:
    backbone = Slow(SlowConfig(depth=101, width=4))
    kernels = [[block.conv_a.kernel_size[0] for block in stage] for stage in backbone.stages]
    assert kernels == [[1] * 3, [1] * 4, [3] * 6 + [1] * 17, [3] * 3]


def test_zero_init_starts_at_the_shortcut() -> None:
    backbone = Slow(SlowConfig(depth=18, width=4, block="basic", zero_init=True))
    assert all(not block.bn_b.weight.any() for stage in backbone.stages for block in stage)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("slow_r5", {}, "backbone.name='slow_r5' is not known"),
        ("slow_r50", {"widht": 3}, "unknown key 'widht' \\(did you mean 'width'"),
        ("slow_r50", {"temporal_kernels": [1, 2, 3, 3]}, "must be odd numbers"),
    ],
)
def test_a_wrong_choice_is_a_config_error(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_backbone(name, options)
