"""rho-MoCo against the reference implementation's numbers, and its invariants."""

import copy

import pytest
import torch
from torch import Tensor

from rhofast.config.schema import OptimConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, SlowConfig
from rhofast.models.methods import build_method
from rhofast.models.methods.moco import MoCo, MoCoConfig, _contrast
from tests.helpers.reference import follow, forward_backward, gradients, method_keys, needs_vectors, part, tensors

SMALL = {"hidden": 32, "out": 16, "queue": 64}


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype) -> None:
    method = MoCo(Slow(SlowConfig(depth=50, width=4)), MoCoConfig.model_validate(SMALL)).to(dtype)
    table = method_keys(method) | {"queue_x": "queue"}
    before = tensors("moco_state_before", dtype)
    missing = method.load_state_dict({here: before[official] for official, here in table.items()}, strict=False)
    assert missing.missing_keys == ["momentum", "written"]
    method.written.fill_(64 + int(before["ptr"]))  # a queue that has been full
    for number, facts, after in follow("moco", method, table, rho, OptimConfig(name="sgd", weight_decay=1e-4)):
        assert method._momentum == pytest.approx(facts["ema_momentum_held_after"], abs=1e-12)
        assert int(method.written) % 64 == facts["ptr_after"]
        within = 1e-6 if dtype == torch.float64 or number == 0 else 2e-3
        assert torch.allclose(method.queue, after[f"queue_after{number}"], rtol=within, atol=within)
        if number == 0:
            for official, value in part(after, "hist_after0/").items():
                mine = method.state_dict()[table[f"backbone_hist.{official}"]]
                assert torch.allclose(mine, value, rtol=1e-6, atol=1e-6)


def small(**options: object) -> MoCo:
    torch.manual_seed(0)
    chosen = {"hidden": 16, "out": 8, "queue": 16, "fill_first": False, **options}
    method = build_method("moco", chosen, build_backbone("slow_r18", {"width": 4})).double()
    assert isinstance(method, MoCo)
    return method


def clips(rho: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


@pytest.mark.parametrize("rho", [2, 3])
def test_the_mean_over_clips_is_the_sum_divided_by_rho(rho: int) -> None:
    total, mean = small(), small(loss="mean")
    losses = forward_backward(total, clips(rho), 0.0), forward_backward(mean, clips(rho), 0.0)
    assert [value / rho for value in losses[0]] == pytest.approx(losses[1])


@pytest.mark.parametrize("joint", [False, True])
def test_the_loss_is_a_cross_entropy(joint: bool) -> None:
    positive, negative = torch.randn(1, 5).double(), torch.randn(5, 7).double()
    expected = torch.nn.functional.cross_entropy(torch.cat([positive.T, negative], dim=1), torch.zeros(5).long())
    assert torch.allclose(_contrast(positive, negative, joint=joint), expected)


def test_positives_do_not_see_one_another_unless_joint() -> None:
    positive = torch.tensor([[0.5], [2.0]]).double()
    negative = torch.tensor([[0.0, 1.0]]).double()
    weight, rest = positive.exp(), negative.exp().sum()
    assert torch.allclose(_contrast(positive, negative, joint=False), -(weight / (weight + rest)).log().mean())
    joint = -(weight.sum() / (weight.sum() + rest)).log()
    assert torch.allclose(_contrast(positive, negative, joint=True), joint)


def test_the_queue_takes_keys_in_clip_order_and_wraps_around() -> None:
    method = small()
    before = method.queue.clone()
    method.written.fill_(14)
    keys = torch.nn.functional.normalize(torch.randn(2, 3, 8).double(), dim=-1)
    method._enqueue(keys)
    flat = keys.flatten(0, 1)
    assert torch.equal(method.queue[14:], flat[:2]) and torch.equal(method.queue[:4], flat[2:])
    assert torch.equal(method.queue[4:14], before[4:14]) and int(method.written) == 20


def test_only_the_first_clip_s_keys_enter_if_asked() -> None:
    method = small(queue_clips="first")
    forward_backward(method, clips(3), 0.0)
    assert int(method.written) == 3


def test_a_step_larger_than_the_queue_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method.queue=16 must hold the keys of one step \(got 27\)"):
        small().check(3, 9)
    with pytest.raises(ValueError, match="got 18"):
        small(sequential=False).check(3, 9)
    small(queue_clips="first").check(3, 9)


@pytest.mark.parametrize(
    ("step", "epoch", "no_update"), [(0, 0.0, True), (5, 0.9, True), (6, 0.9, False), (5, 1.0, False)]
)
def test_nothing_is_updated_until_as_many_videos_have_passed_as_the_queue_has_places(
    step: int, epoch: float, no_update: bool
) -> None:
    method = small(fill_first=True)  # 16 places, 3 videos per step; never after the first epoch
    queue, running = method.queue.clone(), method.backbone.state_dict()["stem_bn.running_mean"].clone()
    assert all(loss > 0 for loss in forward_backward(method, clips(2), epoch, step=step))
    assert (gradients(method) == {}) == no_update
    assert not torch.equal(method.queue, queue) and not torch.equal(method.backbone.stem_bn.running_mean, running)


def naive(method: MoCo, pixels: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients by their definition, in one graph, with torch's cross-entropy.

    It must be called before the first step. That step's moving average changes nothing, because the momentum network
    starts as a copy.
    """
    method = copy.deepcopy(method)
    unit = torch.nn.functional.normalize
    slots = list(pixels.unbind(dim=1))
    with torch.no_grad():
        if method.options.sequential:
            keys = [unit(method.momentum_projector(method.momentum_backbone(slot))) for slot in slots]
        else:
            together = unit(method.momentum_projector(method.momentum_backbone(torch.cat(slots[1:]))))
            keys = [None, *together.chunk(len(slots) - 1)]
    total = torch.zeros(()).double()
    for number, slot in enumerate(slots if method.options.sequential else slots[:1]):
        query = unit(method.projector(method.backbone(slot)))
        others = [key for other, key in enumerate(keys) if other != number]
        rows = [torch.cat([(query * key).sum(dim=1, keepdim=True), query @ method.queue.T], dim=1) for key in others]
        logits = torch.cat(rows) / method.options.temperature
        total = total + torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits)).long())
    total.backward()
    return float(total.detach()), gradients(method)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("rho", [2, 3, 5])
def test_it_is_the_cross_entropy_of_its_definition(rho: int, sequential: bool) -> None:
    method = small(sequential=sequential)
    expected, expected_gradients = naive(method, clips(rho))
    losses = forward_backward(method, clips(rho))
    assert len(losses) == (rho if sequential else 1) and sum(losses) == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-8, atol=1e-12), name
    assert int(method.written) == 3 * (rho if sequential else rho - 1)


def test_keys_and_queue_get_no_gradient_and_all_trained_parameters_do() -> None:
    method = small()
    forward_backward(method, clips(2), 60)
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("momentum_"), name


def test_a_restored_method_continues_with_the_same_queue_and_momentum() -> None:
    straight, restored = small(), small()
    forward_backward(straight, clips(2), 140)
    restored.load_state_dict(straight.state_dict())
    for method in (straight, restored):
        method.zero_grad()
    assert forward_backward(straight, clips(2), 160) == forward_backward(restored, clips(2), 160)
    assert torch.equal(straight.queue, restored.queue)
