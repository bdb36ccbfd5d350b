"""Activations computed again: the same step with less memory, for one rank and for two."""

import copy
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from rhofast.config.load import load_config
from rhofast.errors import ConfigError
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.backbones import build_backbone
from rhofast.models.batch_norm import SyncBatchNorm
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.training.setup import build_model
from rhofast.training.step import forward_backward
from tests.helpers.saved import saved_bytes

# (backbone, options, size of the clip [T, S], its blocks)
BACKBONES: list[tuple[str, dict[str, Any], tuple[int, int], int]] = [
    ("slow_r18", {"width": 4}, (2, 32), 8),
    ("slow_r50", {"width": 4}, (2, 32), 16),
    ("r3d_18", {}, (2, 16), 8),
    ("r2plus1d_18", {}, (2, 16), 8),
    ("s3dg", {"width": 8}, (6, 33), 9),
    ("swin3d_t", {}, (2, 32), 15),
]


def method_of(name: str, *, again: bool, **options: Any) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone("slow_r18", {"width": 4})
    method = build_method(name, {"hidden": 16, "out": 8, **options}, backbone).double()
    if again:
        assert checkpoint_blocks(method.backbone) == 8
    return method


def videos() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 3, 2, 16, 16, dtype=torch.float64, generator=generator)


def state_after(method: Method, pixels: Tensor) -> dict[str, Tensor]:
    """Gradients of a step, and the state behind it."""
    torch.manual_seed(2)
    forward_backward(method, method, pixels, TrainingProgress(step=0, epoch=2.0, epochs=10))
    gradients = {f"gradient of {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return gradients | {name: value.detach() for name, value in method.state_dict().items()}


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-10, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("name", "options", "clip", "blocks"), BACKBONES)
def test_every_backbone_has_the_same_gradients_statistics_and_names(
    name: str, options: dict[str, Any], clip: tuple[int, int], blocks: int
) -> None:
    """Random depth (swin) too, and the random numbers that are drawn afterwards."""
    torch.manual_seed(0)
    plain = build_backbone(name, options).double()
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again) == blocks
    frames, size = clip
    pixels = torch.randn(2, 3, frames, size, size, dtype=torch.float64)
    told = []
    for network in (plain, again):
        torch.manual_seed(3)
        out = network(pixels)
        out.square().sum().backward()
        gradients = {f"gradient of {key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
        told.append({"out": out, **gradients, **network.state_dict(), "next": torch.rand(3)})
    assert_equal(told[1], told[0])


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("name", ["byol", "moco", "simclr", "swav", "moco_v3", "lejepa"])
def test_a_step_of_every_method_is_the_same(name: str, early: bool) -> None:
    """Batch norm has counted each batch once, also where a repetition runs to the block's end."""
    options: dict[str, Any] = {"moco": {"queue": 16, "fill_first": False}, "swav": {"prototypes": 12}}.get(name, {})
    plain = state_after(method_of(name, again=False, **options), videos())
    with set_checkpoint_early_stop(early):
        again = state_after(method_of(name, again=True, **options), videos())
    assert_equal(again, plain)
    counts = {int(value) for key, value in again.items() if key.startswith("backbone.") and "num_batches" in key}
    assert len(counts) == 1 and counts < {1, 2}


def test_queries_in_one_backward_are_the_same_too() -> None:
    """The backbone goes forward twice before it goes back, so statistics have moved on in between."""
    options = {"sequential": False}
    plain, again = (state_after(method_of("byol", again=one, **options), videos()) for one in (False, True))
    assert_equal(again, plain)


class Twisted(nn.Module):
    """A block of a matrix product and a batch norm. (torch 2.15 reads out of bounds in some bfloat16 convolutions of
    tiny maps on a CPU.)"""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.linear(x)).sin()


def test_autocast_is_that_of_the_forward() -> None:
    told = []
    for again in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(Twisted(), Twisted())
        if again:
            assert checkpoint_blocks(network) == 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(torch.randn(8, 16)).square().mean()
        loss.backward()  # outside
        told.append({name: p.grad for name, p in network.named_parameters()} | network.state_dict())
    assert_equal(told[1], told[0])


