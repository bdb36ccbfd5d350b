"""Base classes of the values that flow (types.py): they print shapes, and plans are cut and joined by samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt


class Shaped:
    """A dataclass whose repr shows the dtype and the shape of arrays instead of their values."""

    def __repr__(self) -> str:
        parts = []
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            shape = getattr(value, "shape", None)
            kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
            if isinstance(value, list):
                kind, shape = "list", (len(value),)
            text = repr(value) if shape is None else f"{kind}{list(shape)}"
            parts.append(f"{one.name}={text}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Plan(Shaped):
    """Numbers for B samples: arrays whose first dimension is B."""

    def take(self, rows: npt.NDArray[Any] | Sequence[int]) -> Self:
        """Return the plan of some of the samples; `rows` are places in [0, B), or a mask bool[B]."""
        return type(self)(**{name: array[rows] for name, array in self._arrays().items()})

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """Concatenate plans, all of which have the same arrays."""
        plan_arrays = [plan._arrays() for plan in plans]
        return cls(**{name: np.concatenate([arrays[name] for arrays in plan_arrays]) for name in plan_arrays[0]})

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}


def check_leading(owner: str, leading: tuple[int, ...], **arrays: Any) -> None:
    """Raise ValueError if an array does not begin with the leading dimensions that all arrays of its owner share."""
    for name, array in arrays.items():
        if tuple(array.shape[: len(leading)]) != leading:
            raise ValueError(f"{owner}.{name} has shape {tuple(array.shape)}; its leading dimensions must be {leading}")
