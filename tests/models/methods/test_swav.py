"""rho-SwAV against the reference implementation's numbers, and its invariants."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhofast.config.schema import OptimConfig
from rhofast.errors import ConfigError
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, SlowConfig
from rhofast.models.methods import build_method
from rhofast.models.methods.swav import SwAV, SwAVConfig, sinkhorn
from tests.helpers.reference import follow, forward_backward, gradients, method_keys, needs_vectors, tensors

SMALL = {"hidden": 32, "out": 16}


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype) -> None:
    method = SwAV(Slow(SlowConfig(depth=50, width=4)), SwAVConfig.model_validate(SMALL)).to(dtype)
    table = method_keys(method) | {"swav_prototypes.weight": "prototypes.weight"}
    before = tensors("swav_state_before", dtype)
    method.load_state_dict({here: before[official] for official, here in table.items()})
    assert len(list(follow("swav", method, table, rho, OptimConfig()))) == 2


def small(**options: object) -> SwAV:
    torch.manual_seed(0)
    chosen = {"hidden": 16, "out": 8, "prototypes": 12, **options}
    method = build_method("swav", chosen, build_backbone("slow_r18", {"width": 4})).double()
    assert isinstance(method, SwAV)
    return method


def clips(rho: int) -> Tensor:
    return torch.randn(3, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def test_codes_are_distributions_balanced_over_prototypes() -> None:
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).double()
    codes = sinkhorn(scores / 0.5, 50)
    assert codes.dtype == torch.float32
    assert torch.allclose(codes.sum(dim=1), torch.ones(64))
    assert torch.allclose(codes.sum(dim=0), torch.full((8,), 8.0), rtol=1e-4)


def test_codes_do_not_depend_on_a_video_s_offset() -> None:
    """Adding a constant to a video's scores is undone when videos are balanced, at convergence."""
    scores = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)).double()
    shifted = scores + torch.linspace(-1, 1, 16)[:, None]
    assert torch.allclose(sinkhorn(scores, 100), sinkhorn(shifted, 100), atol=1e-6)


def test_prototypes_have_unit_rows_and_no_gradient_up_to_and_with_the_first_epoch() -> None:
    method = small()
    forward_backward(method, clips(2), 1.0)
    assert method.prototypes.weight.grad is None
    assert torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(12).double())
    forward_backward(method, clips(2), 1.001)
    assert method.prototypes.weight.grad.any()
    never = small(frozen_epochs=0)
    forward_backward(never, clips(2), 0.0)
    assert never.prototypes.weight.grad.any()


def test_all_codes_are_the_first_two_with_two_clips_and_more_with_three() -> None:
    first, every = small(), small(codes="all")
    assert forward_backward(first, clips(2), 100) == forward_backward(every, clips(2), 100)
    assert forward_backward(first, clips(3), 100) != forward_backward(every, clips(3), 100)


def plain_codes(scores: Tensor) -> Tensor:
    """Sinkhorn-Knopp as the paper has it: prototypes in rows, videos in columns."""
    codes = torch.exp(scores / 0.05).T
    codes = codes / codes.sum()
    for _ in range(3):
        codes = codes / codes.sum(dim=1, keepdim=True) / codes.shape[0]
        codes = codes / codes.sum(dim=0, keepdim=True) / codes.shape[1]
    return (codes * codes.shape[1]).T.float()


def naive(method: SwAV, slots: list[Tensor]) -> Tensor:
    """The loss by its definition: the first two clips' codes, each against all others."""
    prototypes = F.normalize(method.prototypes.weight.detach(), dim=1)
    method.prototypes.weight.data.copy_(prototypes)
    scores = [F.normalize(method.projector(method.backbone(slot))) @ method.prototypes.weight.T for slot in slots]
    total = torch.zeros(()).double()
    for target in (0, 1):
        code = plain_codes(scores[target].detach())
        for number, score in enumerate(scores):
            if number != target:
                total = total + F.cross_entropy(score / 0.1, code.double()) / (2 * (len(slots) - 1))
    return total


@pytest.mark.parametrize("rho", [2, 3, 5])
@pytest.mark.parametrize("pairs", ["all", "chain"])
def test_it_is_the_cross_entropy_of_its_definition(rho: int, pairs: str) -> None:
    method, mean = small(pairs=pairs), small(pairs=pairs, loss="mean")
    slots = list(clips(rho).unbind(dim=1))
    groups = [slots] if pairs == "all" else [slots[first : first + 2] for first in range(rho - 1)]
    total = torch.stack([naive(method, group) for group in groups]).sum()
    total.backward()
    expected = gradients(method)
    method.zero_grad()
    losses = forward_backward(method, clips(rho), 2.0)
    assert len(losses) == len(groups) and sum(losses) == pytest.approx(float(total.detach()), rel=1e-9)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-9), name
    assert sum(forward_backward(mean, clips(rho), 2.0)) == pytest.approx(float(total.detach()) / len(groups), rel=1e-9)


def test_a_full_queue_helps_to_balance_the_codes() -> None:
    method, without = small(queue=6, queue_epoch=2.0), small()
    pixels = [clips(2), clips(2).flip(0), clips(2) * 0.5]
    assert forward_backward(method, pixels[0], 1.9) == forward_backward(without, pixels[0], 1.9)
    assert not method.queue.any()  # it fills from epoch 2 on
    for number in (0, 1):
        assert forward_backward(method, pixels[number], 2.0) == forward_backward(without, pixels[number], 2.0)
    assert torch.allclose(method.queue.norm(dim=2), torch.ones(2, 6).double())
    before = method.queue.clone()
    assert forward_backward(method, pixels[2], 2.0) != forward_backward(without, pixels[2], 2.0)
    assert torch.equal(method.queue[:, 3:], before[:, :3])  # newest first
    own = method.queue[:, :3].clone()
    pool = torch.cat([own, before], dim=1) @ method.prototypes.weight.detach().T
    expected = torch.stack([plain_codes(each)[:3] for each in pool])
    method.queue.copy_(before)
    assert torch.allclose(method._make_codes(own), expected, rtol=1e-6)


def test_a_queue_with_options_that_it_does_not_go_with_is_refused() -> None:
    for options in ({"codes": "all"}, {"balance": "local"}):
        with pytest.raises(ConfigError, match=r"method.queue=[0-9]+ requires method.codes"):
            small(queue=6, **options)


def test_a_sharpness_beyond_float32_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sharpness=0\.01: must be at least 0\.0125"):
        small(sharpness=0.01)
    scores = torch.zeros(512, 64)
    scores[:, 0] = 1 / 0.0125  # all videos at one prototype, and as far from the others as these are from each other
    assert sinkhorn(scores, 3).isfinite().all()


def test_all_parameters_get_a_gradient() -> None:
    method = small()
    forward_backward(method, clips(3), 2.0)
    assert gradients(method).keys() == {name for name, _ in method.named_parameters()}
    with pytest.raises(ValueError, match="at least 2"):
        method.num_passes(1)
