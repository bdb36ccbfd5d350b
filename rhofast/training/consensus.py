"""What ranks agree on between two steps: whether to stop, and whether a step was bad.

    after step s      each rank submits: am I asked to stop? was a loss or gradient not finite?
    after step s + 1  the ranks read the common status of step s, which has been there for a while

A submission is an all-reduce of two numbers between hosts, in the background. It never waits for the device's queue to
run dry: the flag of a step on a GPU is submitted after the next step. All ranks read the same status, so all stop after
the same step. A single process reads its own submission at once.
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

_REMEMBERED_STEPS = 64  # for which a rank remembers its own flags

OK, BAD_GRADIENT, BAD_LOSS = 0, 1, 2  # flags of a step: finite; some rank's gradients are not; this rank's loss is not


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStatus:
    """What all ranks know alike.

    Attributes:
        stop: Some rank is asked to stop.
        consecutive_bad: How many steps in a row were bad, up to the newest one that is known.
        last_bad_step: The newest bad step of the whole run, or None.
    """

    stop: bool
    consecutive_bad: int
    last_bad_step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """A step that was not finite.

    Attributes:
        step: Its number, from 1.
        ranks: The ranks whose own loss was not finite; none if only gradients were not.
    """

    step: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flag:
    """A step's flag on its way to the host: it is there when `copied` has happened, or at once if that is None."""

    step: int
    value: Tensor
    copied: torch.cuda.Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Submission:
    """An all-reduce on its way: numbers f64[2] (stop, flag of `step`); None: no flag yet, or nothing to wait for."""

    step: int | None
    numbers: Tensor
    work: Any


class StepConsensus:
    """This rank's part in what all ranks agree on. Every rank makes the same calls.

    All methods raise RankLostError if another rank does not answer.
    """

    def __init__(self, timeout_s: float) -> None:
        """Join the other ranks; `timeout_s` is how many seconds another rank's submission may take to arrive."""
        self._group: dist.ProcessGroup | None = None
        if world_size() > 1:  # a group of its own: nothing else is in its queue, and it needs no device
            group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup), "every rank is in it"
            self._group = group
        self._flags: deque[_Flag] = deque()
        self._submissions: deque[_Submission] = deque()
        self._own_flags: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED_STEPS)
        self._consecutive_bad = 0
        self._last_bad_step: int | None = None
        self._stop = False

    def submit(self, step: int, *, stop: bool, flag: Tensor) -> None:
        """Submit this rank's state after a step.

        Args:
            step: Its number, from 1.
            stop: Whether this rank is asked to stop.
            flag: A scalar on the device: OK, BAD_GRADIENT or BAD_LOSS.
        """
        if flag.is_cuda:
            value = torch.empty((), dtype=flag.dtype, pin_memory=True)
            value.copy_(flag, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self._flags.append(_Flag(step=step, value=value, copied=copied))
        else:
            self._flags.append(_Flag(step=step, value=flag, copied=None))
        known_step, known_flag = None, OK
        if len(self._flags) > flag.is_cuda:
            oldest = self._flags.popleft()
            if oldest.copied is not None:
                oldest.copied.synchronize()
            known_step, known_flag = oldest.step, int(oldest.value)
            self._own_flags.append((known_step, known_flag))
        numbers = torch.tensor([float(stop), float(known_flag)], dtype=torch.float64)
        work = None
        if self._group is not None:
            with raise_on_lost_ranks():
                work = dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._submissions.append(_Submission(step=known_step, numbers=numbers, work=work))

    def poll(self) -> StepStatus:
        """Return what is known after the submissions of the step before; of this step if there is one process."""
        while len(self._submissions) > (self._group is not None):
            self._count(self._submissions.popleft())
        return self._status()

    def finish(self) -> StepStatus:
        """Wait for all submissions and return what is known after them."""
        while self._submissions:
            self._count(self._submissions.popleft())
        return self._status()

    def bad_steps(self, status: StepStatus) -> list[BadStep]:
        """Return the bad steps in a row that a status counts, oldest first. Every rank calls it."""
        if status.last_bad_step is None:
            return []
        own = [entry for entry in self._own_flags if entry[1] != OK]
        by_rank: list[list[tuple[int, int]]] = [own]
        if self._group is not None:
            by_rank = [[] for _ in range(world_size())]
            with raise_on_lost_ranks():
                dist.all_gather_object(by_rank, own, group=self._group)
        first = status.last_bad_step - status.consecutive_bad + 1
        return [
            BadStep(step=step, ranks=tuple(rank for rank, flags in enumerate(by_rank) if (step, BAD_LOSS) in flags))
            for step in range(first, status.last_bad_step + 1)
        ]

    def _status(self) -> StepStatus:
        return StepStatus(stop=self._stop, consecutive_bad=self._consecutive_bad, last_bad_step=self._last_bad_step)

    def _count(self, submission: _Submission) -> None:
        if submission.work is not None:
            with raise_on_lost_ranks():
                submission.work.wait()
        stop, flag = submission.numbers.tolist()
        self._stop |= stop > 0
        if submission.step is not None:
            self._consecutive_bad = self._consecutive_bad + 1 if flag > OK else 0
            self._last_bad_step = submission.step if flag > OK else self._last_bad_step
