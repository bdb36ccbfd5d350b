"""Small vectors that the processes of one machine tell each other through shared memory.

Through sockets, gloo takes some 0.1 ms of a core for a message however small, and leaves cold caches behind;
synchronized batch norm sends over a hundred in a step. Here a message is a copy and a look at the others' counters:

    counters   one a rank, each on a cache line of its own: messages written so far
    slots      [2, W, bytes]: message n goes into slot n % 2. Whoever writes message n + 2 has seen all others write
               n + 1, so all have read n

What it is not: a transport for large tensors, for several machines, or for processors that reorder writes (there the
caller keeps to its process group).
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rhofast.errors import RankLostError

_SHARED = Path("/dev/shm")  # in memory, and of this machine (or container) alone
_SLOT = 2**17  # bytes a message may have: mean and variance of 8192 channels in float64
_LINE = 64  # bytes of a cache line
_IN_ORDER = {"x86_64", "AMD64"}  # processors whose writes are seen in the order in which they were made
_SPINS, _YIELDS = 50, 500  # looks at a counter without giving the core away, then with; then with naps
_NAP_S = 5e-5
_LOOK_S = 0.5  # how often a long wait looks whether the others live
_HINT = "see what it said last; the same command with --resume continues from the newest checkpoint"


class Board:
    """What `open_board` gives. All ranks exchange the same number of messages, of the same sizes, in the same order."""

    def __init__(self, memory: mmap.mmap, rank: int, pids: list[int], timeout: float) -> None:
        self._memory, self._rank, self._timeout = memory, rank, timeout
        self._pids = pids  # in rank order; empty where they cannot be looked up
        self._ranks = len(memory) // (_LINE + 2 * _SLOT)
        self._others = [other for other in range(self._ranks) if other != rank]
        self._counters = np.frombuffer(memory, dtype=np.int64, count=self._ranks * _LINE // 8)[:: _LINE // 8]
        self._slots: dict[torch.dtype, Tensor] = {}
        self._written = 0

    def holds(self, own: Tensor) -> bool:
        """Whether a message is small enough."""
        return own.numel() * own.element_size() <= _SLOT

    def exchange(self, own: Tensor) -> Tensor:
        """The ranks' [N] as [W, N], on the CPU, without a gradient.

        Raises RankLostError if another process has ended, or does not come to the same place within the timeout of the
        process group.
        """
        if own.dtype not in self._slots:
            slots = torch.frombuffer(self._memory, dtype=own.dtype, offset=self._ranks * _LINE)
            self._slots[own.dtype] = slots.view(2, self._ranks, -1)
        self._written += 1
        slot = self._slots[own.dtype][self._written % 2, :, : len(own)]
        slot[self._rank] = own
        self._counters[self._rank] = self._written
        for other in self._others:
            if self._counters[other] < self._written:
                self._wait(other)
        return slot.clone()

    def _wait(self, other: int) -> None:
        counters, written, looks = self._counters, self._written, 0
        began = looked = time.monotonic()
        while counters[other] < written:
            looks += 1
            if looks <= _SPINS:
                time.sleep(0)  # lets other threads have Python's lock
            elif looks <= _YIELDS:
                time.sleep(0)
                os.sched_yield()  # where processes share a core, the other one may need it
            else:
                time.sleep(_NAP_S)
                now = time.monotonic()
                if now - looked > _LOOK_S:
                    looked = now
                    self._look_after(other, now - began)

    def _look_after(self, other: int, waited: float) -> None:
        if self._pids and not _lives(self._pids[other]) and self._counters[other] < self._written:
            raise RankLostError(f"rank {other} of this machine has ended", hint=_HINT)
        if waited > self._timeout:
            raise RankLostError(f"rank {other} of this machine has not answered for {waited:.0f} s", hint=_HINT)


def open_board(group: dist.ProcessGroup) -> Board | None:
    """A board for the ranks of a group, or None where they are not all on one machine or the machine does not allow it.
    Every rank calls it at the same time."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    size = ranks * (_LINE + 2 * _SLOT)
    made = _make_file(size) if rank == 0 and platform.machine() in _IN_ORDER else None
    try:
        facts = _told((made, _pid_namespace(), os.getpid()), group)
        memory = None if facts[0][0] is None else _map_file(facts[0][0], size)
        # The name is random: where it is not found, this is another machine.
        everywhere = all(_told(memory is not None, group))
    finally:
        if made is not None:
            Path(made).unlink()
    if memory is None or not everywhere:
        return None
    namespaces = {namespace for _, namespace, _ in facts}
    pids = [pid for _, _, pid in facts] if len(namespaces) == 1 and None not in namespaces else []
    timeout = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return Board(memory, rank, pids, timeout)


def _told(value: Any, group: dist.ProcessGroup) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def _make_file(size: int) -> str | None:
    if not _SHARED.is_dir():
        return None
    try:
        number, name = tempfile.mkstemp(prefix="rhofast-", dir=_SHARED)
    except OSError:
        return None
    try:
        os.posix_fallocate(number, 0, size)  # a memory that is full is noticed here, not by a crash later
    except OSError:
        Path(name).unlink()
        return None
    finally:
        os.close(number)
    return name


def _map_file(name: str, size: int) -> mmap.mmap | None:
    try:
        with Path(name).open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None


def _pid_namespace() -> str | None:
    """Where process numbers mean the same."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
