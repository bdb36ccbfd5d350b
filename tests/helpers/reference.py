"""The reference implementation's numbers, where they are present."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rhofast.config.schema import OptimConfig
from rhofast.models.backbones.slow import Slow, slow_keys
from rhofast.models.methods.heads import normalize
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.training.optim import build_optimizer, learning_rate
from rhofast.training.step import forward_backward as run_whole_step
from tests.helpers.shards import SHARED

MONITORED = {"moco": -1, "byol": -1, "simclr": -2, "swav": 0}  # which of a step's embeddings the kNN monitor sees
VECTORS = SHARED / "vectors"
needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")


def tensors(name: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    loaded = load_file(VECTORS / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in loaded.items()}


def numbers(name: str) -> Any:
    return json.loads(Path(VECTORS / f"{name}.json").read_text())


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def official_slow(backbone: Slow, prefix: str) -> dict[str, str]:
    """Official name with a prefix -> name in the backbone."""
    return {f"{prefix}{official}": here for official, here in slow_keys(backbone).items()}


def method_keys(method: Method) -> dict[str, str]:
    """Official name -> name in the method, for backbone and projector, trained and key network."""
    assert isinstance(method.backbone, Slow)
    table: dict[str, str] = {}
    twins = [("backbone.", "")] + ([("backbone_hist.", "momentum_")] if hasattr(method, "momentum_backbone") else [])
    for official, here in twins:
        table |= {name: f"{here}backbone.{own}" for name, own in official_slow(method.backbone, official).items()}
        names = method.get_submodule("projector").state_dict()
        table |= {f"{official}head.projection.projection.{key}": f"{here}projector.{key}" for key in names}
    return table


def forward_backward(
    method: Method, clips: torch.Tensor, epoch: float = 0.0, *, step: int = 0, accumulate: int = 1
) -> list[float]:
    """The gradients of a step of a run of 200 epochs; the losses of its backwards."""
    losses = []

    def backward(loss: torch.Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()

    progress = TrainingProgress(step=step, epoch=epoch, epochs=200)
    run_whole_step(method, method, clips, progress, accumulate=accumulate, backward=backward)
    return losses


def gradients(method: Method) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def follow(
    name: str, method: Method, table: dict[str, str], rho: int, section: OptimConfig
) -> Iterator[tuple[int, dict[str, Any], dict[str, torch.Tensor]]]:
    """Two training steps of the reference: (step, its facts, the stored tensors) after each backward, once losses and
    gradients have been compared; the state is compared at the end. Skips where this rho is not among the vectors."""
    facts = numbers("methods")[name]
    if f"rho{rho}" not in facts:
        pytest.skip(f"no rho={rho} among the vectors")
    dtype = next(method.parameters()).dtype
    exact = dtype == torch.float64
    after = tensors(f"{name}_rho{rho}", dtype)
    videos = tensors("method_clips", dtype)
    # With rho = 1 two augmentations of the same frames are trained with: two clips.
    clips = torch.stack([videos[f"clip{number}"] for number in range(max(rho, 2))], dim=1)
    names = {here: official for official, here in table.items()}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(method, section)
    names_here = {"base_lr": "base_lr", "warmup_epochs": "warmup_epochs", "warmup_start_lr": "warmup_lr"}
    rates = OptimConfig.model_validate({here: float(facts["config"][key]) for key, here in names_here.items()})
    embeddings: list[torch.Tensor] = []
    method.get_submodule("projector").register_forward_hook(lambda *call: embeddings.append(call[-1].detach()))
    for number, step in enumerate(facts[f"rho{rho}"]["iters"]):
        rate = learning_rate(rates, rates.base_batch, step["epoch_exact"], facts["config"]["max_epoch"])
        assert rate == pytest.approx(step["lr"], rel=1e-9)
        optimizer.zero_grad()
        embeddings.clear()
        losses = forward_backward(method, clips, step["epoch_exact"])
        assert losses == pytest.approx(step["per_call_losses"], abs=1e-9 if exact else 1e-4 if number == 0 else 1e-3)
        if exact or number == 0:
            total = float(torch.nn.utils.get_total_norm([p.grad for p in trained.values()]))
            assert total == pytest.approx(step["grad_norm_total"], rel=1e-8 if exact else 2e-3)
        monitored = embeddings[MONITORED[name]]  # the unit row that the reference shows its kNN monitor
        within = 1e-6 if exact else 1e-4 if number == 0 else 2e-3
        assert torch.allclose(normalize(monitored), after[f"knn_rows_after{number}"], rtol=within, atol=within)
        for own, p in trained.items():
            expected = step["grad_norms"][names[own]]
            if expected > 1e-6 and (exact or number == 0):
                assert float(p.grad.norm()) == pytest.approx(expected, rel=1e-8 if exact else 2e-3), (number, own)
            if exact and number == 0 and expected > 1e-6 and f"grad0/{names[own]}" in after:
                stored = after[f"grad0/{names[own]}"]
                assert torch.allclose(p.grad, stored, rtol=1e-6, atol=1e-6 * float(stored.abs().max())), own
        yield number, step, after
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        optimizer.step()
    if exact:  # in float32 a ReLU that flips by rounding moves single entries; losses and norms were compared
        state = method.state_dict()
        for official, value in part(after, "final/").items():
            if official in table:
                assert torch.allclose(state[table[official]], value, rtol=1e-6, atol=1e-6), official
