"""What ranks agree on between two steps: to stop, and whether a step was bad.

    after step s      each rank casts a vote: am I asked to stop? was a loss or gradient not finite?
    after step s + 1  the votes on step s are read; they have been there for a while

A vote is an all-reduce of two numbers between hosts, in the background; it never waits for the device's queue to run
dry: the flag of a GPU's step goes into the vote after the next one. All ranks read the same, so all stop after the same
step. One process reads its vote at once.
"""

from __future__ import annotations

import datetime
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rhofast.distributed.collectives import raise_on_lost_ranks
from rhofast.distributed.process_group import world_size

_REMEMBERED = 64  # steps of which a rank knows its own flags

OK, BAD_GRADIENT, BAD_LOSS = 0, 1, 2  # flags of a step: finite; some rank's gradients are not; this rank's loss is not


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStatus:
    """What all ranks know alike. stop: some rank is asked to; running: how many steps in succession were bad, up to the
    newest that is known; bad: the newest bad one of all, or None."""

    stop: bool
    running: int
    bad: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flag:
    """A step's flag on its way to the host: there when `copied` has happened, or at once."""

    step: int
    value: Tensor
    copied: torch.cuda.Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vote:
    """numbers f64[2]: stop, flag; step: whose flag it is, or None; work: to wait for, or None."""

    step: int | None
    numbers: Tensor
    work: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """A step that was not finite. ranks: those whose own loss was not; none where only gradients were not."""

    step: int
    ranks: tuple[int, ...]


class StepConsensus:
    """The votes of this rank. timeout: seconds that another rank's may take to arrive.

    Every rank makes the same calls. Raises RankLostError where another rank does not answer.
    """

    def __init__(self, timeout: float) -> None:
        self._group: dist.ProcessGroup | None = None
        if world_size() > 1:  # of its own: nothing else is in its queue, and it needs no device
            group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))
            assert isinstance(group, dist.ProcessGroup), "every rank is in it"
            self._group = group
        self._flags: deque[_Flag] = deque()
        self._votes: deque[_Vote] = deque()
        self._own: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._running = 0
        self._bad: int | None = None
        self._stop = False

    def cast(self, step: int, *, stop: bool, flag: Tensor) -> None:
        """Vote after a step. flag: a scalar, on the device: OK, BAD_GRADIENT or BAD_LOSS."""
        if flag.is_cuda:
            value = torch.empty((), dtype=flag.dtype, pin_memory=True)
            value.copy_(flag, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self._flags.append(_Flag(step=step, value=value, copied=copied))
        else:
            self._flags.append(_Flag(step=step, value=flag, copied=None))
        known, seen = None, OK
        if len(self._flags) > flag.is_cuda:
            oldest = self._flags.popleft()
            if oldest.copied is not None:
                oldest.copied.synchronize()
            known, seen = oldest.step, int(oldest.value)
            self._own.append((known, seen))
        numbers = torch.tensor([float(stop), float(seen)], dtype=torch.float64)
        work = None
        if self._group is not None:
            with raise_on_lost_ranks():
                work = dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._votes.append(_Vote(step=known, numbers=numbers, work=work))

    def read(self) -> StepStatus:
        """What is known after the votes on the step before; with one process, after this one's."""
        while len(self._votes) > (self._group is not None):
            self._count(self._votes.popleft())
        return self._verdict()

    def finish(self) -> StepStatus:
        """Wait for the votes that are on their way."""
        while self._votes:
            self._count(self._votes.popleft())
        return self._verdict()

    def bad_steps(self, verdict: StepStatus) -> list[BadStep]:
        """The bad steps in succession that a verdict counts, oldest first. Every rank calls it."""
        if verdict.bad is None:
            return []
        own = [entry for entry in self._own if entry[1] != OK]
        everyone: list[list[tuple[int, int]]] = [own]
        if self._group is not None:
            everyone = [[] for _ in range(world_size())]
            with raise_on_lost_ranks():
                dist.all_gather_object(everyone, own, group=self._group)
        return [
            BadStep(step=step, ranks=tuple(rank for rank, seen in enumerate(everyone) if (step, BAD_LOSS) in seen))
            for step in range(verdict.bad - verdict.running + 1, verdict.bad + 1)
        ]

    def _verdict(self) -> StepStatus:
        return StepStatus(stop=self._stop, running=self._running, bad=self._bad)

    def _count(self, vote: _Vote) -> None:
        if vote.work is not None:
            with raise_on_lost_ranks():
                vote.work.wait()
        stop, seen = vote.numbers.tolist()
        self._stop |= stop > 0
        if vote.step is not None:
            self._running = self._running + 1 if seen > OK else 0
            self._bad = vote.step if seen > OK else self._bad
