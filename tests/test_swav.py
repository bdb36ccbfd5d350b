"""rho-SwAV against the reference implementation's numbers, and its invariants."""

import pytest
import torch
from reference import follow, gradients, method_keys, needs_vectors, run_step, tensors
from torch import Tensor

from rhofast.backbones import build_backbone
from rhofast.backbones.slow import Slow, SlowOptions
from rhofast.config import OptimSection
from rhofast.methods import build_method
from rhofast.methods.swav import Swav, SwavOptions, sinkhorn

SMALL = {"hidden": 32, "out": 16}


@needs_vectors
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_two_steps_are_those_of_the_reference(rho: int, dtype: torch.dtype) -> None:
    method = Swav(Slow(SlowOptions(depth=50, width=4)), SwavOptions.model_validate(SMALL)).to(dtype)
    table = method_keys(method) | {"swav_prototypes.weight": "prototypes.weight"}
    before = tensors("swav_state_before", dtype)
    method.load_state_dict({here: before[official] for official, here in table.items()})
    assert len(list(follow("swav", method, table, rho, OptimSection()))) == 2


def small(**options: object) -> Swav:
    torch.manual_seed(0)
    chosen = {"hidden": 16, "out": 8, "prototypes": 12, **options}
    method = build_method("swav", chosen, build_backbone("slow_r18", {"width": 4})).double()
    assert isinstance(method, Swav)
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


def test_prototypes_have_unit_rows_and_no_gradient_in_the_frozen_share() -> None:
    method = small(frozen=0.1)
    run_step(method, clips(2), 0.1)
    assert not method.prototypes.weight.grad.any()
    assert torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(12).double())
    run_step(method, clips(2), 0.1001)
    assert method.prototypes.weight.grad.any()


def test_all_codes_are_the_first_two_with_two_clips_and_more_with_three() -> None:
    first, every = small(), small(codes="all")
    assert run_step(first, clips(2), 0.5) == run_step(every, clips(2), 0.5)
    assert run_step(first, clips(3), 0.5) != run_step(every, clips(3), 0.5)


def test_all_parameters_get_a_gradient() -> None:
    method = small()
    run_step(method, clips(3), 0.0)
    assert gradients(method).keys() == {name for name, _ in method.named_parameters()}
    with pytest.raises(ValueError, match="at least 2"):
        method.num_parts(1)
