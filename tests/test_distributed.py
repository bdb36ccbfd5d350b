"""Two ranks are one: synchronized batch norm and BYOL's gradients over gloo, against one process on the whole batch."""

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
from rhofast.distributed import SyncBatchNorm, reduce_max, synchronize_batch_norm, world_size
from rhofast.methods import build_method
from rhofast.methods.contract import Method


def clips() -> Tensor:
    return torch.randn(4, 2, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def byol() -> Method:
    torch.manual_seed(0)
    return build_method("byol", {"hidden": 16, "out": 8}, build_backbone("slow_r18", {"width": 4})).double()


def train_step(model: nn.Module, method: Method, pixels: Tensor) -> dict[str, Tensor]:
    """The trainer's pattern: only the last part's backward meets the other ranks."""
    parts = method.num_parts(2)
    for part in range(parts):
        if part < parts - 1 and isinstance(model, DistributedDataParallel):
            with model.no_sync():
                model(pixels, part, 0.0)[0].backward()
        else:
            model(pixels, part, 0.0)[0].backward()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        method = byol()
        model = DistributedDataParallel(method, broadcast_buffers=False)
        gradients = train_step(model, method, clips()[2 * rank : 2 * rank + 2])
        highest = reduce_max(torch.tensor([float(rank), -float(rank)]))
        state = {"gradients": gradients, "buffers": dict(method.named_buffers()), "highest": highest}
        torch.save(state, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_have_the_gradients_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    method = byol()
    expected = train_step(method, method, clips())
    for rank in two_ranks:
        assert rank["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            atol = 1e-10 * float(gradient.abs().max()) + 1e-13  # some gradients are 0 but for noise
            assert torch.allclose(rank["gradients"][name], gradient, rtol=1e-10, atol=atol), name


def test_two_ranks_have_the_running_statistics_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    method = byol()
    train_step(method, method, clips())
    for rank in two_ranks:
        for name, buffer in method.named_buffers():
            assert torch.allclose(rank["buffers"][name].double(), buffer.double(), rtol=1e-10, atol=1e-12), name


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
