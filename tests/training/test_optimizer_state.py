"""The state of an optimizer fits, or the error names the field that does not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rhofast.config.schema import OptimConfig
from rhofast.errors import ResumeError
from rhofast.training.optim import build_optimizer
from rhofast.training.optimizer_state import load_optimizer

State = dict[str, Any]


def trained(name: str) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(model, OptimConfig(name=name))  # type: ignore[arg-type]
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_what_an_optimizer_gave_is_taken_also_without_what_a_version_of_torch_adds(name: str) -> None:
    state = trained(name).state_dict()
    for group in state["param_groups"]:
        group.pop("foreach", None)
    after = trained(name)
    load_optimizer(after, state)
    for number, slots in state["state"].items():
        for key, value in slots.items():
            assert torch.equal(after.state_dict()["state"][number][key], value)


def set_group(key: str, value: Any) -> Callable[[State], None]:
    return lambda state: state["param_groups"][1].update({key: value})


def set_slot(value: Any, key: str = "momentum_buffer") -> Callable[[State], None]:
    return lambda state: state["state"][0].update({key: value})


CASES: dict[str, Callable[[State], Any]] = {
    r"groups has 1 groups, here 2": lambda state: state["param_groups"].pop(),
    r"groups\.1\.params are not the 2 parameters": set_group("params", [2]),
    r"groups\.1\.params are not ": set_group("params", None),
    r"groups\.1\.momentum is missing": lambda state: state["param_groups"][1].pop("momentum"),
    r"groups\.1\.lr='1' is not like": set_group("lr", "1"),
    r"groups\.1\.momentum='nan' is not like": set_group("momentum", float("nan")),
    r"groups\.1\.nesterov='3' is not like True": set_group("nesterov", 3),
    r"0\.momentum_buffer has the shape \[5\], here \[2\]": set_slot(torch.zeros(5)),
    r"0\.momentum_buffer has values of type int64, here float32": set_slot(torch.zeros(2, dtype=torch.int64)),
    r"0\.momentum_buffer is not finite": set_slot(torch.tensor([0.0, torch.inf])),
    r"0\.momentum_buffer is a str, not a tensor": set_slot("x"),
    r"0\.exp_avg is not known to LARS": set_slot(torch.zeros(2), "exp_avg"),
    r"9: there are 4 parameters": lambda state: state["state"].update({9: {}}),
}


@pytest.mark.parametrize("said", CASES)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(said: str) -> None:
    optimizer = trained("lars")
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    CASES[said](state)
    with pytest.raises(ResumeError, match=said):
        load_optimizer(optimizer, state)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_the_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(ResumeError, match=r"optimizer\.groups\.0\."):
        load_optimizer(trained("adamw"), trained("lars").state_dict())
