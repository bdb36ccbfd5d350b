"""The door to NVIDIA DALI: its import, and its error messages in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.errors import DependencyError

_INSTALL = "pip install 'rhofast[cu13]' (or 'rhofast[cu12]' to match a torch built for CUDA 12); no GPU is needed"


def import_dali() -> tuple[Any, Any, Any]:
    """`fn`, `pipeline_def` and `types` of nvidia.dali. Imported when a graph is built: it takes most of a second, and
    not every command needs it. Raises DependencyError where it is not installed."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        raise DependencyError("nvidia-dali is not installed", hint=_INSTALL) from None
    return fn, pipeline_def, types


def reason_of(error: RuntimeError) -> str:
    """What DALI says of an error, without where in the graph it was."""
    text = str(error)
    lines = (text.partition("encountered:")[2] or text).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def parses(picture: npt.NDArray[np.uint8]) -> bool:
    """Whether encoded bytes begin as a picture does. Four microseconds."""
    from nvidia import nvimgcodec

    try:
        return int(nvimgcodec.CodeStream(picture).height) > 0  # it parses when it is first asked for something
    except RuntimeError:
        return False
