"""Weights of other video and image transformers: their own classes, with random weights, give the same features.

Files are written as their authors write them, and come in through `import_weights` and `load_backbone`. The layouts of
VideoMAE's and V-JEPA's own checkpoints are made from transformers' models by renaming.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rhofast.checkpoint.backbone_file import load_backbone
from rhofast.checkpoint.card import InputCard
from rhofast.checkpoint.export import Transfer, import_weights
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.evaluation.model import open_model
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.vit import ViT
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_formats import format_for, load_into, options_for
from tests.helpers.program import run

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "tubelet_size": 2}
VIDEOMAE = {**SHAPE, "intermediate_size": 36, "image_size": 12, "num_frames": 4, "layer_norm_eps": 1e-3}
VJEPA2 = {**SHAPE, "mlp_ratio": 2.0, "crop_size": 12, "frames_per_clip": 4, "layer_norm_eps": 1e-3}
VJEPA2 |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
HEADS = {"heads": 2}


def noisy(network: nn.Module) -> Any:
    """The network in evaluation mode, whose biases, tokens and normalizations are not the initial ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def clips(frames: int = 4) -> Tensor:
    return torch.randn(2, 3, frames, 12, 12, generator=torch.Generator().manual_seed(1))


def videomae(kind: str = "VideoMAEModel", **options: Any) -> Any:
    import transformers

    return noisy(getattr(transformers, kind)(transformers.VideoMAEConfig(**{**VIDEOMAE, **options})))


def vjepa2(kind: str = "VJEPA2Model", **options: Any) -> Any:
    import transformers

    return noisy(getattr(transformers, kind)(transformers.VJEPA2Config(**{**VJEPA2, **options})))


def imported(source: Path, **options: Any) -> tuple[ViT, Transfer]:
    """The backbone of a file, by the door that a user takes."""
    done = import_weights(source, source.parent / "imported.safetensors", options=options)
    backbone = load_backbone(done.target)
    assert isinstance(backbone, ViT)
    return backbone, done


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def accounted(done: Transfer, state: dict[str, Tensor]) -> None:
    """Each entry of the file is matched or dropped, once."""
    assert sorted([*done.entries.matched, *done.entries.dropped]) == sorted(state)


def renamed(state: dict[str, Tensor], rules: dict[str, str], prefix: str) -> dict[str, Tensor]:
    """A state dict of transformers with the names of the authors' code, queries, keys and values in one layer."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        if ".query." not in name and ".key." not in name and ".value." not in name:
            out[prefix + name] = value
    for name in state:
        if name.endswith("query.weight"):
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            out[f"{prefix}blocks.{re.findall('[0-9]+', name)[0]}.attn.qkv.weight"] = torch.cat(parts)
    return out


AUTHORS = {
    r"^(videomae\.)?(encoder\.)?embeddings\.patch_embeddings\.proj(ection)?": "patch_embed.proj",
    r"^(videomae\.)?encoder\.layer\.": "blocks.",
    r"^(videomae\.)?(encoder\.)?layernorm\.": "norm.",
    r"\.attention\.(output\.dense|proj)": ".attn.proj",
    r"\.layernorm_before": ".norm1",
    r"\.layernorm_after": ".norm2",
    r"\.intermediate\.dense": ".mlp.fc1",
    r"\.output\.dense": ".mlp.fc2",
}


def as_videomae(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """VideoMAE's own names for a model of transformers: `q_bias` and `v_bias`, and no bias of keys."""
    state = model.state_dict()
    out = renamed(state, AUTHORS, prefix)
    for name, value in state.items():
        if name.endswith(("query.bias", "value.bias")):
            number, part = re.findall(r"layer\.(\d+).*(query|value)", name)[0]
            out[f"{prefix}blocks.{number}.attn.{part[0]}_bias"] = value
    return out


