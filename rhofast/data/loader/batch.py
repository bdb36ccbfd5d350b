"""A batch on its way from its position to the consumer: what each stage of a loader hands to the next.

    position --[plan]--> BatchInProgress, being read --[read]--> BatchInProgress, read
             --[decode]--> DecodedBatch --[finish]--> FinishedBatch

A *slot* is a place in this rank's batch, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from rhofast.data.decode.pipeline import DecodePipeline, StartedBatch
from rhofast.data.format.index import IndexRow
from rhofast.data.types import AugmentPlan, ClipPlan, Position, Sample, Views
from rhofast.errors import ConfigError, SampleError

Int64Array = npt.NDArray[np.int64]

MAX_BATCH_VALUES = 1 << 32  # 17 GB as float32


def check_batch_values(*, clips: int, num_frames: int, size: int, hint: str) -> None:
    """Raise ConfigError if a batch is larger than any machine needs, as the config of a stranger's run may ask.

    Args:
        clips: Clips of the batch, of all videos together.
        num_frames: Frames per clip.
        size: Side of the square frames in pixels.
        hint: Remedy that the error names.
    """
    values = clips * num_frames * size * size * 3
    if values > MAX_BATCH_VALUES:
        raise ConfigError(
            f"a batch of {clips} clips of {num_frames} frames of {size} x {size} pixels has {values:,} values; "
            f"the limit is {MAX_BATCH_VALUES:,}",
            hint=hint,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSelection:
    """Which samples a batch consists of, before any is replaced.

    Attributes:
        position: Position of the batch.
        global_samples: Samples of the global batch, of all ranks, i64[batch size].
        samples: Samples of this rank, i64[B]: numbers in the data.
        epochs: Epoch of each of them, i64[B].
        places: Place of each of them in the order of its epoch, i64[B].
        earlier: How often each was visited before in its epoch, i64[B].
    """

    position: Position
    global_samples: Int64Array
    samples: Int64Array
    epochs: Int64Array
    places: Int64Array
    earlier: Int64Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch of one rank, read.

    Attributes:
        slots: Slots that are filled, i64[B], ascending.
        samples: Sample in each slot, i64[B].
        rows: Index row of each sample.
        clips: Clip plan of the B samples.
        augment: Augmentation plan of the B samples.
        read: Bytes of each sample.
    """

    slots: Int64Array
    samples: Int64Array
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    read: list[Sample]

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, places: Sequence[int]) -> Self:
        """Return the batch of some of the samples: `places` in [0, B)."""
        some = np.array(places, dtype=np.int64)
        return replace(
            self,
            slots=self.slots[some],
            samples=self.samples[some],
            rows=[self.rows[place] for place in places],
            clips=self.clips.take(some),
            augment=self.augment.take(some),
            read=[self.read[place] for place in places],
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join batches with different slots to one, in the order of slots."""
        if len(parts) == 1:
            return parts[0]
        joined = cls(
            slots=np.concatenate([part.slots for part in parts]),
            samples=np.concatenate([part.samples for part in parts]),
            rows=[row for part in parts for row in part.rows],
            clips=ClipPlan.join([part.clips for part in parts]),
            augment=AugmentPlan.join([part.augment for part in parts]),
            read=[sample for part in parts for sample in part.read],
        )
        return joined.take(np.argsort(joined.slots).tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingReads:
    """Samples that are being read, with their plans.

    Attributes:
        slots: Slots of the samples, i64[B].
        samples: The samples, i64[B].
        rows: Index row of each sample.
        clips: Clip plan of the B samples.
        augment: Augmentation plan of the B samples.
        reads: The pending read of each sample.
        failed: By slot, why an index row could not be read; these samples are not among the B.
    """

    slots: Int64Array
    samples: Int64Array
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    reads: list[Future[Sample]]
    failed: dict[int, SampleError]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingPart:
    """A part of a batch that is being decoded.

    Attributes:
        places: Places of its samples in the batch.
        pipeline: The pipeline that decodes it.
        started: What the pipeline has begun.
    """

    places: list[int]
    pipeline: DecodePipeline
    started: StartedBatch


@dataclass(kw_only=True, slots=True)
class BatchInProgress:
    """A batch between planning and decoding.

    Attributes:
        selection: The samples that the order has for it.
        current: The samples that stand in its slots now, i64[B].
        pending: The first reads, which planning asked for.
        batch: What has been read; None before the read stage.
        decoding: Its parts at the decoders; None if none has it.
        attempts: By slot, how many replacements were drawn.
        replaced: By slot, why the planned sample was replaced.
    """

    selection: BatchSelection
    current: Int64Array
    pending: PendingReads
    batch: Batch | None = None
    decoding: list[DecodingPart] | None = None
    attempts: dict[int, int] = field(default_factory=dict)
    replaced: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedBatch:
    """A batch whose pixels are decoded and not finished yet.

    Attributes:
        batch: The batch.
        replaced: By slot, why the planned sample was replaced.
        pixels: [B, P, C, T, H, W] on the device.
        ready: The event after which the pixels are there, on a CUDA device; None on the CPU.
    """

    batch: Batch
    replaced: dict[int, str]
    pixels: torch.Tensor
    ready: torch.cuda.Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedBatch:
    """A batch that is ready for the consumer.

    Attributes:
        views: What the consumer gets.
        batch: The batch.
        replaced: By slot, why the planned sample was replaced.
        ready: The event after which the pixels are there, on a CUDA device; None on the CPU.
    """

    views: Views
    batch: Batch
    replaced: dict[int, str]
    ready: torch.cuda.Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A batch of one rank that was made again, with all that it was made from.

    Attributes:
        views: The views.
        samples: The bytes of its samples.
        rows: Index row of each sample.
        clips: Clip plan.
        augment: Augmentation plan.
        replaced: By slot, why another sample stands there than the order says.
    """

    views: Views
    samples: list[Sample]
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    replaced: dict[int, str]
