"""A batch on its way from a position to the consumer: what each stage of the loader hands to the next.

Position --[plan]--> BatchInProgress (reads) --[read]--> BatchInProgress (batch) --[decode]--> DecodedBatch
         --[finish]--> FinishedBatch
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from rhofast.data.format.index import IndexRow
from rhofast.data.types import AugmentPlan, ClipPlan, Position, Sample, Views
from rhofast.errors import SampleError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch of one rank, read: what stands in its slots, as numbers and as bytes.

    slots i64[B], ascending; samples i64[B] numbers in the data, epochs i64[B]; rows, read: B each; clips, augment: of B
    """

    slots: Int64Array
    samples: Int64Array
    epochs: Int64Array
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    read: list[Sample]

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, places: Sequence[int]) -> Self:
        """Some of the samples: `places` in [0, B)."""
        some = np.array(places, dtype=np.int64)
        return replace(
            self,
            slots=self.slots[some],
            samples=self.samples[some],
            epochs=self.epochs[some],
            rows=[self.rows[place] for place in places],
            clips=self.clips.take(some),
            augment=self.augment.take(some),
            read=[self.read[place] for place in places],
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One batch of several, by slots."""
        if len(parts) == 1:
            return parts[0]
        joined = cls(
            slots=np.concatenate([part.slots for part in parts]),
            samples=np.concatenate([part.samples for part in parts]),
            epochs=np.concatenate([part.epochs for part in parts]),
            rows=[row for part in parts for row in part.rows],
            clips=ClipPlan.join([part.clips for part in parts]),
            augment=AugmentPlan.join([part.augment for part in parts]),
            read=[sample for part in parts for sample in part.read],
        )
        return joined.take(np.argsort(joined.slots).tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A batch of one rank, made again. replaced: by slot, why another sample stands there than the order says."""

    views: Views
    samples: list[Sample]
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    replaced: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingReads:
    """Samples that the pool is reading, and how they were planned, as in Batch. failed: by slot, those whose index row
    cannot be had."""

    slots: Int64Array
    samples: Int64Array
    epochs: Int64Array
    rows: list[IndexRow]
    clips: ClipPlan
    augment: AugmentPlan
    reads: list[Future[Sample]]
    failed: dict[int, SampleError]


@dataclass(kw_only=True, slots=True)
class BatchInProgress:
    """A batch on its way through the stages. at: its position; whole: the samples of the global batch as the order has
    them; originals, epochs, places: this rank's; asked, batch: how far it has come; attempts, replaced: by slot."""

    at: Position
    whole: Int64Array
    originals: Int64Array
    epochs: Int64Array
    places: Int64Array
    standing: Int64Array
    asked: PendingReads
    batch: Batch | None = None
    attempts: dict[int, int] = field(default_factory=dict)
    replaced: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedBatch:
    """A batch of which pixels [B, P, C, T, H, W] are to be finished."""

    batch: Batch
    replaced: dict[int, str]
    pixels: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedBatch:
    """A batch that is ready. made: when its pixels are there, on a CUDA device; None on the CPU."""

    views: Views
    batch: Batch
    replaced: dict[int, str]
    made: torch.cuda.Event | None
