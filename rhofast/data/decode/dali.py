"""Import NVIDIA DALI, and judge its errors."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from rhofast.errors import DependencyError, UndecodableError

_INSTALL = "pip install 'rhofast[cu13]' (or 'rhofast[cu12]' to match a torch built for CUDA 12); no GPU is needed"

# A pipeline whose threads are not there waits for them for ever when it is destroyed. A forked process, such as a
# worker of a DataLoader, inherits pipelines without their threads, so what is garbage by then is not collected there.
os.register_at_fork(after_in_child=gc.freeze)


def import_dali() -> tuple[Any, Any, Any]:
    """Import DALI when a graph is built: this takes most of a second, and not every command needs it.

    Returns:
        `fn`, `pipeline_def` and `types` of nvidia.dali.

    Raises:
        DependencyError: DALI, or a package that it imports, is not installed.
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        if error.name in ("nvidia", "nvidia.dali"):
            raise DependencyError("nvidia-dali is not installed", hint=_INSTALL) from None
        raise DependencyError(f"nvidia-dali cannot be imported: {error}", hint=_INSTALL) from None
    # DALI says so when it builds the first graph for a GPU. No package of DALI brings NPP; nothing here needs it.
    warnings.filterwarnings("ignore", message=r"(?s).*NPP is typically provided with CUDA Toolkit")
    return fn, pipeline_def, types


def reason_of(error: RuntimeError) -> str:
    """Return the first line of an error of DALI, without its place in the graph."""
    text = str(error)
    lines = (text.partition("encountered:")[2] or text).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def error_of_batch(
    error: RuntimeError,
    find_rejected: Callable[[], dict[int, str]],
    *,
    samples: int,
    decode_known_good: Callable[[], object] | None,
    device_id: int | None,
) -> RuntimeError | UndecodableError:
    """Return what to raise for a batch that failed: the samples that are to blame, or the error itself.

    After some errors of CUDA each later call of the process fails too. Samples must not be blamed for that: every
    sample of the data would be replaced, one batch after the other.

    Args:
        error: What DALI raised for the batch.
        find_rejected: Decodes the samples one by one, and returns place -> reason of those that fail.
        samples: Number of samples that it tries.
        decode_known_good: Decodes a sample again that was decoded before; None if none was.
        device_id: Number of the CUDA device, or None for the CPU.

    Returns:
        `error` if the device has failed, if no sample fails alone, or if all of them fail and so does the sample that
        was decoded before. If there is none, several samples that all fail are not blamed.
    """
    if _device_failed(device_id):
        return error
    try:
        rejected = find_rejected()
        if len(rejected) == samples and decode_known_good is not None:
            decode_known_good()
    except RuntimeError:  # nothing can be decoded any more
        return error
    unsure = len(rejected) == samples > 1 and decode_known_good is None
    return error if not rejected or unsure or _device_failed(device_id) else UndecodableError(rejected)


def _device_failed(device_id: int | None) -> bool:
    """Return whether a CUDA device reports an error once its work is done."""
    if device_id is None:
        return False
    try:
        torch.cuda.synchronize(device_id)
    except RuntimeError:
        return True
    return False
