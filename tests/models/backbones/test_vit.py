"""The video transformer: its parts against closed forms, what `keep` draws, and what training needs of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from rhofast.config.schema import OptimConfig
from rhofast.errors import ConfigError
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.positions import rotary_angles, rotate, sincos_1d, sincos_3d
from rhofast.models.backbones.vit import ViT, ViTConfig
from rhofast.models.methods import build_method
from rhofast.training.optim import build_optimizer

TINY = {"width": 24, "depth": 2, "heads": 2, "patch": 4}
POSITIONS = ("sincos1d", "sincos3d", "rope", "learned")
CPU = torch.device("cpu")


def tiny(**options: Any) -> ViT:
    torch.manual_seed(0)
    network = build_backbone("vit", {**TINY, "position_side": 3, **options})
    assert isinstance(network, ViT)
    return network


def clips(count: int = 2, frames: int = 4, height: int = 12, width: int = 12) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "millions"), [("s", 22.0), ("b", 86.2), ("l", 303.9)])
def test_sizes_have_the_published_numbers_of_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_backbone("vit", {"size": size}, num_frames=16, size=224)
        assert network(torch.empty(2, 3, 16, 224, 224)).shape == (2, network.num_features)
        assert network.tokens(torch.empty(2, 3, 16, 224, 224)).shape[1] == 1568  # type: ignore[operator]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_last_normalization_is_where_it_is_said_to_be() -> None:
    x = clips()
    bare = tiny(norm="none").eval()
    pooled = tiny(norm="pooled", pooled_norm_eps=1e-2).eval()
    features = bare(x)
    assert torch.allclose(features, bare.tokens(x).mean(dim=1), atol=1e-6)
    assert torch.allclose(pooled(x), F.layer_norm(features, (24,), eps=1e-2), atol=1e-6)
    last = tiny(norm_eps=1e-6).eval()
    assert torch.allclose(last.tokens(x), F.layer_norm(bare.tokens(x), (24,), eps=1e-6), atol=1e-6)
    assert ViTConfig(width=1408, depth=40, heads=16, mlp_ratio=48 / 11).mlp_width == 6144


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_patches_are_a_convolution_whatever_the_layout(layout: torch.memory_format) -> None:
    embed = tiny().patch_embed
    x = clips(height=8, width=20).to(memory_format=layout)
    expected = embed.proj(x).flatten(2).transpose(1, 2)
    kept = torch.tensor([[0, 7, 11], [5, 6, 19]])
    assert torch.allclose(embed(x, None), expected, atol=1e-6)
    assert torch.allclose(embed(x, kept), expected.gather(1, kept[..., None].expand(-1, -1, 24)), atol=1e-6)
    assert torch.allclose(embed.to(memory_format=layout)(x, None), expected, atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 4, 4), (4, 12, 12), (6, 8, 20)])
def test_any_clip_that_fits_goes_in(position: str, frames: int, height: int, width: int) -> None:
    network = tiny(position=position).eval()
    x = clips(frames=frames, height=height, width=width)
    tokens = network.tokens(x)
    assert tokens.shape == (2, frames // 2 * height // 4 * width // 4, 24)
    assert torch.allclose(network(x), tokens.mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 12, 12), (4, 10, 12), (4, 12, 10), (1, 12, 12), (4, 12, 2)])
def test_a_clip_that_does_not_fit_is_one_line(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="backbone vit takes clips"):
        tiny()(torch.zeros(1, 3, *shape))
    frames, height, width = shape
    if height == width:
        with pytest.raises(ConfigError, match="backbone vit takes clips"):
            build_backbone("vit", TINY, num_frames=frames, size=height)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 5}, "backbone.width=24 must be even and a multiple of backbone.heads=5"),
        ({"heads": 6, "position": "rope"}, "heads of an even width of at least 6"),
        ({"pool": "cls", "class_token": False}, "needs backbone.class_token=true"),
        ({"keep": 0.0}, "backbone: keep="),
        ({"keep": 1.1}, "backbone: keep="),
        ({"size": "xl"}, "backbone: size="),
        ({"drop_path": 1.0}, "backbone: drop_path="),
        ({"droppath": 0.1}, "unknown key 'droppath'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_backbone("vit", {**TINY, **options})
    assert "\n" not in str(caught.value)


def test_tables_are_the_closed_form() -> None:
    one, three = sincos_1d((2, 3, 4), 12, CPU), sincos_3d((2, 3, 4), 16, CPU)
    for token, (t, h, w) in ((0, (0, 0, 0)), (7, (0, 1, 3)), (21, (1, 2, 1))):
        for entry in range(12):
            angle = token / 10000 ** (2 * (entry // 2) / 12)
            expected = math.cos(angle) if entry % 2 else math.sin(angle)
            assert one[token, entry] == pytest.approx(expected, abs=1e-6)
        for place, entries, begin in ((t, 8, 0), (h, 4, 8), (w, 4, 12)):
            for entry in range(entries):
                angle = place / 10000 ** (2 * (entry // 2) / entries)
                expected = math.cos(angle) if entry % 2 else math.sin(angle)
                assert three[token, begin + entry] == pytest.approx(expected, abs=1e-6)


def test_rotations_depend_on_distances_alone() -> None:
    grid = (3, 3, 3)
    angles = rotary_angles(grid, 20, "adjacent", None, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(20, generator=generator).expand(1, 1, 27, 20).contiguous() for _ in range(2))
    scores = (rotate(q, *angles)[0, 0] @ rotate(k, *angles)[0, 0].t()).view(*grid, *grid)
    assert scores[0, 0, 0, 1, 1, 1] == pytest.approx(float(scores[1, 1, 1, 2, 2, 2]), abs=1e-4)
    assert scores[0, 2, 1, 1, 1, 1] == pytest.approx(float(scores[1, 1, 1, 2, 0, 1]), abs=1e-4)
    assert abs(float(scores[0, 0, 0, 1, 1, 1] - scores[0, 0, 0, 1, 1, 2])) > 1e-3
    stretched = rotary_angles((1, 5, 1), 20, "adjacent", 3, CPU)
    counted = rotary_angles((1, 3, 1), 20, "adjacent", None, CPU)
    assert torch.allclose(stretched[0][::2], counted[0]) and torch.allclose(stretched[1][::2], counted[1])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_kept_tokens_see_each_other_and_their_own_places(position: str, pool: str) -> None:
    """A network that keeps some tokens is one whose attention is masked to them."""
    network = tiny(position=position, pool=pool, keep=0.5).train()
    x = clips()
    torch.manual_seed(5)
    features = network(x)
    torch.manual_seed(5)
    kept = network._draw_kept(2, (2, 3, 3), x.device)
    assert kept is not None and kept.shape == (2, 9) and bool((kept.diff() > 0).all())
    torch.manual_seed(5)
    tokens = network.tokens(x)
    for clip in range(2):
        full = copy.deepcopy(network).eval()
        prefix = int(network.cls_token is not None)
        seen = torch.zeros(18 + prefix, dtype=torch.bool)
        seen[:prefix] = True
        seen[kept[clip] + prefix] = True
        for block in full.blocks:
            attend = block.attn
            assert isinstance(attend, nn.Module)
            attend.register_forward_hook(masked(seen))
        out = full.tokens(x[clip : clip + 1])[0, kept[clip]]
        assert torch.allclose(tokens[clip], out, atol=1e-5)
    assert features.shape == (2, 24)


def masked(seen: Tensor) -> Any:
    """Return a hook that computes an attention again, with some keys only."""

    def hook(module: Any, arguments: tuple[Any, ...], _: Tensor) -> Tensor:
        x, angles = arguments
        q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None])
        out: Tensor = module.proj(attended.transpose(1, 2).flatten(2))
        return out

    return hook


def test_tokens_are_dropped_only_where_gradients_are_made() -> None:
    network = tiny(keep=0.25)
    x = clips()
    assert network.train().tokens(x).shape[1] == 4  # of 18, rounded
    with torch.no_grad():
        assert network.tokens(x).shape[1] == 18
    assert network.eval().tokens(x).shape[1] == 18
    assert tiny(keep=0.001).train().tokens(x).shape[1] == 1
    draws = torch.stack([tiny(keep=0.25)._draw_kept(500, (2, 3, 3), CPU)])  # type: ignore[list-item]
    counts = torch.bincount(draws.flatten(), minlength=18)
    assert counts.sum() == 2000 and counts.min() > 70 and counts.max() < 160  # 111 each in the mean


def test_the_same_seed_draws_the_same_tokens_and_paths() -> None:
    network = tiny(keep=0.5, drop_path=0.5).train()
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(network(clips()))
    assert torch.equal(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2])


def test_dropped_paths_keep_the_mean_and_leave_evaluation_alone() -> None:
    block = tiny(drop_path=0.4).blocks[-1].train()
    branch = torch.ones(20000, 1, 1)
    dropped = block._dropped(branch)  # type: ignore[operator]
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert block.eval()._dropped(branch) is branch  # type: ignore[operator]
    assert [b.drop_path for b in tiny(drop_path=0.4, depth=3).blocks] == [0.0, 0.2, 0.4]


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        network = tiny(keep=0.5, drop_path=0.5, position="rope").train()
        if checkpointed:
            assert checkpoint_blocks(network) == 2
        torch.manual_seed(3)
        network(clips()).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("position", POSITIONS)
def test_a_compiled_graph_has_no_breaks(position: str) -> None:
    network = tiny(position=position, keep=0.5).train()
    compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)
    torch.manual_seed(3)
    expected = network(clips())
    torch.manual_seed(3)
    assert torch.allclose(compiled(clips()), expected, atol=1e-6)


def test_matrices_alone_decay() -> None:
    network = tiny(position="learned", pool="cls", modality_token=True)
    method = build_method("byol", {"hidden": 8, "out": 4}, network)
    names = {id(p): name for name, p in method.named_parameters()}
    for kind in ("adamw", "lars"):
        plain, other = build_optimizer(method, OptimConfig(name=kind, weight_decay=0.1)).param_groups
        assert plain["weight_decay"] == 0 and other["weight_decay"] == 0.1
        decayed = [names[id(p)] for p in other["params"] if names[id(p)].startswith("backbone.")]
        assert len(decayed) == 1 + 2 * 4 and all(name.endswith("weight") and "norm" not in name for name in decayed)
        left = {names[id(p)] for p in plain["params"]}
        assert {"backbone.cls_token", "backbone.pos_embed", "backbone.video_mod_embed"} <= left


def test_steps_with_timm_s_blocks_are_the_same() -> None:
    """Two steps of rho-BYOL with AdamW in float64, as the benchmark of a step checks them before it times them."""
    pytest.importorskip("timm")
    from benchmarks.training.vit_step import check_the_same

    assert check_the_same(Accelerator(cpu=True)) < 1e-6


def test_frozen_patches_are_not_trained() -> None:
    network = tiny(freeze_patches=True)
    network(clips()).sum().backward()
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert all((p.grad is None) == (not p.requires_grad) for p in network.parameters())


def test_tokens_of_the_slow_network_have_its_features_as_mean() -> None:
    network = build_backbone("slow_r18", {"width": 4}).eval()
    x = clips(height=64, width=64)
    tokens = network.tokens(x)  # type: ignore[operator]
    assert tokens.shape == (2, 4 * 2 * 2, network.num_features)
    assert torch.allclose(tokens.mean(dim=1), network(x), atol=1e-6)
