"""The training loader and the test loader: which batches there are, and what becomes of a bad sample.

    TrainLoader        endless; position, resume, replay; a bad sample is replaced
    EvalLoader    every sample once; a bad sample is left out and named

The way from a position to views is in stages.py. A batch is a pure function of (dataset digest, config, seed, epoch,
position): no thread, rank or history has a say in it. Ranks are sliced here; do not give a loader to
`accelerator.prepare`, which would slice again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.loader.bad_samples import BadSampleLog
from rhofast.data.loader.batch import Batch, BatchInProgress, Int64Array, Replay
from rhofast.data.loader.staged_loader import StagedLoader
from rhofast.data.sampling.batch_plan import training_plan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sampling.rng import Stream, uniform
from rhofast.data.sampling.shuffle import lanes_of, rank_slice
from rhofast.data.types import AugmentPlan, ClipPlan, Position, Views
from rhofast.errors import ConfigError, ResumeError, SampleError

STATE_VERSION = 4
_CPU = torch.device("cpu")


class TrainLoader(StagedLoader):
    """Endless training batches of one rank, in the order of (seed, epoch, position).

    shards: one set, or several with weights. batch_size is the global one, in videos. `next(loader)` gives Views with
    B = batch_size / world_size. A bad sample is replaced by another one, the same on every rank and in every
    repetition, and named in `bad_log` (JSON lines). Raises ConfigError if the batch does not fit the data or the ranks.
    """

    def __init__(
        self,
        shards: ShardSet | Mixture,
        *,
        clips: ClipConfig,
        augment: AugmentConfig,
        data: DataConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        bad_log: Path | None = None,
        duplicate_single_clip: bool = True,
    ) -> None:
        """duplicate_single_clip: two views of the same frames where `clips.num_clips` is 1; off: one, as training by
        labels wants."""
        mixture = Mixture([shards]) if isinstance(shards, ShardSet) else shards
        try:
            self._order = mixture.order(
                seed=seed, block_shards=data.block_shards, lanes=data.lanes, fixed_lanes=data.fixed_lanes
            )
        except ValueError as error:
            raise ConfigError(f"data.lanes: {error}", hint="choose fewer --set data.lanes=...") from None
        try:
            self.steps_per_epoch = self._order.steps_per_epoch(batch_size)
            self._slice = rank_slice(batch_size, rank, world_size)
        except ValueError as error:
            raise ConfigError(f"train.batch_size: {error}", hint="choose another --set train.batch_size=...") from None
        self._lanes = lanes_of(range(rank, rank + 1), world_size, data.lanes)
        share = batch_size // world_size
        views = max(2, clips.num_clips) if duplicate_single_clip else clips.num_clips
        super().__init__(
            mixture,
            augment,
            data,
            max_videos=share,
            max_pictures=share * views * clips.num_frames,
            plain=False,
            device=device,
            dtype=dtype,
            quarantine=BadSampleLog(bad_log, data.max_bad),
        )
        self._clip_section, self._augment_section, self._duplicate = clips, augment, duplicate_single_clip
        self._batch_size, self._seed, self._rank = batch_size, seed, rank
        self._next_position = Position(epoch=0, position=0)
        self._planned_samples = 0

    def __next__(self) -> Views:
        """The next batch. Raises what reading or decoding raised: SampleError and its kinds, ShardError."""
        at = self._next_position
        self._start(self._positions(at), self._order.shards_from(at, self._batch_size, self._lanes))
        views = self._next()
        self._next_position = self._order.after(self._next_position, self._batch_size)
        return views

    def replay(self, at: Position) -> Replay:
        """This rank's batch at a position, as training got it. Before the first `next` only; raises as that does."""
        if self._conveyor is not None:
            raise ValueError("a loader that has begun replays nothing")
        draft = self._read(self._plan(self._order.normalized(at, self._batch_size)))
        decoded = None if draft is None else self._decode(draft)
        assert decoded is not None  # training leaves nothing out
        done = self._finish(decoded)
        self._hand_over(done)
        batch = done.batch
        return Replay(
            views=done.views,
            samples=batch.read,
            rows=batch.rows,
            clips=batch.clips,
            augment=batch.augment,
            replaced=done.replaced,
        )

    @property
    def position(self) -> Position:
        """Of the batch that `next` will give."""
        return self._next_position

    def state_dict(self) -> dict[str, Any]:
        """What continues after the last batch that the consumer got, on any number of ranks."""
        return {**self._identity(), **asdict(self._next_position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Call it before the first `next`. Raises ResumeError with a sentence a mismatch."""
        if self._conveyor is not None:
            raise ResumeError("a loader that has begun cannot take another position")
        wrong = [
            f"{key} was {state.get(key)!r}, is {value!r}"
            for key, value in self._identity().items()
            if state.get(key) != value
        ]
        if wrong:
            raise ResumeError("the data does not fit the checkpoint: " + "; ".join(wrong))
        self._next_position = Position(epoch=int(state["epoch"]), position=int(state["position"]))

    def samples(self, at: Position) -> Int64Array:
        """The samples of the whole global batch at a position, before any is replaced: i64[batch_size]."""
        return self._order.batch(at, self._batch_size)[0]

    def _identity(self) -> dict[str, Any]:
        """What a position means nothing without."""
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "digest": self.shards.digest,
            "block_shards": self._data.block_shards,
            "lanes": self._data.lanes,
            "fixed_lanes": self._data.fixed_lanes,
        }

    def _positions(self, at: Position) -> Iterator[Position]:
        at = self._order.normalized(at, self._batch_size)
        while True:
            yield at
            at = self._order.after(at, self._batch_size)

    def _plan(self, at: Position) -> BatchInProgress:
        whole, epochs, places = self._order.batch(at, self._batch_size)
        originals, epochs, places = whole[self._slice], epochs[self._slice], places[self._slice]
        asked = self._ask(np.arange(len(originals)), originals, epochs)
        return BatchInProgress(
            at=at,
            whole=whole,
            originals=originals,
            epochs=epochs,
            places=places,
            standing=originals.copy(),
            asked=asked,
        )

    def _numbers(self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array) -> tuple[ClipPlan, AugmentPlan]:
        clips, augment = self._clip_section, self._augment_section
        return training_plan(
            rows,
            samples,
            clips,
            augment,
            seed=self._seed,
            epoch=epochs,
            duplicate_single_clip=self._duplicate,
        )

    def _read(self, draft: BatchInProgress) -> BatchInProgress | None:
        self._planned_samples += len(draft.originals)
        return super()._read(draft)

    def _mend(self, draft: BatchInProgress, failed: Mapping[int, SampleError]) -> None:
        """Others stand in for them, until all can be read."""
        while failed:
            slots = np.array(list(failed), dtype=np.int64)
            for slot, error in failed.items():
                where = {"rank": self._rank, **asdict(draft.at)}
                self._quarantine.add(error, int(draft.standing[slot]), where, self._planned_samples)
                draft.replaced.setdefault(slot, str(error))
                draft.standing[slot] = self._stand_in(draft, slot)
            batch, failed = self._collect(self._ask(slots, draft.standing[slots], draft.epochs[slots]))
            draft.batch = batch if draft.batch is None else Batch.join([draft.batch, batch])

    def _stand_in(self, draft: BatchInProgress, slot: int) -> int:
        """The next candidate that stands in for a slot's sample in its epoch: of the same set, and of the same block of
        shards where there are blocks; not one of the same batch, unless there is no other."""
        sample, epoch, place = (int(of[slot]) for of in (draft.originals, draft.epochs, draft.places))
        number, _ = self.shards.locate(sample)
        candidates = self._order.beside(number, epoch, place)
        while True:
            draft.attempts[slot] = attempt = draft.attempts.get(slot, 0) + 1
            draws = uniform(self._seed, epoch, sample, Stream.REPLACEMENT, attempt)
            candidate = self._order.sample(number, epoch, candidates[int(draws[-1] * len(candidates))])
            if candidate not in draft.whole or len(candidates) <= len(draft.whole):
                return candidate
