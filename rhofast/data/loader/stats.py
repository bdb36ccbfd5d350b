"""What a loader did, and what limits it: numbers, and one sentence that says what to change.

`readiness` is the number to look at first. Near 1 the consumer never finds the queue empty, and a faster loader would
not help it. Near 0 the consumer does nothing but wait, and the loader's slowest stage sets the pace.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from rhofast.data.loader.threaded_pipeline import StageClock

FED = 0.99  # readiness from which the consumer counts as the limit
_SATURATED = 0.8  # share of the time from which a busy stage counts as the limit
_WASTEFUL = 1.5  # amplification from which the advice mentions how the data is stored


@dataclass(frozen=True, kw_only=True, slots=True)
class StageShares:
    """How a stage spent its time: shares in [0, 1] that add up to 1, or are all 0 if nothing was measured.

    Attributes:
        busy: Share spent working. High: this stage works as fast as it can.
        starved: Share spent waiting for input. High: the stage before it is slower.
        blocked: Share spent waiting for room behind it. High: the next stage, or the consumer, is slower.
    """

    busy: float
    starved: float
    blocked: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats:
    """What a loader did on this rank since its first batch, or between two snapshots (`since`).

    Attributes:
        batches: Batches that the consumer got.
        clips: Clips in them.
        frames: Frames in them.
        frames_decoded: Frames decoded for them, with those that the decoder had to pass on its way.
        bytes_read: Bytes read from the shards for them.
        bytes_used: Bytes of these that hold the wanted pictures.
        bad: Samples that were replaced (training) or left out (evaluation).
        seconds: Seconds since the first `next`.
        wait_s: Seconds of these in which the consumer was blocked in `next`.
        outage_s: Seconds of these, in turn, in which a store did not answer.
        stages: Seconds that each stage was busy, starved and blocked, in the order of the flow.
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
    outage_s: float = 0.0

    @property
    def readiness(self) -> float:
        """Share of the time in which the consumer did not wait for data, 1 - wait_s / seconds, in [0, 1].

        High (above 0.99): the loader keeps up, and the consumer (the training step) is the limit. Low: the loader is
        the limit. A consumer that does nothing but take batches sees a readiness near 0, however fast the loader is.
        """
        return 1.0 - min(1.0, max(0.0, self.wait_s / self.seconds)) if self.seconds > 0 else 1.0

    @property
    def clips_per_second(self) -> float:
        """Clips that the consumer got per second."""
        return self._rate(self.clips)

    @property
    def frames_per_second(self) -> float:
        """Frames that the consumer got per second."""
        return self._rate(self.frames)

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes read per second, in units of 10^9."""
        return self._rate(self.bytes_read) / 1e9

    @property
    def read_amplification(self) -> float | None:
        """Bytes read divided by bytes used: 1 at least; None if nothing was used."""
        return self.bytes_read / self.bytes_used if self.bytes_used else None

    @property
    def decode_amplification(self) -> float | None:
        """Frames decoded divided by frames used; None if nothing was decoded.

        It is 1 if each picture is decoded by itself, more if groups of pictures are decoded from their start, less if
        clips share frames.
        """
        return self.frames_decoded / self.frames if self.frames and self.frames_decoded else None

    @property
    def shares(self) -> dict[str, StageShares]:
        """How each stage spent its time.

        A stage's clock advances when a piece of work is done, so the shares are of the measured time and not of
        `seconds`; over a few batches or more the two agree.
        """
        return {name: _shares(clock) for name, clock in self.stages.items()}

    def since(self, earlier: Self) -> LoaderStats:
        """Return what happened since an earlier snapshot of the same loader."""
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
        """Say in one sentence what the limit is, by which numbers, and what to change.

        Time in which a store did not answer is left out: it says nothing about how fast the storage is.

        Args:
            threads: `data.threads`.
            decode_threads: `data.decode_threads`.
            cores: Cores that this process may use.
        """
        if self.outage_s > 0 and self.stages:
            without = self._without_outage()
            away = f"a store did not answer for {self.outage_s:.0f} s of the {self.wait_s:.0f} s of waiting"
            if without.seconds <= 0 or without.readiness >= FED:
                return f"an outage was the limit: {away}, and the loader keeps up otherwise"
            told = without.advise(threads=threads, decode_threads=decode_threads, cores=cores)
            return f"{told}; {away}, which is left out"
        shares = self.shares
        if not self.batches or not shares or self.seconds <= 0:
            return "no batch has been taken yet"
        if self.readiness >= FED:
            return f"the loader is not the limit: a batch is ready {self.readiness:.1%} of the time"
        name, slowest = max(shares.items(), key=lambda item: item[1].busy)
        if slowest.busy < _SATURATED:
            return (
                f"no stage is the limit (the busiest, {_activity(name)}, works {slowest.busy:.0%} of the time), but "
                f"the consumer waits {1 - self.readiness:.1%} of the time: batches come unevenly, or other programs "
                "use the cores; raise data.prefetch"
            )
        before = list(shares)[: list(shares).index(name)]
        numbers = f"{slowest.busy:.0%} busy"
        if before:
            numbers += f", {_activity(before[-1])} blocked {shares[before[-1]].blocked:.0%}"
        return f"{_activity(name)} is the limit ({numbers}): {self._remedy(name, threads, decode_threads, cores)}"

    def _without_outage(self) -> LoaderStats:
        """Return what is left if the store had answered.

        A thread that reads waits for its bytes, or the one that plans waits for an index. Stages before it are blocked
        meanwhile, and those behind it are starved.
        """
        away = min(self.outage_s, self.wait_s)
        names = list(self.stages)
        held = next((name for name in ("read", "plan") if name in names and self.stages[name].busy >= away), names[0])
        stages = {}
        for place, (name, clock) in enumerate(self.stages.items()):
            state = ("blocked", "busy", "starved")[1 + (place > names.index(held)) - (place < names.index(held))]
            stages[name] = replace(clock, **{state: max(0.0, getattr(clock, state) - away)})
        seconds = max(0.0, self.seconds - away)
        return replace(self, seconds=seconds, wait_s=self.wait_s - away, outage_s=0.0, stages=stages)

    def _remedy(self, stage: str, threads: int, decode_threads: int, cores: int) -> str:
        if stage == "plan":
            return (
                "it runs on one core under Python's lock; keep other Python threads out of this process, or give each "
                "process fewer videos per batch (more processes)"
            )
        if stage == "read":  # these threads also decode streams, if no device does
            ways = [f"raise data.threads ({threads} of {cores} cores)"] if threads < cores else []
            frames_per_use, bytes_per_use = self.decode_amplification or 0.0, self.read_amplification or 0.0
            if max(frames_per_use, bytes_per_use) >= _WASTEFUL:
                ways.append(
                    f"store shorter groups of pictures, or jpeg ({frames_per_use:.1f} frames are decoded and "
                    f"{bytes_per_use:.1f} bytes are read for each one that is used)"
                )
            return ", or ".join([*ways, "keep the shards on faster storage"])
        if stage == "decode":
            smaller = "store smaller pictures"
            if decode_threads < cores:
                return f"raise data.decode_threads ({decode_threads} of {cores} cores), or {smaller}"
            return f"all {cores} cores decode; {smaller}, give the process more cores, or decode on a GPU"
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


def _activity(stage: str) -> str:
    """Return what a stage does, as a noun."""
    return {"plan": "planning", "read": "reading", "decode": "decoding", "finish": "blurring"}.get(
        stage, f"stage {stage!r}"
    )
