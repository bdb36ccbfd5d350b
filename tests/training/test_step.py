"""A step of the trainer queues work and waits for nothing; its fused updates do not depend on how tensors lie."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rhofast.config.schema import OptimConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import METHODS, build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.optim import LARS, build_optimizer
from rhofast.training.optimizer_state import load_optimizer
from rhofast.training.step import train_step

# (method, its options, optimizer): released choices, and those with another path through the code.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {}, {}) for name in METHODS),
    ("byol", {"sequential": False}, {"name": "adamw"}),
    ("moco", {"sequential": False, "positives": "joint", "fill_first": False}, {"name": "sgd"}),
    ("simclr", {"pairs": "all"}, {"clip": 1.0}),
    ("swav", {"codes": "all", "frozen_epochs": 0.0}, {"clip": 1.0}),
    ("moco_v3", {"sequential": False, "output_norm": False}, {"name": "adamw"}),
    ("swav", {"queue": 4, "queue_epoch": 0.0}, {}),
    ("swav", {"queue": 32, "queue_epoch": 0.0}, {}),
]


def step(method: str, options: dict[str, Any], optim: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """Return the metrics of two steps of a small run."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    built = build_method(method, {"hidden": 16, **options}, build_backbone("slow_r18", {"width": 4})).to(device)
    built = built.to(memory_format=torch.channels_last_3d)
    section = OptimConfig(**optim)
    model, optimizer = accelerator.prepare(built, build_optimizer(built, section))
    pixels = torch.randn((4, 3, 2, 16, 16, 3), device=device).permute(0, 1, 5, 2, 3, 4)
    progresses = [TrainingProgress(step=number, epoch=0.1 * number, epochs=10) for number in range(2)]

    def take(progress: TrainingProgress) -> dict[str, Any]:
        return train_step(
            accelerator, model, built, optimizer, pixels, progress, rate=0.01, clip=section.clip, log=True
        )

    first = take(progresses[0])  # kernels are loaded, states made
    with no_waiting(device):
        return [first, take(progresses[1])]


class NoValues(TorchDispatchMode):
    """Raise an error where Python asks a tensor for its value, or for a shape that depends on it (`item`, `if`)."""

    ASKING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if func.overloadpacket is torch.ops.aten.index else []
        if func.overloadpacket in self.ASKING or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raise an error where the host would wait for the device; on a GPU torch itself sees all such places."""
    if device.type != "cuda":
        with NoValues():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("method", "options", "optim"), CASES)
def test_a_step_asks_no_tensor_for_its_value(method: str, options: dict[str, Any], optim: dict[str, Any]) -> None:
    logs = step(method, options, optim, torch.device("cpu"))
    assert all(one["loss"].isfinite() and one["grad_norm"] >= 0 for one in logs)


@pytest.mark.parametrize("ask", [float, bool, torch.Tensor.item, lambda x: x.view(1)[x.view(1) > 0]])
def test_that_would_be_noticed(ask: Callable[[torch.Tensor], Any]) -> None:
    with no_waiting(torch.device("cpu")), pytest.raises(AssertionError, match="wait for the device"):
        ask(torch.ones(()))


@pytest.mark.needs_gpu
@pytest.mark.parametrize(("method", "options", "optim"), CASES)
def test_a_step_does_not_wait_for_the_gpu(method: str, options: dict[str, Any], optim: dict[str, Any]) -> None:
    logs = step(method, options, optim, torch.device("cuda"))
    assert all(one["loss"].isfinite() for one in logs)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, (3, 1, 1)), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, (1, 3, 3)))
    return model.to(memory_format=torch.channels_last_3d)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        x = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_an_optimizer_s_state_may_lie_in_another_way_than_the_parameters(name: str) -> None:
    """Checkpoints store everything contiguous; the weights are channels-last."""
    section = OptimConfig(name=name, base_lr=0.1)  # type: ignore[arg-type]
    whole, half = convolutions(), convolutions()
    optimizer = build_optimizer(whole, section)
    learn(whole, optimizer, range(4))
    before = build_optimizer(half, section)
    learn(half, before, range(2))
    state = copy.deepcopy(before.state_dict())
    for slots in state["state"].values():
        slots.update({key: value.contiguous() for key, value in slots.items() if isinstance(value, torch.Tensor)})
    after = build_optimizer(half, section)
    load_optimizer(after, state)
    learn(half, after, range(2, 4))
    assert all(torch.equal(mine, other) for mine, other in zip(half.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("adapt", [True, False])
def test_gradients_may_lie_in_another_way_than_the_parameters(adapt: bool) -> None:
    moved = []
    for memory_format in (torch.channels_last_3d, torch.contiguous_format):
        model = convolutions()
        optimizer = LARS(model.parameters(), 0.1, adapt=adapt, weight_decay=0.01)
        for number in range(2):
            for p in model.parameters():
                gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
                p.grad = gradient.to(memory_format=memory_format) if p.ndim == 5 else gradient
            optimizer.step()
        moved.append(list(model.parameters()))
    assert all(torch.allclose(mine, other, rtol=1e-6, atol=1e-7) for mine, other in zip(*moved, strict=True))


def test_a_loaded_queue_is_used_if_it_was_full() -> None:
    methods = [build_method("swav", {"hidden": 4, "queue": 6}, build_backbone("slow_r18", {"width": 4})) for _ in "ab"]
    state = methods[0].state_dict()
    for filled in (6, 2):
        state["queue"][:, :filled], state["queue"][:, filled:] = 0.5, 0.0
        methods[1].load_state_dict(state)
        assert methods[1]._queued == filled  # type: ignore[attr-defined]
