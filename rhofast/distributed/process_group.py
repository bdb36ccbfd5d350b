"""The processes of a run: how many there are, which one this is, and how they find each other."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks, or of those of a group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's number, from 0, among all or in a group; 0 without a process group."""
    return dist.get_rank(group) if world_size() > 1 else 0


def launched() -> tuple[int, int]:
    """Processes in all and on this machine, as the launcher says, also before they know each other; (1, 1) without."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join_again(timeout: float) -> None:
    """Where a launcher has started the ranks again after a failure (`--max_restarts`), make the process group apart
    from what the processes before them left in the launcher's store: with `accelerate launch` and torchrun's static
    rendezvous it lives on, and new processes would call at the old ones' addresses. Otherwise do nothing. timeout:
    seconds that a rank waits for another."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or launched()[0] == 1 or dist.is_initialized():
        return
    wait = datetime.timedelta(seconds=timeout)
    store, number, size = next(rendezvous("env://", timeout=wait))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=number,
        world_size=size,
        timeout=wait,
    )


def node_group() -> dist.ProcessGroup | None:
    """The ranks of this machine as a group, or None where they are all there are. Every rank calls it at the same time.

    The launcher says in LOCAL_WORLD_SIZE how many they are, the same on all machines. Raises ValueError if that does
    not divide the number of all ranks.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if local >= world_size():
        return None
    group, _ = dist.new_subgroups(local)
    return group


def cores_of_rank() -> int:
    """The cores that this rank may use: its share of those that the machine's ranks have."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // launched()[1])
