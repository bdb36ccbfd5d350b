"""The evaluation loader: every sample exactly once, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.loader.bad_samples import BadSampleLog
from rhofast.data.loader.batch import BatchInProgress, Int64Array
from rhofast.data.loader.staged_loader import StagedLoader
from rhofast.data.loader.train_loader import _CPU
from rhofast.data.sampling.batch_plan import evaluation_plan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import AugmentPlan, ClipPlan, Position, Views
from rhofast.errors import SampleError


class EvalLoader(StagedLoader):
    """`views` uniform clips of every sample of this rank's part, each sample exactly once over all ranks; of each clip
    the central square, or three squares along the long side (`crops`).

    A bad sample is never replaced: it is left out, counted in `stats.bad` and named in `bad`.
    """

    __test__ = False  # not a test, whatever its name says to pytest

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
        bad_log: Path | None = None,
    ) -> None:
        """batch_size: videos a batch on this rank. crops: 1 or 3; a video has P = views * crops clips, crops innermost.
        samples: some of the set, each once; None: all of it, in order."""
        super().__init__(
            Mixture([shards]),
            augment,
            data,
            max_videos=batch_size,
            max_pictures=batch_size * views * crops * clips.num_frames,
            plain=True,
            device=device,
            dtype=dtype,
            quarantine=BadSampleLog(bad_log, None),
        )
        self.bad: list[SampleError] = []
        self._clip_section, self._views_of_each, self._crops, self._rank = clips, views, crops, rank
        count = len(shards) if samples is None else len(samples)
        first, last = (count * part // world_size for part in (rank, rank + 1))
        part = np.arange(first, last) if samples is None else samples[first:last]
        numbers = shards.starts.searchsorted(part, side="right") - 1
        self._shards_of_part = list(dict.fromkeys(numbers.tolist()))
        self._batches_of = [part[at : at + batch_size] for at in range(0, len(part), batch_size)]

    def __len__(self) -> int:
        """Batches on this rank, at most: one whose samples are all bad is left out."""
        return len(self._batches_of)

    def __next__(self) -> Views:
        """The next batch. Raises StopIteration at the end."""
        self._start(iter(self._batches_of), [iter(self._shards_of_part)])
        return self._next()

    def _plan(self, at: Int64Array) -> BatchInProgress:
        epochs = np.zeros_like(at)
        asked = self._ask(np.arange(len(at)), at, epochs)
        first = Position(epoch=0, position=int(at[0]))
        return BatchInProgress(at=first, whole=at, originals=at, epochs=epochs, places=at, standing=at, asked=asked)

    def _numbers(self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array) -> tuple[ClipPlan, AugmentPlan]:
        return evaluation_plan(rows, self._clip_section, self._views_of_each, self._crops)

    def _mend(self, draft: BatchInProgress, failed: Mapping[int, SampleError]) -> None:
        """They are named, and missing."""
        for slot, error in failed.items():
            self.bad.append(error)
            self._quarantine.add(error, int(draft.originals[slot]), {"rank": self._rank}, 0)
