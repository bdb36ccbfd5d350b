"""rho-SimCLR against the reference implementation's numbers, and its invariants."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhofast.config.schema import OptimConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.backbones.slow import Slow, SlowConfig
from rhofast.models.methods import build_method
from rhofast.models.methods.simclr import SimCLR, SimCLRConfig, contrast_all
from tests.helpers.reference import follow, forward_backward, gradients, method_keys, needs_vectors, tensors

SMALL = {"hidden": 32, "out": 16}


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype) -> None:
    method = SimCLR(Slow(SlowConfig(depth=50, width=4)), SimCLRConfig.model_validate(SMALL)).to(dtype)
    table, before = method_keys(method), tensors("simclr_state_before", dtype)
    method.load_state_dict({here: before[official] for official, here in table.items()})
    assert len(list(follow("simclr", method, table, rho, OptimConfig()))) == 2


def small(**options: object) -> SimCLR:
    torch.manual_seed(0)
    method = build_method("simclr", {"hidden": 16, "out": 8, **options}, build_backbone("slow_r18", {"width": 4}))
    assert isinstance(method, SimCLR)
    return method.double()


def clips(rho: int) -> Tensor:
    return torch.randn(3, rho, 3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(rho))


def test_with_two_clips_the_chain_and_all_clips_are_the_same() -> None:
    chain, together = small(pairs="chain"), small(pairs="all")
    assert forward_backward(chain, clips(2), 0.0) == pytest.approx(forward_backward(together, clips(2), 0.0), rel=1e-12)
    for name, gradient in gradients(chain).items():
        assert torch.allclose(gradient, gradients(together)[name], rtol=1e-10)


@pytest.mark.parametrize(("rho", "pairs", "parts"), [(2, "chain", 1), (4, "chain", 3), (4, "all", 1)])
def test_a_chain_has_a_part_for_each_pair_of_neighbors(rho: int, pairs: str, parts: int) -> None:
    method = small(pairs=pairs)
    assert method.num_passes(rho) == parts
    assert len(forward_backward(method, clips(rho), 0.0)) == parts


@pytest.mark.parametrize("num_clips", [2, 3])
def test_the_loss_is_that_of_its_definition(num_clips: int) -> None:
    own = F.normalize(torch.randn(num_clips, 4, 6).double(), dim=-1)
    rows = [(video, own[clip, video]) for clip in range(num_clips) for video in range(4)]
    expected = 0.0
    for number, (video, row) in enumerate(rows):
        others = [(v, float((row @ r / 0.3).exp())) for other, (v, r) in enumerate(rows) if other != number]
        share = sum(weight for v, weight in others if v == video) / sum(weight for _, weight in others)
        expected -= math.log(share) / len(rows)
    assert float(contrast_all(own, 0.3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rho", [2, 3, 5])
def test_a_chain_is_the_sum_of_the_losses_of_neighbors(rho: int) -> None:
    method, mean = small(), small(loss="mean")
    rows = [F.normalize(method.projector(method.backbone(clip))) for clip in clips(rho).unbind(dim=1)]
    total = torch.zeros(()).double()
    for first, second in itertools.pairwise(rows):
        logits = torch.cat([first, second]) @ torch.cat([first, second]).T / 0.1
        logits.fill_diagonal_(-torch.inf)
        total = total + F.cross_entropy(logits, torch.arange(6).roll(3))
    total.backward()
    expected = gradients(method)
    method.zero_grad()
    assert sum(forward_backward(method, clips(rho))) == pytest.approx(float(total.detach()), rel=1e-12)
    assert sum(forward_backward(mean, clips(rho))) == pytest.approx(float(total.detach()) / (rho - 1), rel=1e-12)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-8, atol=1e-12), name
        assert torch.allclose(gradient, (rho - 1) * gradients(mean)[name], rtol=1e-8, atol=1e-12), name


def test_one_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        small().num_passes(1)


def test_the_paper_s_projection_has_batch_norm() -> None:
    assert any(
        isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in small(projector_norm=True).projector
    )
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in small().projector)
