"""Two and four ranks are one: every method's gradients and states over gloo, against one process on the whole batch."""

import contextlib
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rhofast.config.schema import OptimConfig
from rhofast.distributed.collectives import all_gather, reduce_max, shared_permutation
from rhofast.distributed.process_group import node_group, world_size
from rhofast.models.batch_norm import SyncBatchNorm, synchronize_batch_norm
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.models.methods.swav import sinkhorn
from rhofast.training.optim import build_optimizer
from rhofast.training.step import forward_backward

SMALL = {"hidden": 16, "out": 8}
METHODS: dict[str, dict[str, Any]] = {
    "byol": {},
    "byol joint": {"sequential": False, "batch_norm": "sync", "loss": "mean"},
    "moco": {"queue": 32, "fill_first": False, "batch_norm": "sync"},
    "moco joint": {"queue": 32, "fill_first": False, "batch_norm": "sync", "sequential": False, "queue_clips": "first"},
    "simclr": {},
    "simclr all": {"pairs": "all", "projector_norm": True},
    "swav": {"prototypes": 12},
    "moco_v3": {"batch_norm": "node"},
    "moco_v3 joint": {"sequential": False, "loss": "mean", "output_norm": False},
    "lejepa": {"directions": 32},
    "lejepa without norm": {"directions": 16, "projector_norm": False, "sigreg_weight": 0.5},
    "swav chain": {"prototypes": 12, "pairs": "chain", "queue": 6, "queue_epoch": 0.0},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
STEPS = 2


def clips(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, 8, 3, 3, 4, 9, 9, dtype=torch.float64, generator=generator).to(dtype)


def build(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Method:
    torch.manual_seed(0)
    backbone = nn.Sequential(  # smooth: one ReLU that flips by rounding is more than 1e-5 of a gradient
        *(nn.Conv3d(3, 8, 3, stride=2, bias=False), nn.BatchNorm3d(8), nn.SiLU()),
        *(nn.Conv3d(8, 16, 3, padding=1, bias=False), nn.BatchNorm3d(16), nn.SiLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten()),
    )
    backbone.num_features = 16  # type: ignore[assignment]
    return build_method(name.split()[0], {**SMALL, **METHODS[name], **options}, backbone).to(dtype)


def two_steps(model: nn.Module, method: Method, pixels: Tensor) -> dict[str, Any]:
    """Losses and gradients of the first step, and the state after two optimizer steps."""
    optimizer = build_optimizer(method, OptimConfig(name="lars", base_lr=0.1))
    out: dict[str, Any] = {}
    no_sync: Callable[[], Any] = model.no_sync if isinstance(model, DistributedDataParallel) else contextlib.nullcontext
    for step, batch in enumerate(pixels):
        optimizer.zero_grad()
        loss, _ = forward_backward(
            model, method, batch, TrainingProgress(step=step, epoch=2.0 + step, epochs=10), no_sync=no_sync
        )
        if step == 0:
            out["loss"] = loss
            out["gradients"] = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
    return out | {"state": method.state_dict()}


def shares(pixels: Tensor, rank: int) -> Tensor:
    """A rank's contiguous share of the videos, dimension 1."""
    return pixels.chunk(world_size(), dim=1)[rank]


def data_parallel(method: Method) -> DistributedDataParallel:
    with warnings.catch_warnings():  # newer torch has another word for broadcast_buffers
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False)


def worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    try:
        state: dict[str, Any] = {"highest": reduce_max(torch.tensor([float(rank), -float(rank)]))}
        torch.manual_seed(rank)  # as in training: ranks draw differently
        state["permutation"] = shared_permutation(100, torch.device("cpu"))
        for dtype_name, dtype in DTYPES.items():
            for name in METHODS:
                method = build(name, dtype)
                torch.manual_seed(rank)
                state[f"{name} {dtype_name}"] = two_steps(data_parallel(method), method, shares(clips(dtype), rank))
        for name, part in PARTS.items():
            torch.manual_seed(rank)
            state[name] = part(rank)
        torch.save(state, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def shuffled_keys(rank: int) -> dict[str, Tensor]:
    """Keys of shuffled clips with local batch norm, and where the clips went."""
    method = build("moco", batch_norm="local")
    mine = shares(clips(), rank)[0, :, 0]
    torch.manual_seed(7)
    keys = method._embed_key(mine)  # type: ignore[operator]
    torch.manual_seed(7)
    return {"keys": keys.detach(), "order": shared_permutation(8, mine.device)}


def first_rank_s_queue(rank: int) -> dict[str, Tensor]:
    method = build("moco", queue_ranks="first")
    forward_backward(method, method, shares(clips(), rank)[0], TrainingProgress(step=0, epoch=0, epochs=1))
    return {"queue": method.get_buffer("queue"), "written": method.get_buffer("written")}


def node_batch_norm(rank: int) -> dict[str, Tensor]:
    """One layer over machines of two ranks each: what comes out, and the gradient of a loss of all."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    try:
        layer = synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(6)), "node").double()
        group = node_group()
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]
    assert world_size(group) == 2
    x = shares(clips(), rank)[0].flatten(1)[:, :6].clone().requires_grad_()
    out = layer(x)
    out.pow(3).sum().backward()
    return {"out": out.detach(), "gradient": x.grad, "together": all_gather(x.detach(), group)}  # type: ignore[dict-item]


def local_batch_norm(rank: int) -> dict[str, Tensor]:
    """A step in which every rank has statistics of its own."""
    method = build("moco", batch_norm="local", shuffle=False)
    model = data_parallel(method)
    forward_backward(
        model, method, shares(clips(), rank)[0], TrainingProgress(step=0, epoch=0, epochs=1), no_sync=model.no_sync
    )
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {**gradients, "queue": method.get_buffer("queue")}


def local_codes(rank: int) -> dict[str, Tensor]:
    method = build("swav", balance="local")
    units = shares(clips(), rank)[0].flatten(1)[:, :8].clone()
    return {"units": units, "codes": method._make_codes(units[None] / 20)[0]}  # type: ignore[operator]


PARTS: dict[str, Callable[[int], dict[str, Tensor]]] = {
    "shuffled": shuffled_keys,
    "first": first_rank_s_queue,
    "node": node_batch_norm,
    "local": local_batch_norm,
    "codes": local_codes,
}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank of two, or of four, has to say."""
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # One server imports everything once, and its forks are the ranks: quicker than importing in each of them.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    mp.start_processes(  # type: ignore[no-untyped-call]
        worker, args=(request.param, str(folder)), nprocs=request.param, start_method="forkserver"
    )
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> Callable[[str, str], dict[str, Any]]:
    """What one process has on the whole batch, once for a method and a type."""
    torch.set_num_threads(1)  # as in the ranks
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def ask(name: str, dtype: str) -> dict[str, Any]:
        if (name, dtype) not in known:
            method = build(name, DTYPES[dtype])
            known[name, dtype] = two_steps(method, method, clips(DTYPES[dtype]))
        return known[name, dtype]

    return ask


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|mine - theirs| / |theirs|, all tensors as one vector."""
    assert mine.keys() == theirs.keys()
    difference = torch.stack([(mine[key].double() - theirs[key].double()).norm() for key in theirs]).norm()
    return float(difference / torch.stack([value.double().norm() for value in theirs.values()]).norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_several_ranks_have_the_gradients_of_one_process(
    name: str, dtype: str, ranks: list[dict[str, Any]], alone: Callable[[str, str], dict[str, Any]]
) -> None:
    expected, within = alone(name, dtype), {"float64": 1e-10, "float32": 1e-5}[dtype]
    mine = [rank[f"{name} {dtype}"] for rank in ranks]
    assert float(torch.stack([rank["loss"] for rank in mine]).mean()) == pytest.approx(
        float(expected["loss"]), rel=within
    )
    for rank in mine:
        assert distance(rank["gradients"], expected["gradients"]) < within


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_several_ranks_have_the_state_of_one_process_after_two_steps(
    name: str, dtype: str, ranks: list[dict[str, Any]], alone: Callable[[str, str], dict[str, Any]]
) -> None:
    """Weights, running statistics, the key network, the queue with its keys in order, the prototypes."""
    expected, within = alone(name, dtype)["state"], {"float64": 1e-10, "float32": 2e-5}[dtype]
    for rank in ranks:
        mine = rank[f"{name} {dtype}"]["state"]
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            wrong = float((mine[key].double() - value.double()).norm())
            assert wrong <= within * max(float(value.double().norm()), 0.01), key  # some are 0 but for noise


def test_shuffled_keys_are_those_of_the_shuffled_batches_and_return_home(ranks: list[dict[str, Any]]) -> None:
    method, order = build("moco", batch_norm="local"), ranks[0]["shuffled"]["order"]
    everyone, keys = clips()[0, :, 0], torch.empty(8, 8).double()
    assert sorted(order.tolist()) == list(range(8)) and order.tolist() != list(range(8))
    for batch in order.chunk(len(ranks)):
        keys[batch] = method._embed_key(everyone[batch])  # type: ignore[operator]
    assert torch.allclose(torch.cat([rank["shuffled"]["keys"] for rank in ranks]), keys, rtol=1e-9)


def test_the_queue_may_take_the_first_rank_s_keys_alone(ranks: list[dict[str, Any]]) -> None:
    share, method = 8 // len(ranks), build("moco")
    forward_backward(
        method, method, clips()[0], TrainingProgress(step=0, epoch=0, epochs=1)
    )  # its batch norm is over all ranks
    expected = method.get_buffer("queue")[:24].view(3, 8, 8)[:, :share].flatten(0, 1)
    for rank in ranks:
        assert int(rank["first"]["written"]) == 3 * share
        assert torch.allclose(rank["first"]["queue"][: 3 * share], expected, rtol=1e-9)


def test_batch_norm_may_be_over_the_ranks_of_each_machine(ranks: list[dict[str, Any]]) -> None:
    for rank in range(0, len(ranks), 2):
        pair = [ranks[rank]["node"], ranks[rank + 1]["node"]]
        assert torch.equal(pair[0]["together"], pair[1]["together"])
        x = pair[0]["together"].flatten(0, 1).requires_grad_()
        out = nn.BatchNorm1d(6).double()(x)
        out.pow(3).sum().backward()
        assert x.grad is not None
        assert torch.allclose(torch.cat([one["out"] for one in pair]), out.detach(), rtol=1e-10)
        assert torch.allclose(torch.cat([one["gradient"] for one in pair]), x.grad, rtol=1e-9, atol=1e-12)


def test_micro_batches_with_their_own_statistics_are_ranks_with_their_own(ranks: list[dict[str, Any]]) -> None:
    """What `train.micro_batch_norm` accepts, and the queue's order."""
    method = build("moco", batch_norm="local")
    forward_backward(method, method, clips()[0], TrainingProgress(step=0, epoch=0, epochs=1), accumulate=len(ranks))
    expected = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    expected["queue"] = method.get_buffer("queue")
    for rank in ranks:
        assert distance(rank["local"], expected) < 1e-10


def test_codes_may_be_balanced_over_each_rank_s_own_videos(ranks: list[dict[str, Any]]) -> None:
    weight = build("swav").get_parameter("prototypes.weight").detach()
    for rank in ranks:
        expected = sinkhorn(rank["codes"]["units"] / 20 @ weight.T / 0.05, 3)
        assert torch.allclose(rank["codes"]["codes"], expected, rtol=1e-6)


def test_a_shared_permutation_is_the_same_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, *others = (rank["permutation"] for rank in ranks)
    assert all(torch.equal(first, other) for other in others) and sorted(first.tolist()) == list(range(100))


def test_the_maximum_is_over_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [rank["highest"].tolist() for rank in ranks] == [[len(ranks) - 1.0, 0.0]] * len(ranks)


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
    local = synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), "local")
    assert not isinstance(local[0], SyncBatchNorm)
