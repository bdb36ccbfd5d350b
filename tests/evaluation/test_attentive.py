"""Attentive probes: the layers are torch's, a probe finds what a mean hides, and many at once are each alone."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rhofast.errors import ConfigError
from rhofast.evaluation.attentive import AttentiveProbe, AttentiveProbes
from rhofast.evaluation.classifier import GlobalDropout
from rhofast.evaluation.feature_stream import joined_order
from rhofast.models.backbones import build_backbone

WIDTH, HEADS = 32, 4


def probe(classes: int = 3) -> AttentiveProbe:
    torch.manual_seed(0)
    return AttentiveProbe(WIDTH, HEADS, classes, GlobalDropout(0.0))


def by_torch(network: AttentiveProbe, tokens: Tensor) -> Tensor:
    """The same probe of torch's own layers, with the same weights."""
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=tokens.dtype
        )
        named = {"self_attn.in_proj_": block.attn.qkv, "self_attn.out_proj.": block.attn.proj}
        named |= {"linear1.": block.mlp.fc1, "linear2.": block.mlp.fc2, "norm1.": block.norm1, "norm2.": block.norm2}
        layer.load_state_dict(
            {f"{name}{key}": value for name, part in named.items() for key, value in part.state_dict().items()}
        )
        tokens = layer(tokens)
    attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=tokens.dtype)
    joined = {
        f"in_proj_{key}": torch.cat([getattr(network.q, key), getattr(network.kv, key)]) for key in ("weight", "bias")
    }
    attend.load_state_dict({**joined, **{f"out_proj.{key}": value for key, value in network.proj.state_dict().items()}})
    query, around = network.query.expand(len(tokens), -1, -1), network.norm1(tokens)
    pooled = query + attend(query, around, around, need_weights=False)[0]
    pooled = pooled + network.mlp(network.norm2(pooled))
    return network.head(pooled[:, 0])


def test_a_probe_is_three_encoder_layers_and_a_query_that_attends() -> None:
    network = probe().double()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))  # no bias is 0, no norm is 1
        tokens = torch.randn(5, 7, WIDTH, dtype=torch.float64)
        assert len(network.blocks) == 3
        assert torch.allclose(network(tokens), by_torch(network, tokens), atol=1e-12)
        shuffled = tokens[:, torch.randperm(7)]
        assert torch.allclose(network(shuffled), network(tokens), atol=1e-12)  # positions are the backbone's affair


def test_matrices_alone_are_decayed() -> None:
    network = probe()
    kept = network.no_weight_decay()
    assert {name for name, _ in network.named_parameters()} - kept == {
        name for name, value in network.named_parameters() if value.ndim == 2
    }
    assert "query" in kept and "norm1.weight" in kept and "head.bias" in kept


