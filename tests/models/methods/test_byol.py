"""rho-BYOL against the reference implementation's numbers, and its invariants."""

import pytest
import torch
from torch import Tensor

from rhofast.config.schema import OptimConfig
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, SlowConfig
from rhofast.models.batch_norm import SyncBatchNorm
from rhofast.models.methods import build_method
from rhofast.models.methods.byol import BYOL, BYOLConfig
from rhofast.models.methods.momentum import ema_momentum
from tests.helpers.reference import follow, forward_backward, gradients, method_keys, needs_vectors, part, tensors

SMALL = {"hidden": 32, "out": 16, "batch_norm": "local"}


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype) -> None:
    method = BYOL(Slow(SlowConfig(depth=50, width=4)), BYOLConfig.model_validate(SMALL)).to(dtype)
    table = method_keys(method)
    table |= {
        f"backbone.head.predictors.0.projection.{key}": f"predictor.{key}" for key in method.predictor.state_dict()
    }
    before = tensors("byol_state_before", dtype)
    missing = method.load_state_dict({here: before[official] for official, here in table.items()}, strict=False)
    assert missing.missing_keys == ["momentum"]
    for number, facts, after in follow("byol", method, table, rho, OptimConfig()):
        assert method._momentum == pytest.approx(facts["ema_momentum_held_after"], abs=1e-12)
        if number == 0:
            for official, value in part(after, "hist_after0/").items():
                mine = method.state_dict()[table[f"backbone_hist.{official}"]]
                assert torch.allclose(mine, value, rtol=1e-6, atol=1e-6)


def small(seed: int = 0, **options: object) -> BYOL:
    torch.manual_seed(seed)
    backbone = build_backbone("slow_r18", {"width": 4})
    method = build_method("byol", {**SMALL, **options}, backbone).double()
    assert isinstance(method, BYOL)
    return method


def clips(rho: int) -> Tensor:
    return torch.randn(3, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


@pytest.mark.parametrize("rho", [2, 3])
def test_the_mean_over_clips_is_the_sum_divided_by_rho(rho: int) -> None:
    total, mean = small(loss="sum"), small(loss="mean")
    losses = forward_backward(total, clips(rho), 0.0), forward_backward(mean, clips(rho), 0.0)
    assert [value / rho for value in losses[0]] == pytest.approx(losses[1])
    for name, gradient in gradients(mean).items():
        assert torch.allclose(gradient * rho, gradients(total)[name])


def test_a_perfect_prediction_has_the_lowest_loss() -> None:
    """-cos / T is at least -1 / T, and two equal networks with an identity predictor reach it on equal clips."""
    method = small(ema_base=0.0)
    method.predictor = torch.nn.Identity()  # type: ignore[assignment]
    same = clips(2)[:, :1].repeat(1, 2, 1, 1, 1, 1)
    method.load_state_dict(method.state_dict())
    assert forward_backward(method, same, 0.0) == pytest.approx([-2.0, -2.0])


def test_keys_get_no_gradient_and_all_trained_parameters_do() -> None:
    method = small()
    forward_backward(method, clips(2), 60)
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("momentum_"), name


def test_the_momentum_of_a_step_is_that_of_the_step_before() -> None:
    method = small()
    before = [p.clone() for p in method.momentum_backbone.parameters()]
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    forward_backward(method, clips(2), 100)
    after = list(method.momentum_backbone.parameters())
    assert torch.allclose(after[0] - before[0], torch.full_like(after[0], 1 - 0.996))
    assert float(method.get_buffer("momentum")) == ema_momentum(0.996, 0.5)


def test_the_momentum_can_be_constant() -> None:
    method = small(ema_anneal=False, ema_base=0.9)
    forward_backward(method, clips(2), 100)
    assert float(method.get_buffer("momentum")) == 0.9


def test_a_restored_method_continues_with_the_previous_momentum() -> None:
    straight = small()
    forward_backward(straight, clips(2), 140)
    restored = small(seed=1)
    restored.load_state_dict(straight.state_dict())
    for method in (straight, restored):
        method.zero_grad()
        with torch.no_grad():
            next(iter(method.backbone.parameters())).add_(1.0)
    assert forward_backward(straight, clips(2), 160) == forward_backward(restored, clips(2), 160)
    for name, gradient in gradients(straight).items():
        assert torch.equal(gradient, gradients(restored)[name])


@pytest.mark.parametrize("rho", [2, 3])
def test_joint_evaluation_is_one_backward_and_differs_by_the_statistics_of_the_keys_alone(rho: int) -> None:
    """Without batch norm in the projections and with keys in evaluation mode, it is the sum of the queries."""
    apart, joint = small(), small(sequential=False)
    for method in (apart, joint):
        method.momentum_backbone.eval()
        method.momentum_projector.eval()
    losses = forward_backward(apart, clips(rho)), forward_backward(joint, clips(rho))
    assert [len(parts) for parts in losses] == [rho, 1] and losses[1] == pytest.approx([sum(losses[0])], rel=1e-12)
    for name, gradient in gradients(joint).items():
        assert torch.allclose(gradient, gradients(apart)[name], rtol=1e-9, atol=1e-12), name
    assert forward_backward(small(sequential=False), clips(rho)) != pytest.approx([sum(losses[0])], rel=1e-6)


@pytest.mark.parametrize("rho", [2, 3, 5])
def test_it_is_the_mean_over_the_other_clips_summed_over_queries(rho: int) -> None:
    method = small()
    slots = clips(rho).unbind(dim=1)
    cosine = torch.nn.functional.cosine_similarity
    keys = [method.momentum_projector(method.momentum_backbone(slot)) for slot in slots]
    total = torch.zeros(()).double()
    for number, slot in enumerate(slots):
        query = method.predictor(method.projector(method.backbone(slot)))
        total = total - sum(cosine(query, key).mean() for other, key in enumerate(keys) if other != number) / (rho - 1)
    (total / 0.5).backward()
    expected = gradients(method)
    method.zero_grad()
    assert sum(forward_backward(method, clips(rho))) == pytest.approx(float(total.detach()) / 0.5, rel=1e-12)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-8, atol=1e-10), name


def test_the_predictor_has_a_depth_width_and_norm_of_its_own() -> None:
    method = small(predictor_layers=3, predictor_hidden=7, predictor_norm=False)
    kinds = [type(module).__name__ for module in method.predictor]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"] and method.predictor[0].out_features == 7
    assert any(isinstance(module, torch.nn.BatchNorm1d | SyncBatchNorm) for module in method.projector)
    assert forward_backward(method, clips(2))


def test_joint_evaluation_anneals_the_momentum_before_its_use() -> None:
    method = small(sequential=False)
    before = [p.clone() for p in method.momentum_backbone.parameters()]
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    forward_backward(method, clips(2), 100)
    moved = next(iter(method.momentum_backbone.parameters())) - before[0]
    assert torch.allclose(moved, torch.full_like(moved, 1 - ema_momentum(0.996, 0.5)))


def test_one_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        small().num_passes(1)


def test_an_unknown_method_or_option_is_a_config_error() -> None:
    backbone = build_backbone("slow_r18", {"width": 4})
    with pytest.raises(ConfigError, match="'byo' is not known"):
        build_method("byo", {}, backbone)
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        build_method("byol", {"hiden": 3}, backbone)
