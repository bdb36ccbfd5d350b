"""rho-MoCo v3 against its definition, written out clip by clip, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.models.methods.moco_v3 import MoCoV3, contrast_keys
from tests.helpers.reference import forward_backward, gradients


def small(**options: object) -> MoCoV3:
    torch.manual_seed(0)
    chosen = {"hidden": 16, "out": 8, **options}
    method = build_method("moco_v3", chosen, build_backbone("slow_r18", {"width": 4})).double()
    assert isinstance(method, MoCoV3)
    for p in method.momentum_backbone.parameters():  # another network than the trained one, as after some steps
        p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    return method


def clips(rho: int, batch: int = 4) -> Tensor:
    return torch.randn(batch, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def moved(method: MoCoV3, momentum: float) -> list[Tensor]:
    """The parameters of the momentum network after its update."""
    pairs = [(method.momentum_backbone, method.backbone), (method.momentum_projector, method.projector)]
    return [
        momentum * old + (1 - momentum) * new.detach()
        for average, trained in pairs
        for old, new in zip(average.parameters(), trained.parameters(), strict=True)
    ]


def plain_loss(method: MoCoV3, slots: list[Tensor], temperature: float) -> Tensor:
    """The sum over ordered pairs of clips of 2 T times the cross-entropy, a query's mean over its partners."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        keys = [F.normalize(method.momentum_projector(method.momentum_backbone(slot))) for slot in slots]
    for number, slot in enumerate(slots):
        query = F.normalize(method.predictor(method.projector(method.backbone(slot))))
        for other, key in enumerate(keys):
            if other != number:
                rows = [
                    torch.logsumexp(key @ one / temperature, dim=0) - one @ key[video] / temperature
                    for video, one in enumerate(query)
                ]
                total = total + 2 * temperature * torch.stack(rows).mean() / (len(slots) - 1)
    return total


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("output_norm", [True, False])
@pytest.mark.parametrize("rho", [2, 3, 4])
def test_it_is_the_loss_of_its_definition(rho: int, output_norm: bool, sequential: bool) -> None:
    method, mean = (
        small(output_norm=output_norm, sequential=sequential, loss=loss, temperature=0.3) for loss in ("sum", "mean")
    )
    averages = moved(method, 1 - (1 - 0.99) * (math.cos(math.pi * 20 / 200) + 1) / 2)
    losses = forward_backward(method, clips(rho), 20.0)
    assert len(losses) == method.num_passes(rho) == (rho if sequential else 1)
    found, twins = gradients(method), [*method.momentum_backbone.parameters(), *method.momentum_projector.parameters()]
    assert all(torch.allclose(new, old, rtol=1e-12) for new, old in zip(twins, averages, strict=True))
    method.zero_grad()
    total = plain_loss(method, list(clips(rho).unbind(dim=1)), 0.3)
    total.backward()
    assert sum(losses) == pytest.approx(float(total.detach()), rel=1e-10)
    expected = gradients(method)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-11), name
    assert sum(forward_backward(mean, clips(rho), 20.0)) == pytest.approx(sum(losses) / rho, rel=1e-10)


def test_chance_and_a_perfect_match_are_closed_forms() -> None:
    keys = torch.eye(5, dtype=torch.float64)[None].expand(3, 5, 5)
    chance, _ = contrast_keys(torch.full((5, 5), 5**-0.5, dtype=torch.float64), keys, 0.2)
    assert float(chance) == pytest.approx(0.4 * math.log(5))
    loss, hits = contrast_keys(keys[0], keys, 0.2)
    assert float(loss) == pytest.approx(0.4 * math.log(1 + 4 * math.exp(-5))) and float(hits) == 1
    loss, hits = contrast_keys(keys[0].roll(1, 0), keys, 0.2)
    assert float(loss) == pytest.approx(0.4 * (5 + math.log(1 + 4 * math.exp(-5)))) and float(hits) == 0


def test_the_heads_end_in_a_batch_norm_without_scale_or_not_at_all() -> None:
    method, without = small(), small(projector_norm=False, predictor_norm=False)
    for head, layers in ((method.projector, 3), (method.predictor, 2)):
        assert isinstance(head, nn.Sequential) and head[-1].weight is None
        assert [m.bias for m in head if isinstance(m, nn.Linear)] == [None] * layers
    assert not any("BatchNorm" in type(m).__name__ for m in [*without.projector, *without.predictor])


def test_collapsed_embeddings_are_seen_in_spite_of_the_batch_norm() -> None:
    """The alarm reads feature_std: near 1 where embeddings are spread, near 0 where all features are one point."""
    method = small(out=16)
    method.begin_step(TrainingProgress(step=0, epoch=0.0, epochs=1.0))
    assert 0.5 < float(method(clips(2, batch=16), 0)[1]["feature_std"]) < 1.2
    collapsed = small(out=16)
    for network in (collapsed.backbone, collapsed.momentum_backbone):
        network.register_forward_hook(lambda _, __, out: torch.ones_like(out))
    loss, metrics = collapsed(clips(2, batch=16), 0)
    assert loss.isfinite() and float(metrics["feature_std"]) < 0.1


def test_a_backbone_s_frozen_weights_stay() -> None:
    """As with `freeze_patches`: they get no gradient and are the same in both networks."""
    torch.manual_seed(0)
    backbone = build_backbone("slow_r18", {"width": 4})
    first = next(iter(backbone.parameters())).requires_grad_(requires_grad=False)
    method = build_method("moco_v3", {"hidden": 16, "out": 8}, backbone).double()
    before = first.clone()
    forward_backward(method, clips(2), 1.0, step=3)
    assert first.grad is None and torch.equal(first, before)
    assert torch.equal(next(method.get_submodule("momentum_backbone").parameters()), before)


def test_one_clip_or_one_video_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 clips"):
        small().num_passes(1)
    with pytest.raises(ValueError, match="batch_size=1 leaves no negatives"):
        small().check(2, 1)
    small().check(2, 2)
