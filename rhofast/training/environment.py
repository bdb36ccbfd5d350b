"""What a run records about its process: machine, model, data, versions, memory, time spent on exchanging gradients."""

from __future__ import annotations

import contextlib
import datetime
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rhofast.data.sampling.mixture import Mixture


def start_facts(accelerator: Accelerator, backbone: nn.Module, shards: Mixture) -> dict[str, Any]:
    """Return what a reader of the metrics wants to know about machine, model and data.

    Args:
        accelerator: Accelerate's.
        backbone: The network that is trained.
        shards: What it is trained on.
    """
    device = accelerator.device
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "world_size": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "samples": len(shards),
        **({} if shards.parts is None else {"keep": shards.parts}),
        "digest": shards.digest,
        "versions": versions(),
    }


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; its peak where the system reports only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize()


def device_memory(device: torch.device) -> dict[str, int]:
    """Return the memory of a CUDA device in bytes: what is in use by all, and the most that PyTorch's tensors took."""
    free, total = torch.cuda.mem_get_info(device)
    return {"device_memory_bytes": total - free, "torch_memory_bytes": torch.cuda.max_memory_allocated(device)}


def exposed_communication(model: nn.Module) -> float | None:
    """Return the seconds of a step in which this rank's gradients are ready and those of all ranks are not yet.

    They are part of the backward phase. PyTorch measures them in the first ten steps and in every hundredth after them;
    the result is the latest measurement, or None if there is none. What batch norms exchange is not in it.
    """
    if not isinstance(model, DistributedDataParallel):
        return None
    measured = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    total, hidden = (measured.get(name, 0) for name in ("backward_comm_time", "backward_compute_comm_overlap_time"))
    return max(0, total - hidden) / 1e9 if total else None


def versions() -> dict[str, str]:
    """Return the versions of the packages that a run's result depends on."""
    return {name: _version(name) for name in ("rhofast", "torch", "accelerate", "nvidia-dali")}


def _version(package: str) -> str:
    names = [package] if package != "nvidia-dali" else ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"