def as_vjepa(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """V-JEPA's own names for the encoder of a model of transformers."""
    state = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
    out = renamed(state, AUTHORS, prefix)
    for number in range(len(model.encoder.layer)):  # type: ignore[union-attr, arg-type]
        parts = [state[f"encoder.layer.{number}.attention.{part}.bias"] for part in ("query", "key", "value")]
        out[f"{prefix}blocks.{number}.attn.qkv.bias"] = torch.cat(parts)
    return out


@pytest.mark.parametrize(
    ("kind", "options", "dropped"),
    [
        ("VideoMAEModel", {"use_mean_pooling": False}, 0),
        ("VideoMAEModel", {}, 0),
        ("VideoMAEModel", {"qkv_bias": False, "tubelet_size": 1}, 0),
        ("VideoMAEForVideoClassification", {}, 2),
        ("VideoMAEForPreTraining", {"use_mean_pooling": False}, None),
    ],
)
def test_videomae_of_transformers(kind: str, options: dict[str, Any], dropped: int | None, tmp_path: Path) -> None:
    if "PreTraining" in kind:
        options = {
            **options,
            "decoder_num_hidden_layers": 1,
            "decoder_hidden_size": 24,
            "decoder_num_attention_heads": 2,
        }
        options |= {"decoder_intermediate_size": 24}
    theirs, x = videomae(kind, **options), clips()
    theirs.save_pretrained(tmp_path)
    backbone, done = imported(tmp_path / "model.safetensors", keep=0.5)
    trunk = theirs if kind == "VideoMAEModel" else theirs.videomae
    with torch.inference_mode():
        expected = trunk(x.transpose(1, 2)).last_hidden_state.mean(dim=1)
        if kind == "VideoMAEForVideoClassification":
            expected = theirs.fc_norm(expected)
        assert same(backbone(x), expected)
    assert dropped is None or len(done.entries.dropped) == dropped
    assert (done.entries.missing != []) == (options.get("qkv_bias") is False)
    accounted(done, {name: torch.zeros(1) for name in [*done.entries.matched, *done.entries.dropped]})
    assert done.card["input"]["num_frames"] == 4 and done.card["input"]["size"] == 12
    assert backbone.options.keep == 0.5 and backbone.options.norm_eps == 1e-3


def test_older_files_of_transformers_have_biases_of_their_own(tmp_path: Path) -> None:
    theirs, x = videomae(), clips()
    old = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for name, value in theirs.state_dict().items()
    }
    save_file(old, tmp_path / "old.safetensors")
    backbone, done = imported(tmp_path / "old.safetensors", heads=2)
    accounted(done, old)
    with torch.inference_mode():
        for module in [theirs, *theirs.modules()]:  # without config.json, epsilon is transformers' own
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12
        assert same(backbone(x), theirs(x.transpose(1, 2)).last_hidden_state.mean(dim=1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("VJEPA2Model", {}), ("VJEPA2Model", {"qkv_bias": False}), ("VJEPA2ForVideoClassification", {})],
)
def test_v_jepa_2_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = vjepa2(kind, num_pooler_layers=1, **options)
    theirs.save_pretrained(tmp_path)
    backbone, done = imported(tmp_path / "model.safetensors", size="b", width=24, depth=2, heads=2)
    trunk = theirs if kind == "VJEPA2Model" else theirs.vjepa2
    with torch.inference_mode():
        for x in (clips(), clips(frames=8)):
            expected = trunk(x.transpose(1, 2), skip_predictor=True).last_hidden_state
            assert same(backbone.tokens(x), expected) and same(backbone(x), expected.mean(dim=1))
    accounted(done, theirs.state_dict())
    heads = {"predictor", "vjepa2", "pooler", "classifier"}
    assert {name.partition(".")[0] for name in done.entries.dropped} <= heads


@pytest.mark.parametrize(("part", "prefix"), [("model", "encoder."), ("module", ""), ("model", "backbone.")])
@pytest.mark.parametrize("pooled", [False, True])
def test_checkpoints_of_videomae(part: str, prefix: str, pooled: bool, tmp_path: Path) -> None:
    theirs, x = videomae("VideoMAEForVideoClassification", use_mean_pooling=pooled, layer_norm_eps=1e-6), clips()
    state = as_videomae(theirs.videomae, prefix)
    other = {"decoder.blocks.0.norm1.weight": torch.zeros(1), "encoder_to_decoder.weight": torch.zeros(1)}
    other |= {"mask_token": torch.zeros(1), f"{prefix}head.weight": torch.zeros(1)}
    if pooled:
        theirs.fc_norm.eps = 1e-6
        state |= {f"{prefix}fc_norm.weight": theirs.fc_norm.weight, f"{prefix}fc_norm.bias": theirs.fc_norm.bias}
    arguments = argparse.Namespace(lr=1e-3, model="vit_base_patch16_224")
    torch.save({part: state | other, "optimizer": {"state": {}}, "args": arguments}, tmp_path / "x.pth")
    backbone, done = imported(tmp_path / "x.pth", **HEADS)
    accounted(done, state | other)
    assert sorted(done.entries.dropped) == sorted(other) and done.entries.missing == []
    with torch.inference_mode():
        expected = theirs.videomae(x.transpose(1, 2)).last_hidden_state.mean(dim=1)
        assert same(backbone(x), theirs.fc_norm(expected) if pooled else expected)
    assert done.card["input"]["size"] == 224 and done.card["input"]["mean"] == [0.485, 0.456, 0.406]


