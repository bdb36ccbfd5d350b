"""Running statistics stay finite: values that are not finite are set back, and nothing else changes."""

import torch
from torch import nn

from rhofast.training.non_finite import BatchNormGuard


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_bad_step_leaves_the_statistics_of_the_step_before_and_the_next_one_moves_them_on() -> None:
    torch.manual_seed(0)
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    guard = BatchNormGuard(one)
    good, bad = torch.randn(5, 3), torch.full((5, 3), float("nan"))
    for batch in (good, bad, good + 1):
        one(batch)
        guard.restore()
        if batch is not bad:
            other(batch)
    for name in ("running_mean", "running_var"):
        assert torch.equal(one[1].get_buffer(name), other[1].get_buffer(name))


def test_only_values_that_are_not_finite_go_back() -> None:
    module = network()
    guard = BatchNormGuard(module)
    module[1].get_buffer("running_mean").copy_(torch.tensor([8.0, float("inf"), float("nan"), -1.0]))
    guard.restore()
    assert module[1].get_buffer("running_mean").tolist() == [8, 0, 0, -1]
    assert module[1].get_buffer("running_var").tolist() == [1, 1, 1, 1]


def test_a_module_without_batch_norm_is_left_alone() -> None:
    BatchNormGuard(nn.Linear(2, 2)).restore()
