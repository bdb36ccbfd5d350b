"""What a loader did, and what holds it up: numbers, and one sentence that says what to change.

`readiness` is the number to look at first. Near 1 the consumer never finds the queue empty, and no faster loader would
help it. Near 0 the consumer does nothing but wait, and the loader's slowest stage sets the pace. What it is not: it
measures nothing (conveyor.py and loader.py do).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from rhofast.data.loader.threaded_pipeline import StageClock

FED = 0.99  # readiness from which on the consumer counts as the limit
_SATURATED = 0.8  # share of the time from which on a busy stage is taken to be the limit
_WASTEFUL = 1.5  # amplification from which on the storage is worth a word


@dataclass(frozen=True, kw_only=True, slots=True)
class StageShares:
    """How a stage spent its time: shares in [0, 1] that add up to 1, or are all 0 where nothing was clocked.

    busy high: this stage works as fast as it can. starved high: the stage before it is slower. blocked high: what comes
    behind it, another stage or the consumer, is slower.
    """

    busy: float
    starved: float
    blocked: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats:
    """What a loader did since its first batch, or between two snapshots (`since`), on this rank.

    batches, clips, frames   handed to the consumer
    frames_decoded           decoded for them, those included that the decoder had to go through on its way
    bytes_read, bytes_used   read from the shards for them, and of those what holds the pictures that were wanted
    bad                      samples that were replaced (training) or left out (test)
    seconds, wait_s          since the first `next`, and of those spent blocked in it
    stages                   for each stage, in the order of the flow, the seconds busy, starved and blocked
    """

    batches: int
    clips: int
    frames: int
    frames_decoded: int
    bytes_read: int
    bytes_used: int
    bad: int
    seconds: float
    wait_s: float
    stages: dict[str, StageClock]

    @property
    def readiness(self) -> float:
        """1 - wait_s / seconds, in [0, 1]: the share of the time in which the consumer was not waiting for data.

        High (above 0.99): the loader keeps up, and the consumer is the limit. Low: the loader is the limit; a consumer
        that does nothing but take batches sees a readiness near 0, however fast the loader is.
        """
        return 1.0 - min(1.0, max(0.0, self.wait_s / self.seconds)) if self.seconds > 0 else 1.0

    @property
    def clips_per_second(self) -> float:
        return self._rate(self.clips)

    @property
    def frames_per_second(self) -> float:
        return self._rate(self.frames)

    @property
    def gigabytes_per_second(self) -> float:
        """10^9 bytes read a second."""
        return self._rate(self.bytes_read) / 1e9

    @property
    def read_amplification(self) -> float | None:
        """Bytes read / bytes used: 1 is the least; None where nothing was used."""
        return self.bytes_read / self.bytes_used if self.bytes_used else None

    @property
    def decode_amplification(self) -> float | None:
        """Frames decoded / frames used: 1 where each picture is decoded by itself, more where a group of pictures must
        be gone through, less where clips share frames; None where nothing was decoded."""
        return self.frames_decoded / self.frames if self.frames and self.frames_decoded else None

    @property
    def shares(self) -> dict[str, StageShares]:
        """How each stage spent its time. A stage's clock moves when a piece of work is done, so a share is of what was
        clocked, not of `seconds`; over a few batches or more the two agree."""
        return {name: _shares(clock) for name, clock in self.stages.items()}

    def since(self, earlier: Self) -> LoaderStats:
        """What happened after an earlier snapshot of the same loader."""
        counts = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
            if field.name != "stages"
        }
        nothing = StageClock()
        stages = {
            name: StageClock(
                busy=clock.busy - before.busy,
                starved=clock.starved - before.starved,
                blocked=clock.blocked - before.blocked,
            )
            for name, clock in self.stages.items()
            for before in (earlier.stages.get(name, nothing),)
        }
        return LoaderStats(**counts, stages=stages)

    def advise(self, *, threads: int, decode_threads: int, cores: int) -> str:
        """One sentence: what the limit is, by which numbers, and what to change.

        threads, decode_threads: as in `data` of the configuration; cores: those that this process may use.
        """
        shares = self.shares
        if not self.batches or not shares or self.seconds <= 0:
            return "no batch was taken yet: nothing to say"
        if self.readiness >= FED:
            return f"the consumer is the limit: the loader is ready {self.readiness:.1%} of the time"
        name, slowest = max(shares.items(), key=lambda item: item[1].busy)
        if slowest.busy < _SATURATED:
            return (
                f"no stage is the limit (the busiest, {_doing(name)}, works {slowest.busy:.0%} of the time) and yet "
                f"the consumer waits {1 - self.readiness:.1%} of it: batches come unevenly, or other programs take the "
                "cores; raise data.prefetch"
            )
        before = list(shares)[: list(shares).index(name)]
        seen = f"{slowest.busy:.0%} busy"
        if before:
            seen += f", {_doing(before[-1])} blocked {shares[before[-1]].blocked:.0%}"
        return f"{_doing(name)} is the limit ({seen}): {self._remedy(name, threads, decode_threads, cores)}"

    def _remedy(self, stage: str, threads: int, decode_threads: int, cores: int) -> str:
        if stage == "plan":
            return (
                "it runs on one core under Python's lock; keep other Python threads out of this process, or give each "
                "process fewer videos a batch (more processes)"
            )
        if stage == "read":  # where no device decodes streams, these threads do
            ways = [f"raise data.threads ({threads} of {cores} cores)"] if threads < cores else []
            gone_through, taken_along = self.decode_amplification or 0.0, self.read_amplification or 0.0
            if max(gone_through, taken_along) >= _WASTEFUL:
                ways.append(
                    f"store shorter groups of pictures, or jpeg ({gone_through:.1f} frames are decoded and "
                    f"{taken_along:.1f} bytes read for each one in use)"
                )
            return ", or ".join([*ways, "keep the shards on faster storage"])
        if stage == "decode":
            smaller = "store smaller pictures"
            if decode_threads < cores:
                return f"raise data.decode_threads ({decode_threads} of {cores} cores), or {smaller}"
            return f"all {cores} cores are at it; {smaller}, give the process more cores, or decode on a GPU"
        if stage == "finish":
            return "give the process more cores, or blur on a GPU"
        return f"make {stage!r} faster"

    def _rate(self, count: int) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0


def _shares(clock: StageClock) -> StageShares:
    total = clock.busy + clock.starved + clock.blocked
    if total <= 0:
        return StageShares(busy=0.0, starved=0.0, blocked=0.0)
    return StageShares(busy=clock.busy / total, starved=clock.starved / total, blocked=clock.blocked / total)


def _doing(stage: str) -> str:
    """A stage as it is spoken of."""
    return {"plan": "planning", "read": "reading", "decode": "decoding", "finish": "blurring"}.get(
        stage, f"stage {stage!r}"
    )