class Needles(nn.Module):
    """Tokens of noise, one of which is long and has the class in its sign; their mean is the same for both classes."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def needles(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 12, WIDTH, generator=generator)
    label = torch.randint(2, (count,), generator=generator)
    place = torch.randint(12, (count,), generator=generator)
    tokens[torch.arange(count), place, 0] = 6.0  # says: look here
    tokens[torch.arange(count), place, 1] = 4.0 * (2 * label - 1)
    tokens[:, :, 1] -= tokens[:, :, 1].mean(dim=1, keepdim=True)
    return tokens.transpose(1, 2).unflatten(2, (3, 2, 2)), label


def test_a_probe_finds_what_the_mean_over_tokens_hides() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    probes = AttentiveProbes(Needles(), "needles", 2, count=2, heads=HEADS, dropout=0.0)
    first, second = (probes.probes[number].parameters() for number in range(2))
    optimizer = torch.optim.AdamW([{"params": list(first), "lr": 2e-3}, {"params": list(second), "lr": 1e-9}])
    clips, label = needles(512, seed=0)
    assert clips.flatten(2).mean(dim=2)[:, 1].abs().max() < 1e-5
    probes.train()
    assert not probes.backbone.training
    for step in range(80):
        rows = slice(64 * (step % 8), 64 * (step % 8) + 64)
        logits = probes(clips[rows])
        assert logits.shape == (64, 2, 2)
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(each, label[rows]) for each in logits.unbind(1)).backward()
        optimizer.step()
    probes.eval()
    new, truth = needles(256, seed=1)
    with torch.no_grad():
        every = probes(new).view(256, 2, 2)
        probes.chosen = 1
        assert torch.equal(probes(new), every[:, 1])
    assert torch.allclose(every.sum(dim=2), torch.ones(256, 2))
    accuracy = (every.argmax(dim=2) == truth[:, None]).float().mean(dim=0)
    assert accuracy[0] > 0.95 and accuracy[1] < 0.7


def test_all_probes_begin_alike_and_one_that_diverged_scores_nothing() -> None:
    probes = AttentiveProbes(Needles(), "needles", 4, count=3, heads=HEADS, dropout=0.3)
    weights = [copy.deepcopy(each.state_dict()) for each in probes.probes]
    assert all(torch.equal(one[name], weights[0][name]) for one in weights for name in one)
    assert sum(value.numel() for value in probes.parameters()) == 1 + 3 * sum(
        value.numel() for value in probe(4).parameters()
    )
    with torch.no_grad():
        next(probes.probes[1].parameters()).fill_(float("nan"))
        scores = probes.eval()(needles(2, 0)[0]).view(2, 3, 4)
    assert scores.isfinite().all() and not scores[:, 1].any() and torch.allclose(scores[:, 2].sum(dim=1), torch.ones(2))
    probes.train().dropout.begin(seed=1, rows=slice(0, 2), batch=2)
    one, other, _ = probes(torch.zeros(2, WIDTH, 1, 2, 2)).unbind(1)
    assert other.isnan().all() and one.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"), [("slow_r18", {"width": 4}), ("vit", {"width": 48, "depth": 2, "heads": 3})]
)
def test_maps_and_tokens_of_the_package_s_networks_are_read(name: str, options: dict[str, int]) -> None:
    backbone = build_backbone(name, options)
    probes = AttentiveProbes(backbone, name, 5, count=2, heads=16, dropout=0.0)
    clips = torch.randn(2, 3, 4, 32, 32)
    logits = probes.train()(clips)
    assert logits.shape == (2, 2, 5)
    logits.sum().backward()
    assert all(value.grad is None for value in backbone.parameters())
    assert all(value.grad is not None for value in probes.probes.parameters())


def test_a_network_without_tokens_or_with_other_ones_is_refused() -> None:
    build = {"num_classes": 2, "count": 1, "dropout": 0.0}
    with pytest.raises(ConfigError, match=r"backbone\.name=x: it gives no tokens for an attentive probe"):
        AttentiveProbes(nn.Identity(), "x", heads=1, **build)
    with pytest.raises(ConfigError, match=r"eval\.probe_heads=12 does not divide the 32 numbers") as error:
        AttentiveProbes(Needles(), "needles", heads=12, **build)
    assert error.value.hint == "--set eval.probe_heads=8"
    probes = AttentiveProbes(Needles(), "needles", heads=4, **build)
    with pytest.raises(ConfigError, match=r"its tokens are \[2, 4, 16\], not \[2, L, 32\]"):
        probes(torch.zeros(2, 16, 1, 2, 2))


def test_joined_clips_are_read_as_one_sequence_and_the_backbone_takes_few_at_once() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit", {"width": 48, "depth": 2, "heads": 3}).eval()
    seen = []
    plain_tokens = backbone.tokens
    backbone.tokens = lambda x: seen.append(len(x)) or plain_tokens(x)  # type: ignore[assignment, func-returns-value]
    probes = AttentiveProbes(backbone, "vit", 5, count=2, heads=4, dropout=0.0, joined=3, at_once=4)
    clips = torch.randn(6, 3, 4, 32, 32)
    probes.eval()
    with torch.no_grad():
        found = probes(clips).view(2, 2, 5)
        assert seen == [4, 2]
        for video in range(2):
            parts = [plain_tokens(clips[number : number + 1])[0] for number in range(3 * video, 3 * video + 3)]
            sequence = torch.cat(parts)[None]  # one video's tokens, one after another
            for number, each in enumerate(probes.probes):
                expected = each(sequence)[0].softmax(dim=0)
                assert torch.allclose(found[video, number], expected, atol=1e-6)
        turned = probes(clips[[2, 0, 1, 4, 5, 3]]).view(2, 2, 5)
    assert torch.allclose(turned, found, atol=1e-6)  # joined clips have no order
    assert probes.train()(clips).shape == (2, 2, 5)


def test_activations_that_are_computed_again_give_the_same_gradients() -> None:
    clips, label = needles(6, seed=0)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        probes = AttentiveProbes(
            Needles(), "needles", 2, count=2, heads=HEADS, dropout=0.4, joined=2, recompute=recompute
        )
        probes.train().dropout.begin(seed=1, rows=slice(0, 3), batch=3)
        logits = probes(clips)
        sum(nn.functional.cross_entropy(each, label[::2]) for each in logits.unbind(1)).backward()
        gradients.append([value.grad for value in probes.probes.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(("views", "crops", "joined"), [(8, 3, 8), (8, 3, 4), (2, 1, 2), (6, 2, 1)])
def test_joined_clips_have_one_crop_and_are_spread_over_the_video(views: int, crops: int, joined: int) -> None:
    order = joined_order(views, crops, joined)
    assert sorted(order.tolist()) == list(range(views * crops))
    for group in order.reshape(-1, joined):
        assert len(set((group % crops).tolist())) == 1
        assert np.diff(group // crops).tolist() == [views // joined] * (joined - 1)
