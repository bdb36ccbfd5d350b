"""Import NVIDIA DALI, and shorten its error messages."""

from __future__ import annotations

from typing import Any

from rhofast.errors import DependencyError

_INSTALL = "pip install 'rhofast[cu13]' (or 'rhofast[cu12]' to match a torch built for CUDA 12); no GPU is needed"


def import_dali() -> tuple[Any, Any, Any]:
    """Import DALI when a graph is built: this takes most of a second, and not every command needs it.

    Returns:
        `fn`, `pipeline_def` and `types` of nvidia.dali.

    Raises:
        DependencyError: DALI is not installed.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        raise DependencyError("nvidia-dali is not installed", hint=_INSTALL) from None
    return fn, pipeline_def, types


def reason_of(error: RuntimeError) -> str:
    """Return the first line of an error of DALI, without its place in the graph."""
    text = str(error)
    lines = (text.partition("encountered:")[2] or text).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
