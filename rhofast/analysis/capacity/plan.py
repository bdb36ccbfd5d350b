"""The result of the capacity planner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rhofast.analysis.capacity.advice import Limit
from rhofast.analysis.capacity.quantities import Fact, Input


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecPlan:
    """The plan for one codec.

    Attributes:
        codec: Name of the codec.
        facts: Results by name.
        limits: Utilization of each resource, the highest first.
        advice: What limits training and what to change, in sentences.
    """

    codec: str
    facts: dict[str, Fact]
    limits: tuple[Limit, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of a run.

    Attributes:
        inputs: Inputs by name. The names of inputs of one codec begin with the codec and a dot.
        facts: Results by name, the same for all codecs.
        notes: What the plan does not know, in sentences.
        codecs: The plan for each codec.
    """

    inputs: dict[str, Input]
    facts: dict[str, Fact]
    notes: tuple[str, ...]
    codecs: tuple[CodecPlan, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {"version": 1, **asdict(self)}
