"""Which samples a batch consists of, and how their clips are cut and augmented.

A planner gives the positions of a loader's batches in order, the samples at a position, and the plans of given samples.
All of it is a pure function of (data, config, seed, epoch, position). Ranks are sliced here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.loader.batch import BatchSelection, Int64Array
from rhofast.data.sampling.batch_plan import evaluation_plan, training_plan
from rhofast.data.sampling.mixture import MixtureOrder
from rhofast.data.sampling.visits import visit_numbers
from rhofast.data.types import AugmentPlan, ClipPlan, Position


class BatchPlanner(ABC):
    """Plans the batches of one rank.

    Attributes:
        random_appearance: Whether its plans may ask for color changes, blur and differences in time, which the decoding
            graph must then be able to do.
        sizes: Whether its plans say to what size crops are resized.
    """

    random_appearance: bool
    sizes = False

    @abstractmethod
    def select(self, address: Any) -> BatchSelection:
        """Return the samples of the batch at an address: what the planner's addresses are made of."""

    @abstractmethod
    def plan(
        self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array, earlier: Int64Array
    ) -> tuple[ClipPlan, AugmentPlan]:
        """Plan the clips and the augmentation of given samples.

        Args:
            rows: Index row of each sample.
            samples: The samples, i64[B]: numbers in the data.
            epochs: Epoch of each sample, i64[B].
            earlier: How often each was visited before in its epoch, i64[B].

        Returns:
            The clip plan and the augmentation plan of the B samples.
        """


class TrainingPlanner(BatchPlanner):
    """Plans endless training batches, whose addresses are positions in the order of a mixture.

    Args:
        order: Order of the samples.
        clips: Options of clips.
        augment: Options of augmentation.
        batch_size: Videos per global batch.
        share: Slice of the global batch that belongs to this rank.
        seed: Seed of the run.
        duplicate_single_clip: Whether one clip per video gives two views of the same frames.
    """

    random_appearance = True

    def __init__(
        self,
        order: MixtureOrder,
        clips: ClipConfig,
        augment: AugmentConfig,
        *,
        batch_size: int,
        share: slice,
        seed: int,
        duplicate_single_clip: bool,
    ) -> None:
        self._order, self._clips, self._augment = order, clips, augment
        self._batch_size, self._share, self._seed = batch_size, share, seed
        self._duplicate_single_clip = duplicate_single_clip

    def positions(self, first: Position) -> Iterator[Position]:
        """Yield the position of every batch from `first` on, without end."""
        position = self._order.normalized(first, self._batch_size)
        while True:
            yield position
            position = self._order.after(position, self._batch_size)

    def select(self, address: Position) -> BatchSelection:
        """Return the samples of this rank, and those of all ranks, at a position."""
        batch = self._order.batch(address, self._batch_size)
        return BatchSelection(
            position=address,
            global_samples=batch.samples,
            samples=batch.samples[self._share],
            epochs=batch.epochs[self._share],
            places=batch.places[self._share],
            earlier=batch.earlier[self._share],
        )

    def plan(
        self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array, earlier: Int64Array
    ) -> tuple[ClipPlan, AugmentPlan]:
        """Plan random clips and augmentations: those of a visit depend on (seed, epoch, sample, earlier) alone."""
        return training_plan(
            rows,
            visit_numbers(samples, earlier),
            self._clips,
            self._augment,
            seed=self._seed,
            epoch=epochs,
            duplicate_single_clip=self._duplicate_single_clip,
        )


class ListedBatchPlanner(BatchPlanner):
    """Plans given batches, each once and without anything random; their addresses are the arrays of samples.

    Args:
        batches: The samples of each batch, i64[B] each.
        needed: The samples of the shards that are needed, in the order of their first need, i64[N].
        shards: The shard set.

    Attributes:
        batches: As given.
        shard_numbers: The shards that are needed, in the order of their first need.
    """

    random_appearance = False

    def __init__(self, batches: Sequence[Int64Array], needed: Int64Array, shards: ShardSet) -> None:
        self.batches = batches
        numbers = shards.starts.searchsorted(needed, side="right") - 1
        self.shard_numbers: Sequence[int] = list(dict.fromkeys(numbers.tolist()))

    def select(self, address: Int64Array) -> BatchSelection:
        """Return the batch of given samples."""
        return BatchSelection(
            position=Position(epoch=0, position=int(address[0])),
            global_samples=address,
            samples=address,
            epochs=np.zeros_like(address),
            places=address,
            earlier=np.zeros_like(address),
        )


class EvaluationPlanner(ListedBatchPlanner):
    """Plans batches in which every sample of this rank's part stands once.

    Args:
        shards: The shard set.
        clips: Options of clips.
        batch_size: Videos per batch on this rank.
        views: Uniform clips per video.
        crops: Squares per clip: 1 or 3.
        samples: Samples to evaluate, each once; None for all, in order.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        shards: ShardSet,
        clips: ClipConfig,
        *,
        batch_size: int,
        views: int,
        crops: int,
        samples: Int64Array | None,
        rank: int,
        world_size: int,
    ) -> None:
        self._clips, self._views, self._crops = clips, views, crops
        count = len(shards) if samples is None else len(samples)
        first, last = (count * part // world_size for part in (rank, rank + 1))
        part = np.arange(first, last) if samples is None else samples[first:last]
        super().__init__([part[start : start + batch_size] for start in range(0, len(part), batch_size)], part, shards)

    def plan(
        self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array, earlier: Int64Array
    ) -> tuple[ClipPlan, AugmentPlan]:
        """Plan uniform clips and central or side squares; nothing is random."""
        return evaluation_plan(rows, self._clips, self._views, self._crops)
