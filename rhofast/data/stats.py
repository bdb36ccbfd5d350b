"""What a loader did, and what holds it up."""

from __future__ import annotations

from dataclasses import dataclass

from rhofast.data.conveyor import StageClock


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats:
    """What a loader did since its first batch, on this rank.

    batches, clips, frames   handed to the consumer
    bytes_read               read from the shards for them
    bad                      samples that were replaced (training) or left out (test)
    seconds, wait_s          since the first `next`, and of those spent blocked in it
    stages                   for each stage the seconds busy, starved and blocked
    """

    batches: int
    clips: int
    frames: int
    bytes_read: int
    bad: int
    seconds: float
    wait_s: float
    stages: dict[str, StageClock]
