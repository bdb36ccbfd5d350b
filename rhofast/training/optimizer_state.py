"""Load the state of an optimizer from a checkpoint, once it is known to fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rhofast.errors import ResumeError
from rhofast.models.weight_fit import misfit_of
from rhofast.training.optim import laid_out_as

# What the optimizers of rhofast keep per parameter: tensors like the parameter, and "step", a scalar.
_SLOTS = frozenset({"momentum_buffer", "exp_avg", "exp_avg_sq", "step"})
# Values of a group that a version of torch may have or not; where they are missing, those of this torch stay.
_OPTIONAL = frozenset({
    *("amsgrad", "capturable", "dampening", "decoupled_weight_decay", "differentiable", "foreach", "fused", "maximize"),
})  # fmt: skip


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, whose tensors may lie in memory in another way than the parameters do.

    They get their parameters' strides, which fused kernels take for granted.

    Args:
        optimizer: The optimizer to load into.
        state: What its `state_dict` gave.

    Raises:
        ResumeError: The state is that of another optimizer or of other parameters; the error names the field.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    misfit = _misfit_of_groups(own, groups) or _misfit_of_slots(optimizer, state["state"])
    if misfit is not None:
        raise ResumeError(f"the state of the optimizer does not fit: {misfit}")
    whole = [{**mine, **group} for mine, group in zip(own, groups, strict=True)]
    optimizer.load_state_dict({"state": dict(state["state"]), "param_groups": whole})
    for p, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                slots[name] = laid_out_as(p, value)


def _misfit_of_groups(own: list[dict[str, Any]], groups: list[dict[str, Any]]) -> str | None:
    """Return how parameter groups differ in kind from those of the optimizer, or None."""
    if len(groups) != len(own):
        return f"optimizer.groups has {len(groups)} groups, here {len(own)}"
    for number, (mine, group) in enumerate(zip(own, groups, strict=True)):
        where = f"optimizer.groups.{number}"
        if group.get("params") != mine["params"]:
            return f"{where}.params are not the {len(mine['params'])} parameters of this group"
        for key, value in mine.items():
            if key not in group:
                if key not in _OPTIONAL:
                    return f"{where}.{key} is missing"
            elif not _is_like(value, group[key]):
                return f"{where}.{key}={str(group[key])[:60]!r} is not like {value!r}"
    return None


def _is_like(mine: Any, other: Any) -> bool:
    """Return whether a value is of the kind of another one: both numbers, switches, or lists of as many numbers."""
    if isinstance(mine, list | tuple):
        return isinstance(other, list | tuple) and len(other) == len(mine) and all(map(_is_like, mine, other))
    if mine is None or isinstance(mine, bool):
        return other is None or isinstance(other, bool)
    if isinstance(mine, int | float):
        return isinstance(other, int | float) and not isinstance(other, bool) and math.isfinite(other)
    return type(mine) is type(other)


def _misfit_of_slots(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Return how the tensors of an optimizer's state differ from its parameters, or None."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = _slot_names(optimizer)
    scalar = torch.zeros((), dtype=torch.float32)
    for number, slots in state.items():
        where = f"optimizer.safetensors: {number}"
        if not 0 <= number < len(parameters):
            return f"{where}: there are {len(parameters)} parameters"
        for name in names - slots.keys():
            return f"{where}.{name} is missing"
        for name, value in slots.items():
            if name not in names:
                return f"{where}.{name} is not known to {type(optimizer).__name__}"
            own = scalar if name == "step" else parameters[number]
            if value is None and name == "momentum_buffer":
                continue
            misfit = misfit_of(own, value)
            if misfit is None and not bool(torch.isfinite(value).all()):
                misfit = "is not finite"
            if misfit is not None:
                return f"{where}.{name} {misfit}"
    return None


def _slot_names(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    if isinstance(optimizer, torch.optim.AdamW):
        return _SLOTS - {"momentum_buffer"}
    return frozenset({"momentum_buffer"})
