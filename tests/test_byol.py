"""rho-BYOL against the reference implementation's numbers, and its invariants."""

import pytest
import torch
from reference import needs_vectors, numbers, official_slow, part, tensors
from torch import Tensor

from rhofast.backbones import build_backbone
from rhofast.backbones.slow import Slow, SlowOptions
from rhofast.config import OptimSection
from rhofast.errors import ConfigError
from rhofast.methods import build_method
from rhofast.methods.byol import Byol, ByolOptions
from rhofast.methods.heads import embedding_spread
from rhofast.optim import build_optimizer, ema_momentum

SMALL = {"hidden": 32, "out": 16, "batch_norm": "local"}


def key_table(method: Byol) -> dict[str, str]:
    """Official name -> name here, for all that the two share."""
    assert isinstance(method.backbone, Slow)
    table: dict[str, str] = {}
    for official, here in (("backbone.", ""), ("backbone_hist.", "key_")):
        table |= {name: f"{here}backbone.{own}" for name, own in official_slow(method.backbone, official).items()}
        table |= {
            f"{official}head.projection.projection.{key}": f"{here}projection.{key}"
            for key in method.projection.state_dict()
        }
    table |= {
        f"backbone.head.predictors.0.projection.{key}": f"predictor.{key}" for key in method.predictor.state_dict()
    }
    return table


def step(method: Byol, clips: Tensor, progress: float) -> list[float]:
    losses = []
    for number in range(method.num_parts(clips.shape[1])):
        loss, _ = method(clips, number, progress)
        loss.backward()
        losses.append(float(loss.detach()))
    return losses


@needs_vectors
@pytest.mark.parametrize(("dtype", "loss_at", "norm_at"), [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-3, 2e-3)])
@pytest.mark.parametrize("rho", [2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype, loss_at: float, norm_at: float) -> None:
    facts = numbers("methods")["byol"]
    if f"rho{rho}" not in facts:
        pytest.skip(f"no rho={rho} among the vectors")
    method = Byol(Slow(SlowOptions(depth=50, width=4)), ByolOptions.model_validate(SMALL)).to(dtype)
    before, after = tensors("byol_state_before", dtype), tensors(f"byol_rho{rho}", dtype)
    table = key_table(method)
    missing = method.load_state_dict({here: before[official] for official, here in table.items()}, strict=False)
    assert missing.missing_keys == ["momentum"]
    clips = torch.stack([tensors("method_clips", dtype)[f"clip{number}"] for number in range(rho)], dim=1)
    names = {here: official for official, here in table.items()}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(method, OptimSection())
    for number, facts_of_step in enumerate(facts[f"rho{rho}"]["iters"]):
        optimizer.zero_grad()
        losses = step(method, clips, facts_of_step["epoch_exact"] / 200)
        assert losses == pytest.approx(facts_of_step["per_call_losses"], abs=loss_at)
        for name, p in trained.items():
            expected = facts_of_step["grad_norms"][names[name]]
            if expected > 1e-6 and (number == 0 or dtype == torch.float64):
                assert float(p.grad.norm()) == pytest.approx(expected, rel=norm_at), (number, name)
        assert method._momentum == pytest.approx(facts_of_step["ema_momentum_held_after"], abs=1e-12)
        if number == 0 and dtype == torch.float64:
            for official, gradient in part(after, "grad0/").items():
                if facts_of_step["grad_norms"].get(official, 0) > 1e-6:
                    mine = dict(method.named_parameters())[table[official]].grad
                    assert torch.allclose(mine, gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
            for official, value in part(after, "hist_after0/").items():
                mine = method.state_dict()[table[f"backbone_hist.{official}"]]
                assert torch.allclose(mine, value, rtol=1e-6, atol=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = facts_of_step["lr"]
        optimizer.step()
    if dtype == torch.float32:  # a ReLU that flips by rounding moves single entries; losses and norms were compared
        return
    state = method.state_dict()
    for official, value in part(after, "final/").items():
        if official in table:
            assert torch.allclose(state[table[official]], value, rtol=1e-6, atol=1e-6), official


def small(seed: int = 0, **options: object) -> Byol:
    torch.manual_seed(seed)
    backbone = build_backbone("slow_r18", {"width": 4})
    method = build_method("byol", {**SMALL, **options}, backbone).double()
    assert isinstance(method, Byol)
    return method


def clips(rho: int) -> Tensor:
    return torch.randn(3, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def gradients(method: Byol) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rho", [2, 3])
def test_the_mean_over_clips_is_the_sum_divided_by_rho(rho: int) -> None:
    total, mean = small(loss="sum"), small(loss="mean")
    losses = step(total, clips(rho), 0.0), step(mean, clips(rho), 0.0)
    assert [value / rho for value in losses[0]] == pytest.approx(losses[1])
    for name, gradient in gradients(mean).items():
        assert torch.allclose(gradient * rho, gradients(total)[name])


def test_a_perfect_prediction_has_the_lowest_loss() -> None:
    """-cos / T is at least -1 / T, and two equal networks with an identity predictor reach it on equal clips."""
    method = small(ema_base=0.0)
    method.predictor = torch.nn.Identity()  # type: ignore[assignment]
    same = clips(2)[:, :1].repeat(1, 2, 1, 1, 1, 1)
    method.load_state_dict(method.state_dict())
    assert step(method, same, 0.0) == pytest.approx([-2.0, -2.0])


def test_keys_get_no_gradient_and_all_trained_parameters_do() -> None:
    method = small()
    step(method, clips(2), 0.3)
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("key_"), name


def test_the_momentum_of_a_step_is_that_of_the_step_before() -> None:
    method = small()
    before = [p.clone() for p in method.key_backbone.parameters()]
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    step(method, clips(2), 0.5)
    after = list(method.key_backbone.parameters())
    assert torch.allclose(after[0] - before[0], torch.full_like(after[0], 1 - 0.996))
    assert float(method.get_buffer("momentum")) == ema_momentum(0.996, 0.5)


def test_a_restored_method_continues_with_the_held_momentum() -> None:
    straight = small()
    step(straight, clips(2), 0.7)
    restored = small(seed=1)
    restored.load_state_dict(straight.state_dict())
    for method in (straight, restored):
        method.zero_grad()
        with torch.no_grad():
            next(iter(method.backbone.parameters())).add_(1.0)
    assert step(straight, clips(2), 0.8) == step(restored, clips(2), 0.8)
    for name, gradient in gradients(straight).items():
        assert torch.equal(gradient, gradients(restored)[name])


def test_joint_evaluation_takes_one_pass_over_two_clips() -> None:
    method = small(sequential=False)
    assert method.num_parts(2) == 1
    (loss,) = step(method, clips(2), 0.0)
    assert -4 <= loss <= 4
    with pytest.raises(ValueError, match="exactly 2"):
        method.num_parts(3)


def test_one_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        small().num_parts(1)


def test_the_spread_of_collapsed_embeddings_is_near_zero() -> None:
    torch.manual_seed(0)
    assert float(embedding_spread(torch.ones(16, 64))) == pytest.approx(0, abs=1e-6)
    assert float(embedding_spread(torch.randn(512, 64))) == pytest.approx(1, abs=0.05)


def test_an_unknown_method_or_option_is_a_config_error() -> None:
    backbone = build_backbone("slow_r18", {"width": 4})
    with pytest.raises(ConfigError, match="'byo' is not known"):
        build_method("byo", {}, backbone)
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        build_method("byol", {"hiden": 3}, backbone)
