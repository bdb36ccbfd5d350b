"""Write checkpoints in the background while training goes on.

    training thread    copy all tensors into memory of the writer --> next steps ...
    writer's thread                                             `--> serialize, hash, flush, rename, delete old ones

On a GPU even the copy is only queued, into pinned memory, ahead of the updates that follow. At most one checkpoint is
being written: the next one waits for it. A failure to write does not end training; it is reported, and older
checkpoints stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType

import torch
from torch import Tensor

from rhofast.checkpoint.checkpoint import (
    Checkpoint,
    SerializedCheckpoint,
    prune_checkpoints,
    serialize_checkpoint,
    write_serialized,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenCheckpoint:
    """What became of a checkpoint.

    Attributes:
        step: Its step.
        stall_s: Seconds for which the training thread was held up.
        seconds: Seconds from then until the checkpoint was on the disk, or given up.
        error: Why it is not on the disk, or None.
    """

    step: int
    stall_s: float
    seconds: float
    error: str | None = None


class AsyncCheckpointWriter:
    """Write the checkpoints of a run in a thread; a context manager that waits for the last one."""

    def __init__(self, run: Path, *, keep: int, keep_every: int | None = None) -> None:
        """Prepare to write.

        Args:
            run: The run folder.
            keep: How many of the newest checkpoints stay.
            keep_every: Checkpoints whose step is a multiple of this stay as well; None: no others.
        """
        self._run, self._keep, self._keep_every = run, keep, keep_every
        self._thread: Thread | None = None
        self._buffers: dict[str, Tensor] = {}
        self._done: SimpleQueue[WrittenCheckpoint] = SimpleQueue()

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Allocate the memory for checkpoints of this shape ahead of time."""
        self._buffers_for(_tensors(serialize_checkpoint(checkpoint)))

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint, after the one before it is written, and write it in the background."""
        began = time.perf_counter()
        self.wait()
        serialized = serialize_checkpoint(checkpoint)
        tensors = _tensors(serialized)
        buffers = self._buffers_for(tensors)
        for name, tensor in tensors.items():
            buffers[name].copy_(tensor.detach(), non_blocking=True)
        copied = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        copy = replace(
            serialized,
            method={name: buffers[f"method {name}"] for name in serialized.method},
            optimizer={name: buffers[f"optimizer {name}"] for name in serialized.optimizer},
        )
        stall_s = time.perf_counter() - began
        self._thread = Thread(target=self._write, args=(copy, copied, stall_s), name="rhofast-checkpoint-writer")
        self._thread.start()

    def wait(self, limit_s: float | None = None) -> bool:
        """Wait until no checkpoint is being written, but no longer than `limit_s` seconds; return whether none is."""
        if self._thread is not None:
            self._thread.join(limit_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def poll(self) -> list[WrittenCheckpoint]:
        """Return the checkpoints that were finished since the last call, oldest first."""
        return [self._done.get() for _ in range(self._done.qsize())]

    def __enter__(self) -> AsyncCheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def _buffers_for(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return memory on the host for copies, laid out as the originals are; the same memory at every call."""
        buffers = self._buffers
        for name, tensor in tensors.items():
            if name not in buffers or buffers[name].shape != tensor.shape or buffers[name].dtype != tensor.dtype:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
                buffers[name] = buffer.zero_()  # the system maps the pages now, not in the first copy
        return buffers

    def _write(self, serialized: SerializedCheckpoint, copied: torch.cuda.Event | None, stall_s: float) -> None:
        began = time.perf_counter()
        error = None
        try:
            if copied is not None:
                copied.synchronize()
            name = _first_not_finite(_tensors(serialized).items())
            if name is not None:
                error = f"{name} has values that are not finite"
            else:
                folder = write_serialized(self._run, serialized)
                prune_checkpoints(folder, keep=self._keep, keep_every=self._keep_every)
        except OSError as failure:
            error = failure.strerror or str(failure)
        except Exception as failure:  # noqa: BLE001 - whatever it is: it must be reported, and training goes on
            error = f"{type(failure).__name__}: {failure}"
        seconds = time.perf_counter() - began
        self._done.put(WrittenCheckpoint(step=serialized.step, stall_s=stall_s, seconds=seconds, error=error))


def _tensors(serialized: SerializedCheckpoint) -> dict[str, Tensor]:
    method = {f"method {name}": tensor for name, tensor in serialized.method.items()}
    return method | {f"optimizer {name}": tensor for name, tensor in serialized.optimizer.items()}


def _first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, or None."""
    return next((name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())), None)