def test_much_less_is_kept_for_backward() -> None:
    kept = []
    for again in (False, True):
        backbone = build_backbone("slow_r50", {"width": 4})
        if again:
            checkpoint_blocks(backbone)
        with saved_bytes() as count:
            out = backbone(torch.randn(2, 3, 4, 64, 64))
        out.sum().backward()
        kept.append(count["bytes"])
    assert kept[1] < 0.45 * kept[0]


def test_nothing_is_left_behind_where_garbage_is_collected_by_hand() -> None:
    """The training loop collects garbage every 200 steps: cycles would hold activations until then."""
    backbone = build_backbone("slow_r18", {"width": 4})
    checkpoint_blocks(backbone)
    pixels = torch.randn(2, 3, 2, 16, 16)

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    backbone(pixels).sum().backward()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            backbone(pixels).sum().backward()
        assert tensors() == before
    finally:
        gc.enable()


def test_without_a_graph_nothing_is_kept_or_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = torch.utils.checkpoint.checkpoint

    def noted(*args: Any, **options: Any) -> Any:
        calls.append("again")
        return real(*args, **options)

    monkeypatch.setattr("rhofast.models.activation_checkpointing.checkpoint", noted)
    method = method_of("byol", again=True)
    assert not any("forward" in vars(module) for module in method.get_submodule("momentum_backbone").modules())
    with torch.no_grad():
        method.backbone(videos()[:, 0])
    assert not calls
    state_after(method, videos())
    assert len(calls) == 2 * 8  # two query clips; keys and statistics without a graph add none


def test_a_copy_computes_its_own_blocks() -> None:
    """Changing the copy's weights leaves the first network's results alone, and the other way round."""
    first = build_backbone("slow_r18", {"width": 4})
    checkpoint_blocks(first)
    second = copy.deepcopy(first)
    pixels = torch.randn(2, 3, 2, 16, 16)
    with torch.no_grad():
        for p in second.parameters():
            p.zero_()
    assert first(pixels).abs().sum() > 0 and second(pixels).abs().sum() == 0


def test_the_trainer_takes_it_for_the_trained_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ["train.steps=1", "backbone.name=slow_r18", "backbone.width=4", "method.name=byol"]
    for again in (False, True):
        config = load_config(None, [*page, f"train.checkpoint_activations={str(again).lower()}"])
        _, method, _ = build_model(config, Accelerator(cpu=True))
        changed = [name for name, module in method.named_modules() if "forward" in vars(module)]
        assert len(changed) == 8 * again and all(name.startswith("backbone.stages.") for name in changed)
    monkeypatch.setattr("rhofast.training.setup.checkpoint_blocks", lambda backbone: 0)
    with pytest.raises(ConfigError, match="slow_r18 has no blocks"):
        build_model(config, Accelerator(cpu=True))


def test_together_with_compile_it_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_activations=true excludes train.compile=true") as told:
        load_config(None, ["train.steps=1", "train.checkpoint_activations=true", "train.compile=true"])
    assert "\n" not in str(told.value)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        pixels = videos().chunk(2)[rank]
        told = {}
        for again in (False, True):
            method = method_of("byol", again=again, batch_norm="sync")
            assert any(isinstance(module, SyncBatchNorm) for module in method.backbone.modules())
            model = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
            torch.manual_seed(2)
            forward_backward(
                model, method, pixels, TrainingProgress(step=0, epoch=2.0, epochs=10), no_sync=model.no_sync
            )
            gradients = {f"gradient of {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
            told[str(again)] = gradients | method.state_dict()
        torch.save(told, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_tell_each_other_the_same_statistics_twice(tmp_path: Path) -> None:
    """Batch norm over both: what one process has on the whole batch, with and without."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    whole = state_after(method_of("byol", again=False), videos())
    for rank in range(2):
        told = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert_equal(told["True"], told["False"])
        assert_equal(told["True"], whole)
