"""What a tracker of a run is: the contract that a class of the user's own follows (`train.trackers`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

EndState = Literal["finished", "stopped", "failed"]
"""How a run ended: its last step is done; it was asked to stop and can be resumed; or an error ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a tracker is told about the run.

    Attributes:
        project: What runs are grouped under (`train.tracker_project`).
        name: Name of the run, which need not be unique.
        id: 32 hexadecimal digits, the same whenever this run is resumed.
        folder: The run folder.
        config: The run's configuration as plain values; addresses in it hold no passwords.
        step: Optimizer steps done when this process began.
        resumed: Whether an earlier process has told this tracker about the run.
        given_id: The id that this tracker gave the run then; None where it gave none.
    """

    project: str
    name: str
    id: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    step: int
    resumed: bool
    given_id: str | None = None


class Tracker(Protocol):
    """What a tracker of the user's own does. Its class is called with a `TrackedRun`, on rank 0.

    All calls come from one thread that is not the main one. An exception costs the numbers of that call, not the run.
    """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a window, by the names of `rhofast.training.metrics`, after `step` optimizer steps."""
        ...

    def finish(self, state: EndState) -> None:
        """Take how the run ended; nothing is called after it."""
        ...
