"""rho-LeJEPA against lightly's loss, closed forms, and the address of its random directions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.lejepa import LeJEPA, random_directions, sigreg
from rhofast.models.methods.method import TrainingProgress
from tests.helpers.reference import forward_backward, gradients


def small(**options: object) -> LeJEPA:
    torch.manual_seed(0)
    chosen = {"hidden": 16, "out": 8, "directions": 64, **options}
    method = build_method("lejepa", chosen, build_backbone("slow_r18", {"width": 4})).double()
    assert isinstance(method, LeJEPA)
    return method


def clips(rho: int, batch: int = 4) -> Tensor:
    return torch.randn(batch, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def embeddings(rho: int, videos: int, dimensions: int) -> Tensor:
    return torch.randn(rho, videos, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def lightly_loss(directions: Tensor, **options: Any) -> Any:
    """lightly's loss with our directions, in double precision."""
    lejepa = pytest.importorskip("lightly.loss.lejepa_loss")
    loss = lejepa.LeJEPALoss(**options).double()
    steps = torch.linspace(0, options["sigreg_t_max"], options["sigreg_knots"], dtype=torch.float64)
    spacing = options["sigreg_t_max"] / (options["sigreg_knots"] - 1)
    ends = torch.ones_like(steps).index_fill_(0, torch.tensor([0, len(steps) - 1]), 0.5)
    loss.sigreg.t, loss.sigreg.phi = steps, torch.exp(-steps.square() / 2)  # its tables are float32
    loss.sigreg.weights = 2 * spacing * ends * loss.sigreg.phi
    loss.sigreg._generate_unit_vectors = lambda *_: directions
    return loss


@pytest.mark.parametrize("rho", [2, 3, 4])
@pytest.mark.parametrize(("weight", "knots", "limit"), [(0.05, 17, 3.0), (0.5, 9, 4.0)])
def test_loss_and_gradients_are_those_of_lightly(rho: int, weight: float, knots: int, limit: float) -> None:
    method = small(sigreg_weight=weight, knots=knots, limit=limit)
    losses = forward_backward(method, clips(rho), step=5)
    found = gradients(method)
    method.zero_grad()
    z = torch.stack([method.projector(method.backbone(clip)) for clip in clips(rho).unbind(dim=1)])
    directions = random_directions(8, 64, seed=0, step=5).double()
    oracle = lightly_loss(directions, lambda_param=weight, sigreg_knots=knots, sigreg_t_max=limit)
    expected = oracle(local_proj=z, global_proj=z)  # twice the same: all means are those of all clips being global
    expected.backward()
    assert losses == pytest.approx([float(expected.detach())], rel=1e-10)
    theirs = gradients(method)
    assert found.keys() == theirs.keys() == {name for name, _ in method.named_parameters()}
    for name, gradient in theirs.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-11), name


def test_sigreg_of_one_point_is_a_closed_form() -> None:
    """At zero, cos is 1 and sin is 0, so that N times the integral of (1 - e^(-t^2/2))^2 e^(-t^2/2) is left."""
    videos, directions = 6, random_directions(4, 32, seed=1, step=2).double()
    found = float(sigreg(torch.zeros(3, videos, 4).double(), directions, knots=2001, limit=12.0))
    integral = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    assert found == pytest.approx(videos * integral, rel=1e-6)


def test_a_gaussian_is_near_its_expectation_and_everything_else_above() -> None:
    directions = random_directions(16, 256, seed=0, step=0).double()

    def measure(z: Tensor) -> float:
        return float(sigreg(z, directions, knots=17, limit=3.0))

    z = embeddings(2, 4096, 16)
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # of N * error(t), which is 1 - e^(-t^2)
    assert measure(z) == pytest.approx(expected, rel=0.15)
    flat = z.clone()
    flat[..., 8:] = 0
    for other in (2 * z, z + 0.5, z / 2, flat, z[..., :1].expand_as(z), z.sign() * 1.2):
        assert measure(other) > 4 * expected


def test_the_mean_of_a_video_s_clips_is_not_detached() -> None:
    """With the mean held fixed, the gradient of two clips would be the same: so three clips, whose mean moves."""
    method = small(sigreg_weight=0.0)
    [loss] = forward_backward(method, clips(3))
    z = torch.stack([method.projector(method.backbone(clip)) for clip in clips(3).unbind(dim=1)]).detach()
    z.requires_grad_()
    pairs = sum((z[a] - z[b]).square().sum(dim=-1) for a in range(3) for b in range(a))  # the same, without a mean
    assert isinstance(pairs, Tensor)
    expected = pairs.sum() / 9 / z[0].numel()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)


def test_directions_are_a_function_of_seed_and_step_alone() -> None:
    first = random_directions(8, 64, seed=3, step=7)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert torch.equal(random_directions(8, 64, seed=3, step=7), first)
    assert torch.equal(torch.get_rng_state(), state)  # the generator of dropout and of masks is not touched
    assert torch.allclose(first.norm(dim=0), torch.ones(64))
    others = [random_directions(8, 64, seed=seed, step=step) for seed, step in ((3, 8), (4, 7), (7, 3), (0, 0))]
    assert not any(torch.equal(first, other) for other in others)
    random_directions(8, 2, seed=2**63 - 1, step=10**9)  # the largest seed of a config


def test_a_step_s_loss_depends_on_seed_and_step_and_not_on_what_came_before() -> None:
    def loss(method: LeJEPA, step: int, seed: int) -> float:
        method.begin_step(TrainingProgress(step=step, epoch=0.0, epochs=1.0, seed=seed))
        return float(method(clips(2), 0)[0].detach())

    used, resumed = small(directions=4), small(directions=4)
    seen = [loss(used, step, 5) for step in range(4)]
    assert len(set(seen)) == 4
    assert loss(resumed, 3, 5) == seen[3] and loss(resumed, 3, 6) != seen[3]


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_collapsed_embeddings_are_seen(level: float) -> None:
    """Embeddings that shrink to zero may point everywhere; the alarm must see both kinds of collapse."""
    healthy, zero, point = small(), small(), small()
    zero.projector.register_forward_hook(lambda _, __, out: level * out)
    point.projector.register_forward_hook(lambda _, __, out: 1 + level * out)
    assert float(healthy(clips(2, batch=16), 0)[1]["feature_std"]) > 0.3
    for collapsed in (zero, point):
        loss, metrics = collapsed(clips(2, batch=16), 0)
        assert float(metrics["feature_std"]) < 0.1 and loss.isfinite()
        assert float(metrics["sigreg_loss"]) > 4 and float(metrics["invariance_loss"]) < 1e-4


def test_the_loss_is_in_float32_under_autocast() -> None:
    method = small().float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = method(clips(2).float(), 0)
    assert {loss.dtype, *(value.dtype for value in metrics.values())} == {torch.float32}


def test_one_clip_or_one_video_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 clips"):
        small().num_passes(1)
    with pytest.raises(ValueError, match="batch_size=1 has no distribution"):
        small().check(2, 1)
    assert small().num_passes(4) == 1
