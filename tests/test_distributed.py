"""Two ranks are one: every method's gradients and buffers over gloo, against one process on the whole batch."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rhofast.backbones import build_backbone
from rhofast.distributed import SyncBatchNorm, reduce_max, shared_permutation, synchronize_batch_norm, world_size
from rhofast.methods import build_method
from rhofast.methods.contract import Method

SMALL = {"hidden": 16, "out": 8}
METHODS: dict[str, dict[str, Any]] = {
    "byol": {},
    "moco": {"queue": 32, "fill_first": False, "batch_norm": "sync", "shuffle": True},
    "simclr": {},
    "simclr all": {"pairs": "all", "projection_norm": True},
    "swav": {"prototypes": 12},
}


def clips() -> Tensor:
    return torch.randn(4, 3, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name: str) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone("slow_r18", {"width": 4})
    return build_method(name.split()[0], {**SMALL, **METHODS[name]}, backbone).double()


def train_step(model: nn.Module, method: Method, pixels: Tensor) -> dict[str, Any]:
    """The trainer's pattern: only the last part's backward meets the other ranks."""
    total, parts = torch.zeros(()).double(), method.num_parts(pixels.shape[1])
    for part in range(parts):
        apart = part < parts - 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if apart else contextlib.nullcontext():
            loss, _ = model(pixels, part, 0.5)
            loss.backward()
        total += loss.detach()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": total, "gradients": gradients, "buffers": dict(method.named_buffers())}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        state: dict[str, Any] = {"highest": reduce_max(torch.tensor([float(rank), -float(rank)]))}
        torch.manual_seed(rank)  # as in training: ranks draw differently
        state["permutation"] = shared_permutation(100, torch.device("cpu"))
        for name in METHODS:
            method = build(name)
            torch.manual_seed(rank)
            model = DistributedDataParallel(method, broadcast_buffers=False)
            state[name] = train_step(model, method, clips()[2 * rank : 2 * rank + 2])
        torch.save(state, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_gradients_of_one_process(name: str, two_ranks: list[dict[str, Any]]) -> None:
    method = build(name)
    expected = train_step(method, method, clips())
    losses = [rank[name]["loss"] for rank in two_ranks]
    assert float(torch.stack(losses).mean()) == pytest.approx(float(expected["loss"]), rel=1e-9)
    for rank in two_ranks:
        assert rank[name]["gradients"].keys() == expected["gradients"].keys()
        for key, gradient in expected["gradients"].items():
            atol = 1e-10 * float(gradient.abs().max()) + 1e-13  # some gradients are 0 but for noise
            assert torch.allclose(rank[name]["gradients"][key], gradient, rtol=1e-10, atol=atol), key


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_buffers_of_one_process(name: str, two_ranks: list[dict[str, Any]]) -> None:
    """Running statistics, and MoCo's queue with its keys in order."""
    method = build(name)
    expected = train_step(method, method, clips())
    for rank in two_ranks:
        for key, buffer in expected["buffers"].items():
            assert torch.allclose(rank[name]["buffers"][key].double(), buffer.double(), rtol=1e-10, atol=1e-12), key


def test_a_shared_permutation_is_the_same_on_all_ranks(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["permutation"] for rank in two_ranks)
    assert torch.equal(first, second) and sorted(first.tolist()) == list(range(100))


def test_the_maximum_is_over_ranks(two_ranks: list[dict[str, Any]]) -> None:
    assert [rank["highest"].tolist() for rank in two_ranks] == [[1.0, 0.0], [1.0, 0.0]]


def test_alone_it_is_ordinary_batch_norm() -> None:
    assert world_size() == 1
    plain = nn.Sequential(nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.LazyBatchNorm1d())
    x = torch.randn(3, 2, 2, 2, 2)
    plain(x)
    synced = synchronize_batch_norm(nn.Sequential(*plain))
    assert sum(isinstance(module, SyncBatchNorm) for module in synced) == 2
    reference = nn.BatchNorm3d(4)
    reference.load_state_dict(synced[1].state_dict())
    features = synced[0](x)
    assert torch.equal(synced[1](features), reference(features))
    assert torch.equal(synced[1].running_var, reference.running_var)