def test_scales_of_layers_are_multiplied_in(tmp_path: Path) -> None:
    """VideoMAE's `gamma_1` and `gamma_2`: those of 1/2 halve what the last layers of the two branches give."""
    theirs, x = videomae(layer_norm_eps=1e-6), clips()
    state = as_videomae(theirs, "")
    gammas = {f"blocks.{number}.gamma_{which}": torch.full((24,), 0.5) for number in range(2) for which in (1, 2)}
    torch.save({"model": state | gammas}, tmp_path / "x.pth")
    backbone, done = imported(tmp_path / "x.pth", **HEADS)
    accounted(done, state | gammas)
    with torch.inference_mode():
        for name, value in theirs.named_parameters():
            if "output.dense" in name:
                value.mul_(0.5)
        assert same(backbone(x), theirs(x.transpose(1, 2)).last_hidden_state.mean(dim=1))


@pytest.mark.parametrize("part", ["target_encoder", "encoder"])
def test_checkpoints_of_v_jepa_2(part: str, tmp_path: Path) -> None:
    theirs, x = vjepa2(layer_norm_eps=1e-6), clips()
    state = as_vjepa(theirs, "module.backbone.")
    table = {"module.backbone.pos_embed": torch.zeros(1, 32 * 3 * 3, 24)}
    content: dict[str, Any] = {part: state | table, "predictor": {"module.x": torch.zeros(1)}, "opt": {}, "epoch": 3}
    if part == "target_encoder":
        content["encoder"] = {name: value + 1 for name, value in state.items()}
    torch.save(content, tmp_path / "vitl.pt")
    backbone, done = imported(tmp_path / "vitl.pt", **HEADS)
    online = ["encoder.*"] if part == "target_encoder" else []
    assert sorted(done.entries.dropped) == sorted([*online, *table, "predictor.*"]) and done.entries.missing == []
    assert sorted(done.entries.matched) == sorted(state)
    with torch.inference_mode():
        assert same(backbone.tokens(x), theirs(x.transpose(1, 2), skip_predictor=True).last_hidden_state)
    assert (done.card["input"]["num_frames"], done.card["input"]["size"]) == (64, 12)  # as the table says


def test_checkpoints_of_v_jepa_2_1(tmp_path: Path) -> None:
    """Its names are those of `vit` but for the last of four normalizations; what is for images is dropped by name."""
    torch.manual_seed(0)
    options = {"width": 24, "depth": 2, "heads": 2, "patch": 4, "position": "rope", "rope_side": 64}
    ours = noisy(build_backbone("vit", {**options, "modality_token": True}))
    state = {f"module.backbone.{name}": value for name, value in ours.state_dict().items()}
    for part in ("weight", "bias"):
        last = state.pop(f"module.backbone.norm.{part}")
        state |= {f"module.backbone.norms_block.{layer}.{part}": last + (3 - layer) for layer in range(4)}
    image = {f"module.backbone.{name}": torch.zeros(1) for name in ("img_mod_embed", "patch_embed_img.proj.weight")}
    torch.save({"ema_encoder": state | image, "target_encoder": {"module.x": torch.zeros(1)}}, tmp_path / "x.pt")
    backbone, done = imported(tmp_path / "x.pt", **HEADS)
    unused = [name for name in state if re.search(r"norms_block\.[012]", name)]
    assert sorted(done.entries.dropped) == sorted([*image, *unused, "target_encoder.*"])
    assert backbone.options.rope_pairs == "adjacent" and backbone.options.rope_side == 64
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in backbone.state_dict().items())
    with torch.inference_mode():
        assert same(backbone(clips()), ours(clips()))
    assert done.card["input"]["size"] == 384


