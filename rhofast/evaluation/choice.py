"""Settings of a probe that are compared on a part of the training videos, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A setting with its scores on the validation videos.

    Attributes:
        setting: The numbers that it consists of, by name.
        measure: Name of the score: "top1", or "mAP" for several labels per video.
        score: The score, in [0, 1].
        loss: Mean cross-entropy.
    """

    setting: Mapping[str, float]
    measure: str
    score: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return setting and scores as JSON values of one level."""
        return {**self.setting, self.measure: self.score, "loss": self.loss}


def best_of(tried: Sequence[Tried]) -> int:
    """Return the number of the setting with the best score, and of several such the one with the lowest loss."""
    return max(range(len(tried)), key=lambda number: (tried[number].score, -tried[number].loss))
