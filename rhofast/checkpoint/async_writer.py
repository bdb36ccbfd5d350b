"""Checkpoints written while training goes on.

    training thread    copy all tensors into memory of its own --> next steps ...
    writer's thread                                          `--> serialize, hash, flush, rename, delete old ones

On a GPU even the copy is only queued, into pinned memory, ahead of the updates that follow. One checkpoint at most is
on its way: the next one waits for it. An error of the writer ends nothing; it is told, and older checkpoints stay.
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
    """What became of a checkpoint. held_s: for how long the training thread was held up; seconds: from then until it
    was on the disk, or given up; error: why it is not there, or None."""

    step: int
    held_s: float
    seconds: float
    error: str | None = None


class AsyncCheckpointWriter:
    """Writes the checkpoints of a run; a context manager, which waits for the last one.

    keep, keep_every: as in `save_checkpoint`.
    """

    def __init__(self, run: Path, *, keep: int, keep_every: int | None = None) -> None:
        self._run, self._keep, self._keep_every = run, keep, keep_every
        self._thread: Thread | None = None
        self._copies: dict[str, Tensor] = {}
        self._done: SimpleQueue[WrittenCheckpoint] = SimpleQueue()

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Get the memory for such checkpoints ahead of time."""
        self._places(_tensors(serialize_checkpoint(checkpoint)))

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy what there is to save, after the one before is written; write it in the background."""
        began = time.perf_counter()
        self.wait()
        parts = serialize_checkpoint(checkpoint)
        tensors = _tensors(parts)
        places = self._places(tensors)
        for name, tensor in tensors.items():
            places[name].copy_(tensor.detach(), non_blocking=True)
        copied = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        copy = replace(
            parts,
            method={name: places[f"method {name}"] for name in parts.method},
            optimizer={name: places[f"optimizer {name}"] for name in parts.optimizer},
        )
        held = time.perf_counter() - began
        self._thread = Thread(target=self._write, args=(copy, copied, held), name="rhofast-saver")
        self._thread.start()

    def wait(self) -> None:
        """Until no checkpoint is on its way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def news(self) -> list[WrittenCheckpoint]:
        """What has been finished since the last call, oldest first."""
        return [self._done.get() for _ in range(self._done.qsize())]

    def __enter__(self) -> AsyncCheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def _places(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Memory on the host for copies, laid out as the originals are; the same at every call."""
        places = self._copies
        for name, tensor in tensors.items():
            if name not in places or places[name].shape != tensor.shape or places[name].dtype != tensor.dtype:
                place = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
                places[name] = place.zero_()  # now, not at the first copy, the system finds pages for it
        return places

    def _write(self, parts: SerializedCheckpoint, copied: torch.cuda.Event | None, held: float) -> None:
        began = time.perf_counter()
        error = None
        try:
            if copied is not None:
                copied.synchronize()
            broken = _not_finite(_tensors(parts).items())
            if broken is not None:
                error = f"{broken} has values that are not finite"
            else:
                folder = write_serialized(self._run, parts)
                prune_checkpoints(folder, keep=self._keep, keep_every=self._keep_every)
        except OSError as failure:
            error = failure.strerror or str(failure)
        except Exception as failure:  # noqa: BLE001 - of whatever kind: it must be told, and training goes on
            error = f"{type(failure).__name__}: {failure}"
        self._done.put(
            WrittenCheckpoint(step=parts.step, held_s=held, seconds=time.perf_counter() - began, error=error)
        )


def _tensors(parts: SerializedCheckpoint) -> dict[str, Tensor]:
    method = {f"method {name}": tensor for name, tensor in parts.method.items()}
    return method | {f"optimizer {name}": tensor for name, tensor in parts.optimizer.items()}


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first tensor with a value that is not finite."""
    return next((name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())), None)