def timm_vit(**options: Any) -> Any:
    import timm

    torch.manual_seed(0)
    shape = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    return noisy(timm.create_model("vit_tiny_patch16_224", **{**shape, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
        {"class_token": False, "global_pool": "avg"},
        {"no_embed_class": True, "init_values": 0.5, "qkv_bias": False},
    ],
)
def test_image_transformers_of_timm(options: dict[str, Any], tmp_path: Path) -> None:
    """A still clip of one tubelet gives the features of the image; without class token, one of any length does."""
    from timm.models import save_for_hf

    theirs = timm_vit(**options)
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    backbone, done = imported(tmp_path / "model.safetensors", tubelet=4)
    image = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
        assert same(backbone(image[:, :, None].expand(-1, -1, 4, -1, -1).contiguous()), expected)
        if backbone.cls_token is None:
            assert same(backbone(image[:, :, None].expand(-1, -1, 8, -1, -1).contiguous()), expected)
    accounted(done, theirs.state_dict())
    assert sorted(done.entries.dropped) == ["head.bias", "head.weight"]
    assert done.card["input"]["mean"] == [0.5, 0.5, 0.5] and done.card["input"]["size"] == 12


@pytest.mark.parametrize(
    ("part", "prefix", "others"),
    [
        ("model", "", ["mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight"]),  # MAE
        ("teacher", "backbone.", ["head.mlp.0.weight"]),  # DINO
        ("state_dict", "module.", []),
    ],
)
def test_a_state_dict_alone_says_what_it_can(part: str, prefix: str, others: list[str], tmp_path: Path) -> None:
    theirs = timm_vit(num_classes=0)
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    content = {part: state | dict.fromkeys(others, torch.zeros(1)), "student": {"x": torch.zeros(1)}}
    torch.save(content, tmp_path / "x.pth")
    backbone, done = imported(tmp_path / "x.pth", heads=2, pool="mean")
    assert done.entries.dropped == [*others, "student.*"]
    assert done.card["input"]["mean"] is None and "which is not known" in done.card["input"]["text"]
    assert (backbone.options.tubelet, backbone.options.norm, backbone.options.pool) == (2, "tokens", "mean")
    image = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.forward_features(image)[:, 1:]
        assert same(backbone.tokens(image[:, :, None].expand(-1, -1, 2, -1, -1).contiguous()), expected)


def test_sizes_that_authors_published_need_no_option(tmp_path: Path) -> None:
    """The shapes of V-JEPA 2's g, whose width has 22 heads there and 16 in VideoMAE; nothing of it takes memory."""
    from rhofast.models.weight_formats.videomae import VIDEOMAE as OF_VIDEOMAE
    from rhofast.models.weight_formats.vjepa import VJEPA

    with torch.device("meta"):
        giant = build_backbone("vit", {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 48 / 11})
    state = giant.state_dict()
    file = WeightFile(path=Path("vitg.pt"), content={"target_encoder": state})
    assert VJEPA.options_in is not None and OF_VIDEOMAE.options_in is not None
    options = VJEPA.options_in(file, {"mlp_ratio": 48 / 11, "keep": 0.25})
    assert (options["heads"], options["rope_pairs"], options["keep"]) == (22, "tiled", 0.25)
    biases = {name for name in state if name.endswith("qkv.bias")}
    file = WeightFile(path=Path("g.pth"), content={"module": {k: v for k, v in state.items() if k not in biases}})
    assert OF_VIDEOMAE.options_in(file, {})["heads"] == 16


def test_evaluations_open_these_files_themselves(tmp_path: Path) -> None:
    theirs, x = videomae(), clips()
    theirs.save_pretrained(tmp_path)
    opened = open_model(tmp_path / "model.safetensors", overrides=["backbone.heads=2", "backbone.keep=0.5"])
    assert (opened.config.clips.num_frames, opened.config.augment.size) == (4, 12)
    assert opened.config.augment.mean == (0.485, 0.456, 0.406)
    assert isinstance(opened.backbone, ViT) and opened.backbone.options.keep == 0.5
    with torch.inference_mode():
        assert same(opened.backbone(x), theirs(x.transpose(1, 2)).last_hidden_state.mean(dim=1))
    with pytest.raises(ConfigError, match=r"its network has backbone\.patch=4; got backbone\.patch=16"):
        open_model(tmp_path / "model.safetensors", overrides=["backbone.patch=16"])
    with pytest.raises(ConfigError, match=r"backbone\.name='slow_r50': the weights belong to backbone\.name='vit'"):
        open_model(tmp_path / "model.safetensors", overrides=["backbone.name=slow_r50"])


def test_normalization_is_what_lies_beside_the_weights(tmp_path: Path) -> None:
    vjepa2().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    _, done = imported(tmp_path / "model.safetensors")
    assert (done.card["input"]["mean"], done.card["input"]["std"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    (tmp_path / "video_preprocessor_config.json").write_text('{"image_mean": "half"}')
    with pytest.raises(ConfigError, match="the input of the network: mean='half'"):
        imported(tmp_path / "model.safetensors")


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    """A file of transformers' VideoMAE with other entries."""

    def write(folder: Path) -> Path:
        state = videomae().state_dict()
        change(state)
        save_file(state, folder / "x.safetensors")
        return folder / "x.safetensors"

    return write


def with_config(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(text)
        return changed(dict)(folder)

    return write


def cut(folder: Path) -> Path:
    path = changed(dict)(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def with_code(folder: Path) -> Path:
    torch.save({"model": as_videomae(videomae(), ""), "args": Path("x")}, folder / "x.pth")
    return folder / "x.pth"


def of_timm(**options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(timm_vit(**options).state_dict(), folder / "x.pth")
        return folder / "x.pth"

    return write


FIRST = "encoder.layer.0.attention.attention.query.weight"
SAID: list[tuple[Callable[[Path], Path], list[str], str]] = [
    (changed(dict), [], "does not say how many attention heads its network of width 24 and depth 2 has"),
    (changed(dict), ["size=b"], r"its network has backbone.width=24, backbone.depth=2; got backbone.width=768"),
    (changed(dict), ["heads=2", "position=rope"], "has backbone.position=sincos1d; got backbone.position=rope"),
    (changed(dict), ["heads=2", "tubelet=1", "norm_eps=1e-6"], "has backbone.tubelet=2, backbone.norm_eps=1e-12; got"),
    (changed(dict), ["heads=2", "norm=tokens"], "has backbone.norm=none; got backbone.norm=tokens"),
    (changed(dict), ["heads=2", "pool=cls"], "its network has no class token"),
    (changed(dict), ["heads=2", "droppath=0.1"], "unknown key 'droppath'"),
    (changed(dict), ["heads=5"], "backbone.width=24 must be even and a multiple of backbone.heads=5"),
    (changed(lambda state: state.pop(FIRST)), ["heads=2"], f"another network; entries 1 missing: {FIRST}"),
    (changed(lambda state: state.update({FIRST: torch.zeros(24, 20)})), ["heads=2"], "1 of another shape: encoder"),
    (changed(lambda state: state.update(more=torch.zeros(1))), ["heads=2"], "1 not known: more"),
    (changed(lambda state: state.update({FIRST: torch.full((24, 24), torch.nan)})), ["heads=2"], "are not finite"),
    (with_config('{"model_type": "vit"}'), [], "config.json: model_type='vit' is not that of x.safetensors"),
    (with_config('{"model_type": "videomae", "hidden_size": 768}'), [], "hidden_size=768 is not that of"),
    (with_config('{"model_type": "videomae", "num_attention_heads": 2.5}'), [], "num_attention_heads=2.5 is not one"),
    (with_config('{"num_attention_heads": 4}'), ["heads=2"], "has backbone.heads=4; got backbone.heads=2"),
    (with_config('{"num_attention_heads": 4, "hidden_act": "relu"}'), [], "hidden_act='relu' is not the activation"),
    (with_config("{"), [], "config.json"),
    (cut, ["heads=2"], "x.safetensors: .* lies outside the file, which was cut short"),
    (with_code, ["heads=2"], r"refused: to read it, code pickled in it would have to run \(pathlib"),
    (of_timm(reg_tokens=2), ["heads=2"], r"positions|not known: reg_token"),
    (of_timm(qk_norm=True), ["heads=2"], "not known: blocks.0.attn.q_norm.weight"),
    (of_timm(), ["heads=2", "position_side=14"], "has backbone.position_side=3; got backbone.position_side=14"),
]


@pytest.mark.parametrize(("write", "settings", "said"), SAID, ids=range(len(SAID)))
def test_what_does_not_fit_is_one_line(
    write: Callable[[Path], Path], settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for setting in settings for part in ("--set", f"backbone.{setting}")]
    assert run("import", write(tmp_path), tmp_path / "out.safetensors", *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0].strip() for line in lines] in (["rhofast"], ["rhofast", "hint"])
    assert re.search(said, lines[0]), lines
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_of_another_family_are_named(tmp_path: Path) -> None:
    file = changed(dict)(tmp_path)
    with pytest.raises(ConfigError, match=r"which backbone 'slow_r50' needs .it is a VideoMAE model of transformers"):
        import_weights(file, tmp_path / "out", backbone="slow_r50")
    save_file({"vision_model.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(ConfigError, match=r"which backbone 'vit' needs .it holds vision_model.x"):
        import_weights(tmp_path / "clip.safetensors", tmp_path / "out", backbone="vit")
    with pytest.raises(ConfigError, match=r"of an unknown family, whose file name does not say .*vision_model"):
        import_weights(tmp_path / "clip.safetensors", tmp_path / "out")
    torch.save({"model_state": {}}, tmp_path / "x.pyth")
    with pytest.raises(ConfigError, match=r"does not say which backbone it holds .name it: --backbone NAME"):
        import_weights(tmp_path / "x.pyth", tmp_path / "out")


def spoil(state: dict[str, Any], config: dict[str, Any], draw: random.Random) -> None:
    """Change some entries, at random, as damaged and hostile files have them."""
    shapes = [(), (0,), (1,), (24,), (2, 3, 4), (24, 3, 2, 4, 4), (24, 0, 2, 4, 4), (5000, 3, 1, 1, 1), (1, 0, 24)]
    for _ in range(draw.randrange(4)):
        name = draw.choice([key for key in state if draw.random() < 0.1 or "patch" in key or "pos_embed" in key])
        kind = draw.randrange(4)
        if kind == 0:
            del state[name]
        elif kind == 1:
            state[re.sub(r"\d+", str(draw.choice([0, 7, 10**12])), name)] = state[name]
        else:
            dtype = draw.choice([torch.float32, torch.float32, torch.int64])
            state[name + draw.choice(["", "", "x"])] = torch.zeros(draw.choice(shapes), dtype=dtype)
    for _ in range(draw.randrange(3) if config else 0):
        odd = [None, 0, -1, 1e9, "x", [], [1, 2], {}, True, 2.5, float("nan"), 1 << 70]
        config[draw.choice(sorted(config))] = draw.choice(odd)


def test_spoiled_files_are_one_line_each() -> None:
    """Whatever a file holds, it is read or refused in a line; nothing else is raised."""
    draw, said = random.Random(0), set()
    hf, jepa, image = videomae(), vjepa2(), timm_vit(init_values=0.1)
    of_timm_config = {"architecture": "x", "model_args": {"num_heads": 2}, "pretrained_cfg": {"mean": [0.5] * 3}}
    files = [
        ("", hf.state_dict(), hf.config.to_dict()),
        ("", jepa.state_dict(), jepa.config.to_dict()),
        ("", image.state_dict(), of_timm_config),
        ("model", as_videomae(hf, "encoder."), {}),
        ("ema_encoder", as_vjepa(jepa, "module."), {}),
    ]
    for _ in range(300):
        part, state, config = draw.choice(files)
        state, config = dict(state), dict(config)
        spoil(state, config, draw)
        file = WeightFile(path=Path("x.pt"), content={part: state} if part else state, config=config)
        try:
            known = format_for(file, "vit")
            options = options_for(file, known, {} if config else HEADS)
            load_into(build_backbone("vit", options), name="vit", known=known, file=file)
            parse_section(InputCard, known.expected_input("vit", file), where="x.pt")
        except ConfigError as error:
            assert "\n" not in str(error)
            said.add(re.sub(r"\d+", "N", str(error)))
    assert len(said) > 50
