"""The processes of a run: how many there are, which one this is, and how they find each other."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rhofast.errors import ConfigError


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of ranks of the run or of a group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of this process, from 0, in the run or in a group; 0 without a process group."""
    return dist.get_rank(group) if world_size() > 1 else 0


def launched() -> tuple[int, int]:
    """Return the numbers of processes that the launcher started.

    They are known before the processes have joined a process group.

    Returns:
        The number of processes of the run and of this machine; (1, 1) without a launcher.
    """
    return _number_in("WORLD_SIZE", 1, minimum=1), _number_in("LOCAL_WORLD_SIZE", 1, minimum=1)


def find_place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, from whoever knows them.

    A process group of torch comes first, then the launcher's RANK and WORLD_SIZE, which are known before the group is
    there. Without either there is one process.

    Returns:
        The rank, in [0, number of ranks), and the number of ranks.

    Raises:
        ConfigError: RANK and WORLD_SIZE are no numbers, do not fit together, or one of them is missing. To guess would
            give several processes the same samples.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    size, number = _number_in("WORLD_SIZE", 1, minimum=1), _number_in("RANK", 0, minimum=0)
    if number >= size or (size > 1 and "RANK" not in os.environ):
        given = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in ("RANK", "WORLD_SIZE"))
        raise ConfigError(f"{given}: RANK must be in [0, WORLD_SIZE)", hint="pass rank=... and world_size=...")
    return number, size


def find_device() -> torch.device:
    """Return the device of this process: its GPU, or the CPU where there is none.

    A GPU that was chosen by `torch.cuda.set_device` comes first, then the launcher's LOCAL_RANK, then GPU 0.

    Raises:
        ConfigError: LOCAL_RANK is no number.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, current = _number_in("LOCAL_RANK", 0, minimum=0), torch.cuda.current_device()
    # A launcher that shows each process one GPU counts LOCAL_RANK all the same.
    is_free = current == 0 and local < torch.cuda.device_count()
    return torch.device("cuda", local if is_free else current)


def ranks_per_node(world_size: int) -> int:
    """Return how many of the ranks share this machine: LOCAL_WORLD_SIZE, or all where no launcher states it."""
    return min(_number_in("LOCAL_WORLD_SIZE", world_size, minimum=1), world_size)


def _number_in(variable: str, default: int, *, minimum: int) -> int:
    """Return the whole number in a variable of the environment; raise ConfigError if it is none."""
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise ConfigError(
            f"the environment variable {variable}={text!r} must be a whole number of at least {minimum}",
            hint=f"set it as torchrun does, or remove it: unset {variable}",
        )
    return number


def join_again(timeout_s: float) -> None:
    """Create the process group under a prefix of its own after a restart by the launcher.

    A launcher restarts the ranks after a failure (`--max_restarts`). With `accelerate launch` and the static rendezvous
    of torchrun, its store outlives the processes, so new processes would connect to the addresses of the old ones.
    Without a restart this function does nothing.

    Args:
        timeout_s: Seconds that a rank waits for another one.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or launched()[0] == 1 or dist.is_initialized():
        return
    wait = datetime.timedelta(seconds=timeout_s)
    store, number, size = next(rendezvous("env://", timeout=wait))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=number,
        world_size=size,
        timeout=wait,
    )


def node_group() -> dist.ProcessGroup | None:
    """Return the ranks of this machine as a group.

    All ranks must call it at the same time. The launcher states the number of ranks per machine in LOCAL_WORLD_SIZE; it
    is the same on all machines.

    Returns:
        The group, or None if this machine has all ranks of the run.

    Raises:
        ValueError: LOCAL_WORLD_SIZE does not divide the number of all ranks.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if local >= world_size():
        return None
    group, _ = dist.new_subgroups(local)
    return group


def cores_of_rank() -> int:
    """Return the number of cores that this rank may use: an equal share of the cores available on this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // launched()[1])
