"""What a run records about its process: package versions and resident memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; its peak where the system reports only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize()


def versions() -> dict[str, str]:
    """Return the versions of the packages that a run's result depends on."""
    return {name: _version(name) for name in ("rhofast", "torch", "accelerate", "nvidia-dali")}


def _version(package: str) -> str:
    names = [package] if package != "nvidia-dali" else ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"
