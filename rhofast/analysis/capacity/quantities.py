"""Numbers that carry their origin (given, measured or a default), and their text with a unit.

    Input --Number--> arithmetic --Number--> Fact

Each result carries the names of its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Origin = Literal["given", "measured", "default"]

_WEAKNESS: tuple[Origin, ...] = ("default", "measured", "given")


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """An input of the plan.

    Attributes:
        value: The number.
        unit: Its unit.
        origin: Given by the user or the configuration, measured by a report that the user passed, or a default.
        source: The source in words.
    """

    value: float
    unit: str
    origin: Origin
    source: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number in the arithmetic of the plan.

    Attributes:
        value: The number.
        basis: Names of the inputs from which it is computed.
    """

    value: float
    basis: frozenset[str] = frozenset()

    def __add__(self, other: Number | float) -> Number:
        return _with_basis(self, other, _value(other) + self.value)

    def __sub__(self, other: Number | float) -> Number:
        return _with_basis(self, other, self.value - _value(other))

    def __mul__(self, other: Number | float) -> Number:
        return _with_basis(self, other, _value(other) * self.value)

    def __rmul__(self, other: float) -> Number:
        return self * other

    def __truediv__(self, other: Number | float) -> Number:
        return _with_basis(self, other, self.value / _value(other))


def given(value: float, unit: str, source: str) -> Input:
    """Return an input that the user gave."""
    return Input(value=float(value), unit=unit, origin="given", source=source)


def measured(value: float, unit: str, path: str) -> Input:
    """Return an input that the report at `path` holds."""
    return Input(value=float(value), unit=unit, origin="measured", source=path)


def given_or_default(value: float | None, option: str, unit: str, default: float, source: str) -> Input:
    """Return an input that the user may have given.

    Args:
        value: Value of the option. None if it was not given.
        option: Name of the option.
        unit: Unit of the value.
        default: Value if the option was not given.
        source: Source of the default, in words.

    Returns:
        The input.
    """
    if value is not None:
        return given(value, unit, option)
    return Input(value=default, unit=unit, origin="default", source=source)


def weakest(origins: Iterable[Origin]) -> Origin:
    """Return the weakest of several origins: a default is weaker than "measured", which is weaker than "given"."""
    return min(origins, key=_WEAKNESS.index, default="given")


def _value(number: Number | float) -> float:
    return number.value if isinstance(number, Number) else number


def _with_basis(number: Number, other: Number | float, value: float) -> Number:
    return Number(value, number.basis | other.basis if isinstance(other, Number) else number.basis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A result.

    Attributes:
        label: Name in tables.
        value: The number.
        unit: "B", "B/s", "s", "share" (1 is all), "FLOP/s", "$", or a word for what is counted.
        origin: The weakest origin of the inputs.
        basis: Names of the inputs.
    """

    label: str
    value: float
    unit: str
    origin: Origin
    basis: tuple[str, ...]


def amount(value: float, unit: str) -> str:
    """Return a number with its unit in three or four digits, such as "12.3 TB", "4.5 days" or "67 %".

    Args:
        value: The number.
        unit: Unit of a Fact.

    Returns:
        The text.
    """
    if not math.isfinite(value):
        return "infinite"
    if unit == "share":
        return f"{100 * value:,.3g} %" if value < 1 else f"{100 * value:,.0f} %"
    if unit == "s":
        for name, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
            if value >= 2 * length:
                return f"{value / length:,.1f} {name}"
        return f"{value:.3g} s"
    if unit in ("B", "B/s", "FLOP", "FLOP/s"):
        for prefix in ("", "k", "M", "G", "T", "P"):
            if value < 1000:
                return f"{value:.3g} {prefix}{unit}"
            value /= 1000
        return f"{value:,.4g} E{unit}"
    if unit == "$":
        return f"$ {value:,.0f}" if value >= 100 else f"$ {value:.3g}"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} {unit.removesuffix('s') if text == '1' and not unit.endswith('/s') else unit}"
