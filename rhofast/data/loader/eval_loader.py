"""The evaluation loader: every sample exactly once, in order; a bad sample is left out and reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.bad_samples import BadSampleLog, DropBadSamples
from rhofast.data.loader.batch import Int64Array, check_batch_values
from rhofast.data.loader.batch_planner import EvaluationPlanner, ListedBatchPlanner
from rhofast.data.loader.fields import parse_fields
from rhofast.data.loader.staged_loader import StagedLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Views

_CPU = torch.device("cpu")


class ListedBatchLoader(StagedLoader):
    """Given batches, once each. A bad sample is left out, counted in `stats.bad`, and its error is in `bad`.

    Every `for` loop is a new pass over all batches, for which both begin anew.

    Args:
        mixture: The shard sets.
        planner: Plans the batches.
        rank: This rank.
        bad_log: File to which a line of JSON is appended per bad sample; None for no file.
        **options: Those of StagedLoader.

    Attributes:
        bad: The errors of the samples that this pass has left out so far.
    """

    def __init__(
        self, mixture: Mixture, planner: ListedBatchPlanner, *, rank: int, bad_log: Path | None = None, **options: Any
    ) -> None:
        policy = DropBadSamples(BadSampleLog(bad_log, None), rank)
        super().__init__(mixture, planner, policy, **options)
        self._listed, self.bad = planner, policy.errors

    def __len__(self) -> int:
        """Return the number of batches on this rank, at most: a batch whose samples are all bad is left out."""
        return len(self._listed.batches)

    def __iter__(self) -> Self:
        if self.started:
            self._restart()
            self._policy.log.count = 0
            self.bad.clear()
        return self

    def __next__(self) -> Views:
        """Return the next batch.

        Raises:
            StopIteration: There are no more.
            ShardError: The data as a whole cannot be read.
        """
        self._start(iter(self._listed.batches), [iter(self._listed.shard_numbers)])
        return self._next()


class EvalLoader(ListedBatchLoader):
    """Uniform clips of every sample of this rank's part, each sample exactly once over all ranks.

    Args:
        shards: The shard set.
        clips: Options of clips.
        augment: Options of augmentation: size and normalization; nothing is random.
        data: Options of loading.
        batch_size: Videos per batch on this rank.
        views: Uniform clips per video.
        crops: Squares per clip: 1 (the central one) or 3 (along the long side). A video has P = views * crops clips,
            with the crops of a clip side by side.
        samples: Samples to evaluate, each once; None for all, in order.
        rank: This rank.
        world_size: Number of ranks.
        device: Device of the views.
        dtype: Type of the pixels: float32, or float16 on a GPU.
        fields: Fields of the samples that batches have besides, by name (see `parse_fields`).
        bad_log: File to which a line of JSON is appended per bad sample; None for no file.

    Raises:
        ConfigError: A decoder is not available, the data lacks a field, or a batch has more than MAX_BATCH_VALUES
            values.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        clips: ClipConfig,
        augment: AugmentConfig,
        data: DataConfig,
        batch_size: int,
        views: int,
        crops: int = 1,
        samples: Int64Array | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        fields: Sequence[str] = (),
        bad_log: Path | None = None,
    ) -> None:
        check_batch_values(
            clips=batch_size * views * crops,
            num_frames=clips.num_frames,
            size=augment.size,
            hint="decrease eval.batch_size, the number of views, clips.num_frames or the size",
        )
        planner = EvaluationPlanner(
            shards,
            clips,
            batch_size=batch_size,
            views=views,
            crops=crops,
            samples=samples,
            rank=rank,
            world_size=world_size,
        )
        super().__init__(
            Mixture([shards]),
            planner,
            rank=rank,
            bad_log=bad_log,
            augment=augment,
            data=data,
            fields=parse_fields(fields, (shards,), clips=batch_size * views * crops),
            max_videos=batch_size,
            max_pictures=batch_size * views * crops * clips.num_frames,
            device=device,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        return f"EvalLoader({self.shards!r}, {len(self):,} batches)"
