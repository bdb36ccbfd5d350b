"""Optimizers and schedules against the reference implementation and torch's own."""

import math

import pytest
import torch
from torch import nn

from rhofast.config.schema import OptimConfig
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.models.methods.momentum import ema_momentum, update_ema
from rhofast.training.optim import LARS, build_optimizer, learning_rate
from tests.helpers.reference import needs_vectors, numbers, part, tensors


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["lars", "lars_wd1e-2", "sgd"])
def test_three_steps_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    vectors, facts, tolerance = (
        tensors("optimizer", dtype),
        numbers("optimizer"),
        1e-6 if dtype == torch.float64 else 1e-5,
    )
    params = {key: nn.Parameter(value.clone()) for key, value in part(vectors, "before/").items()}
    norms = set(facts["bn_group"])
    adapt = name != "sgd"
    groups = [
        {"params": [params[key] for key in params if key in norms], "weight_decay": 0.0, "adapt": False},
        {
            "params": [params[key] for key in params if key not in norms],
            "weight_decay": facts["weight_decay"][name],
            "adapt": adapt,
        },
    ]
    optimizer = LARS(groups, lr=0.0)
    for step, rate in enumerate(facts["lrs"]):
        for key, gradient in part(vectors, f"grad{step}/").items():
            params[key].grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        for key, expected in part(vectors, f"{name}_after{step}/").items():
            assert torch.allclose(params[key], expected, rtol=tolerance, atol=tolerance), (key, step)


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "decay"), [("lars", 1e-6), ("lars", 1e-2), ("sgd", 1e-4)])
def test_a_section_builds_the_reference_s_optimizer(name: str, decay: float, dtype: torch.dtype) -> None:
    """The same three steps through `build_optimizer`, which has to find the batch norm by itself."""
    vectors, facts = tensors("optimizer", dtype), numbers("optimizer")
    results = {("lars", 1e-6): "lars", ("lars", 1e-2): "lars_wd1e-2", ("sgd", 1e-4): "sgd"}[name, decay]
    layers: dict[str, nn.Module] = {}
    own: dict[str, nn.Parameter] = {}
    for key, value in part(vectors, "before/").items():
        owner, kind = key.rsplit(".", 1)
        layer = layers.setdefault(owner, nn.BatchNorm1d(1) if key in facts["bn_group"] else nn.Module())
        own[key] = nn.Parameter(value.clone())
        layer.register_parameter(kind, own[key])
    model = nn.ModuleList(layers.values())
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=decay))  # type: ignore[arg-type]
    within = 1e-6 if dtype == torch.float64 else 1e-5
    for step, rate in enumerate(facts["lrs"]):
        for key, gradient in part(vectors, f"grad{step}/").items():
            own[key].grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        for key, expected in part(vectors, f"{results}_after{step}/").items():
            assert torch.allclose(own[key], expected, rtol=within, atol=within), (key, step)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_adaptation_it_is_torch_s_sgd(nesterov: bool) -> None:
    ours, theirs = tiny(), tiny()
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}
    optimizers = [
        LARS(ours.parameters(), 0.1, adapt=False, **options),
        torch.optim.SGD(theirs.parameters(), 0.1, **options),
    ]
    for step in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_batch_norm_has_its_own_group_without_decay(name: str) -> None:
    model = tiny()
    model[3].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    norms, others = optimizer.param_groups
    assert [id(p) for p in norms["params"]] == [id(p) for p in model[1].parameters()]
    assert [id(p) for p in others["params"]] == [id(p) for p in model[0].parameters()]
    assert (norms["weight_decay"], others["weight_decay"]) == (0.0, 0.3)


STEPS = {
    "SSv2": {"schedule": "steps", "decay_epochs": (14.0, 18.0)},
    "ava": {"schedule": "steps", "decay_epochs": (16.0, 24.0, 28.0)},
}


@needs_vectors
def test_rates_are_the_released_ones() -> None:
    seen = 0
    for name, case in numbers("schedules").items():
        if "NUM_SHARDS" not in name:
            continue
        nodes = int(name.split("=")[1])
        section = OptimConfig(
            base_lr=case["base_lr"] / nodes,
            warmup_epochs=case["warmup_epochs"],
            warmup_lr=case["warmup_start_lr"] / nodes,
            **next((steps for part, steps in STEPS.items() if part in name), {}),
        )
        for epoch, expected in zip(case["epochs"], case["lr"], strict=True):
            rate = learning_rate(section, 64 * nodes, epoch, case["max_epoch"])
            assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15), (name, epoch)
            seen += 1
    assert seen > 300


@needs_vectors
@pytest.mark.parametrize("name", ["moco", "byol"])
def test_momenta_are_the_released_ones(name: str) -> None:
    case = numbers("schedules")[f"ema_momentum {name}"]
    for epoch, expected in zip(case["epochs"], case["momentum"], strict=True):
        assert ema_momentum(case["base"], epoch / case["max_epoch"]) == pytest.approx(expected, abs=1e-12)


def test_steps_and_the_epochs_they_are_at_go_together() -> None:
    for values in ({"schedule": "steps"}, {"decay_epochs": [3.0]}):
        with pytest.raises(ConfigError, match=r"does not go with optim.decay_epochs"):
            parse_section(OptimConfig, values, where="optim")
    section = parse_section(OptimConfig, {"schedule": "steps", "decay_epochs": [3, 5.5], "warmup_epochs": 0}, "optim")
    rates = [learning_rate(section, 64, epoch, 7) for epoch in (0, 2.99, 3, 5.4, 5.5)]
    assert rates == pytest.approx([0.6, 0.6, 0.06, 0.06, 0.006])


def test_the_momentum_rises_to_one() -> None:
    assert ema_momentum(0.996, 0.0) == pytest.approx(0.996)
    assert ema_momentum(0.996, 0.5) == pytest.approx(0.998)
    assert ema_momentum(0.996, 1.0) == pytest.approx(1.0)


def test_the_moving_average_is_one() -> None:
    keys, queries = [torch.ones(3), torch.zeros(2, 2)], [torch.zeros(3), torch.ones(2, 2)]
    update_ema(keys, queries, 0.9)
    assert torch.allclose(keys[0], torch.full((3,), 0.9)) and torch.allclose(keys[1], torch.full((2, 2), 0.1))
    assert math.isclose(float(queries[0].sum()), 0)
