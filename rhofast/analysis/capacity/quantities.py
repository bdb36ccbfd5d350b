"""Numbers that know what they rest on: given, measured, or a default; and how a number reads with its unit.

Input --Number--> arithmetic --Number--> Fact        every result carries the names of the inputs that went into it
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
    """A number that the plan begins with. origin: given by the user or the page, measured by a report that the user
    gave, or a default; source: in words."""

    value: float
    unit: str
    origin: Origin
    source: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number, and the names of the inputs that it rests on."""

    value: float
    basis: frozenset[str] = frozenset()

    def __add__(self, other: Number | float) -> Number:
        return _join(self, other, _value(other) + self.value)

    def __sub__(self, other: Number | float) -> Number:
        return _join(self, other, self.value - _value(other))

    def __mul__(self, other: Number | float) -> Number:
        return _join(self, other, _value(other) * self.value)

    def __rmul__(self, other: float) -> Number:
        return self * other

    def __truediv__(self, other: Number | float) -> Number:
        return _join(self, other, self.value / _value(other))


def weakest(origins: Iterable[Origin]) -> Origin:
    """A default is weaker than what was measured, and that than what was given."""
    return min(origins, key=_WEAKNESS.index, default="given")


def _value(number: Number | float) -> float:
    return number.value if isinstance(number, Number) else number


def _join(one: Number, other: Number | float, value: float) -> Number:
    return Number(value, one.basis | other.basis if isinstance(other, Number) else one.basis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A result. unit: "B", "B/s", "s", "share" (1 is all), "FLOP/s" or a word for what is counted; origin: the weakest
    of what it rests on."""

    label: str
    value: float
    unit: str
    origin: Origin
    basis: tuple[str, ...]


def amount(value: float, unit: str) -> str:
    """A number with its unit, as one reads it: three or four digits; "12.3 TB", "4.5 days", "67 %"."""
    if not math.isfinite(value):
        return "without end"
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
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} {unit.removesuffix('s') if text == '1' and not unit.endswith('/s') else unit}"
