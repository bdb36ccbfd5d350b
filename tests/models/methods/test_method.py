"""Steps: micro-batches add up to the batch or are refused, keys keep no graph, and more clips need no more memory."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rhofast.config.schema import TrainConfig
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import METHODS, build_method
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.training.setup import check_accumulation
from tests.helpers.reference import forward_backward, gradients

SMALL = {"hidden": 16, "out": 8}
WITHOUT_NORM = {
    "byol": {"projector_norm": False, "predictor_norm": False},
    "byol joint": {"projector_norm": False, "predictor_norm": False, "sequential": False},
    "moco": {"queue": 64, "fill_first": False},
    "moco joint": {"queue": 64, "fill_first": False, "sequential": False},
}


def clips(rho: int = 3, batch: int = 8) -> Tensor:
    return torch.randn(batch, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def build(name: str, *, norm: bool = True, **options: Any) -> Method:
    torch.manual_seed(0)
    if norm:
        backbone = build_backbone("slow_r18", {"width": 4})
    else:
        layers = [nn.Conv3d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.Tanh(), nn.AdaptiveAvgPool3d(1)]
        backbone = nn.Sequential(*layers, nn.Flatten())
        backbone.num_features = 8  # type: ignore[assignment]
    return build_method(name.split()[0], {**SMALL, **options}, backbone).double()


@pytest.mark.parametrize("accumulate", [2, 4, 8])
@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_without_batch_norm_micro_batches_add_up_to_the_batch(name: str, accumulate: int) -> None:
    whole, split = (build(name, norm=False, **WITHOUT_NORM[name]) for _ in range(2))
    for step, pixels in enumerate([clips(), clips().flip(0)]):
        for method, pieces in ((whole, 1), (split, accumulate)):
            method.zero_grad()
            losses = forward_backward(method, pixels, 2.0 + step, step=step, accumulate=pieces)
            assert len(losses) == pieces * method.num_passes(3)
            with torch.no_grad():
                for p in method.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
        for key, gradient in gradients(whole).items():
            assert torch.allclose(gradients(split)[key], gradient, rtol=1e-10, atol=1e-13), key
    for key, value in whole.state_dict().items():  # momentum network, momentum, and the queue in the same order
        assert torch.allclose(split.state_dict()[key], value, rtol=1e-10, atol=1e-13), key


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_with_frozen_statistics_micro_batches_add_up_too(name: str) -> None:
    config, found = TrainConfig(epochs=1, batch_size=8, accumulate=4), []
    for accumulate in (1, 4):
        method = build(name, **({"queue": 64, "fill_first": False} if name == "moco" else {}))
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        check_accumulation(method, config, 2)
        forward_backward(method, clips(), accumulate=accumulate)
        found.append(gradients(method))
    for key, gradient in found[0].items():
        assert torch.allclose(found[1][key], gradient, rtol=1e-9, atol=1e-12), key


def test_accumulation_is_allowed_where_the_loss_does_not_couple_videos() -> None:
    for name, options in WITHOUT_NORM.items():
        check_accumulation(build(name, norm=False, **options), TrainConfig(epochs=1, batch_size=8, accumulate=4), 2)


@pytest.mark.parametrize(
    ("name", "options", "changes", "message"),
    [
        ("simclr", {}, {"micro_batch_norm": True}, "SimCLR's loss compares every video of a batch with every other"),
        ("swav", {}, {"micro_batch_norm": True}, "SwAV balances its codes over all videos"),
        ("moco_v3", {}, {"micro_batch_norm": True}, "MoCo v3's negatives are the keys of all videos of a batch"),
        ("lejepa", {}, {"micro_batch_norm": True}, "LeJEPA compares the distribution of the embeddings over all"),
        (
            "byol",
            {},
            {},
            r"the statistics of \d+ batch norms \(backbone.stem_bn, ...\): they are those of the whole batch",
        ),
        ("moco", {"queue": 64}, {}, "batch norms"),
        ("byol", {}, {"micro_batch_norm": True, "batch_size": 10}, "batch_size=10 cannot be split over 2 ranks"),
    ],
)
def test_accumulation_is_refused_where_it_would_change_the_result(
    name: str, options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    values = {"epochs": 1.0, "batch_size": 8, "accumulate": 2, **changes}
    with pytest.raises(ConfigError, match=message):
        check_accumulation(build(name, **options), TrainConfig(**values), 2)


def test_statistics_of_micro_batches_can_be_accepted() -> None:
    config = TrainConfig(epochs=1, batch_size=8, accumulate=2, micro_batch_norm=True)
    for name, options in {"byol": {}, "moco": {"queue": 64}}.items():
        check_accumulation(build(name, **options), config, 2)


def test_a_batch_that_does_not_split_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="8 videos cannot be split into 3"):
        forward_backward(build("byol"), clips(), accumulate=3)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_norm_in_the_projector_is_optional(name: str) -> None:
    for norm in (True, False):
        projector = build(name, projector_norm=norm, batch_norm="local").get_submodule("projector")
        assert any(isinstance(module, nn.BatchNorm1d) for module in projector) == norm


def test_progress_is_the_share_of_the_run() -> None:
    assert TrainingProgress(step=7, epoch=50.0, epochs=200).fraction == 0.25


class SavedBytes:
    """Count the bytes that backward keeps alive: `live` now, and their `peak`.

    Each storage counts once. Parameters and the batch itself do not count.
    """

    def __init__(self, module: nn.Module, pixels: Tensor) -> None:
        self.live, self.peak, self.packed = 0, 0, 0
        self._known = {t.untyped_storage().data_ptr() for t in [pixels, *module.parameters(), *module.buffers()]}
        self._holders: dict[int, int] = {}

    def watch(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box[0])

    def _pack(self, tensor: Tensor) -> Any:
        self.packed += 1
        box, storage = _Box([tensor]), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._known:
            if not self._holders.get(place):
                self.live += size
                self.peak = max(self.peak, self.live)
            self._holders[place] = self._holders.get(place, 0) + 1
            weakref.finalize(box, self._drop, place, size)
        return box

    def _drop(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            self.live -= size


class _Box(list[Tensor]):
    """A list that supports weak references."""


def peak_bytes(method: Method, rho: int) -> int:
    pixels = clips(rho, batch=2)
    saved = SavedBytes(method, pixels)
    with saved.watch():
        forward_backward(method, pixels, 2.0)
    assert saved.packed and saved.live == 0
    return saved.peak


SEQUENTIAL: dict[str, Callable[[], Method]] = {
    "byol": lambda: build("byol"),
    "moco": lambda: build("moco", queue=64),
    "simclr": lambda: build("simclr"),
    "swav": lambda: build("swav", pairs="chain", prototypes=12),
    "moco_v3": lambda: build("moco_v3"),
}
JOINT: dict[str, Callable[[], Method]] = {
    "byol": lambda: build("byol", sequential=False),
    "simclr": lambda: build("simclr", pairs="all"),
    "swav": lambda: build("swav", prototypes=12),
    "moco_v3": lambda: build("moco_v3", sequential=False),
    "lejepa": lambda: build("lejepa", directions=8),
}


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_with_one_pass_per_clip_four_clips_need_the_memory_of_two(name: str) -> None:
    two, four = (peak_bytes(SEQUENTIAL[name](), rho) for rho in (2, 4))
    assert four <= 1.01 * two  # the keys of two more clips


@pytest.mark.parametrize("name", JOINT)
def test_in_one_pass_four_clips_need_twice_the_memory_of_two(name: str) -> None:
    two, four = (peak_bytes(JOINT[name](), rho) for rho in (2, 4))
    assert 1.9 < four / two < 2.1


def test_one_query_per_pass_needs_the_activations_of_one_clip() -> None:
    assert peak_bytes(SEQUENTIAL["byol"](), 2) < 0.6 * peak_bytes(JOINT["byol"](), 2)


def test_micro_batches_need_less_memory() -> None:
    peaks, pixels = [], clips(2, batch=4)
    for accumulate in (1, 2):
        method = build("byol")
        saved = SavedBytes(method, pixels)
        with saved.watch():
            forward_backward(method, pixels, accumulate=accumulate)
        peaks.append(saved.peak)
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ["byol", "moco", "moco_v3"])
def test_the_momentum_network_keeps_no_graph(name: str, sequential: bool) -> None:
    method = build(name, sequential=sequential, **({"queue": 64} if name == "moco" else {}))
    pixels = clips(3, batch=2)
    saved, before, kept, outputs = SavedBytes(method, pixels), [0], [], []

    def leave(_: nn.Module, __: Any, output: Tensor) -> None:
        kept.append(saved.packed - before[0])
        outputs.append(output)

    for network in (method.get_submodule("momentum_backbone"), method.get_submodule("momentum_projector")):
        network.register_forward_pre_hook(lambda *_: before.__setitem__(0, saved.packed))
        network.register_forward_hook(leave)
    with saved.watch():
        forward_backward(method, pixels, 2.0)
    assert kept == [0] * (6 if sequential or name == "moco_v3" else 2)
    assert not any(output.requires_grad for output in outputs)
    assert not any(p.requires_grad for key, p in method.named_parameters() if key.startswith("momentum_"))
