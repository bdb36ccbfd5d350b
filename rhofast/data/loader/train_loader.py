"""The training loader: batches without end; a bad sample is replaced; any batch can be resumed from and made again.

A batch is a pure function of (dataset digest, config, seed, epoch, position): threads, ranks and history do not matter
to it. The one exception are low bits of JPEG files that a GPU decodes with `data.hw_decoder_load` between 0 and 1.
Every rank takes its slice of the global batch; `accelerator.prepare` must not get a DataLoader around the loader, since
it would slice again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.bad_samples import BadSampleLog, ReplaceBadSamples
from rhofast.data.loader.batch import Int64Array, Replay
from rhofast.data.loader.batch_planner import TrainingPlanner
from rhofast.data.loader.fields import BatchFields, parse_fields
from rhofast.data.loader.staged_loader import StagedLoader
from rhofast.data.sampling.mixture import Mixture, MixtureOrder
from rhofast.data.sampling.shuffle import lanes_of, rank_slice
from rhofast.data.types import Position, Views
from rhofast.errors import ConfigError, ResumeError

STATE_VERSION = 5
_MAX_EPOCH = 1 << 31
_CPU = torch.device("cpu")


class TrainLoader(StagedLoader):
    """Training batches of one rank, in the order of (seed, epoch, position).

    `next(loader)` returns Views with B = batch_size / world_size, and goes on through the epochs without end. A bad
    sample is replaced by another one, the same on every rank and in every repetition.

    In a `for` loop it behaves like a torch DataLoader, or a StatefulDataLoader of torchdata: the loop is over the rest
    of the epoch in which the loader stands, `len(loader)` is the number of batches of a whole epoch, and `state_dict`
    is where the next batch is. A loop that is left early leaves the loader where it is: the next one continues the
    same epoch.

    Args:
        shards: A shard set, or a mixture of several with weights.
        clips: Options of clips.
        augment: Options of augmentation.
        data: Options of loading.
        batch_size: Videos per global batch.
        seed: Seed of order, clips and augmentation.
        rank: This rank.
        world_size: Number of ranks.
        device: Device of the views.
        dtype: Type of the pixels: float32, or float16 on a GPU.
        fields: Fields of the samples that batches have besides, by name (see `parse_fields`).
        bad_log: File to which a line of JSON is appended per bad sample; None for no file.
        duplicate_single_clip: Whether `clips.num_clips` = 1 gives two views of the same frames, as pretraining wants;
            training by labels wants one.
        planner: Builds the planner; its arguments are those of TrainingPlanner.

    Attributes:
        steps_per_epoch: Global batches per epoch.

    Raises:
        ConfigError: The batch does not fit the data, the ranks or the lanes, a decoder is not available, or the data
            lacks a field.
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
        fields: Sequence[str] | BatchFields = (),
        bad_log: Path | None = None,
        duplicate_single_clip: bool = True,
        planner: Callable[..., TrainingPlanner] = TrainingPlanner,
    ) -> None:
        mixture = Mixture([shards]) if isinstance(shards, ShardSet) else shards
        order = _order_of(mixture, data, seed)
        try:
            self.steps_per_epoch = order.steps_per_epoch(batch_size)
            share = rank_slice(batch_size, rank, world_size)
        except ValueError as error:
            step = math.lcm(world_size * (2 if augment.mixes else 1), data.lanes)
            hint = _fitting_batch(batch_size, len(mixture), step)
            raise ConfigError(f"train.batch_size={batch_size}: {error}", hint=hint) from None
        _check_pairs(augment, batch_size, world_size)
        videos = batch_size // world_size
        views = max(2, clips.num_clips) if duplicate_single_clip else clips.num_clips
        self._training_planner = planner(
            order,
            clips,
            augment,
            batch_size=batch_size,
            share=share,
            seed=seed,
            duplicate_single_clip=duplicate_single_clip,
        )
        log = BadSampleLog(bad_log, data.max_bad)
        super().__init__(
            mixture,
            self._training_planner,
            ReplaceBadSamples(log, rank, data=mixture, order=order, seed=seed),
            augment=augment,
            data=data,
            fields=parse_fields(fields, mixture.sets, clips=videos * views),
            max_videos=videos,
            max_pictures=videos * views * clips.num_frames,
            device=device,
            dtype=dtype,
        )
        self._order, self._batch_size, self._seed = order, batch_size, seed
        self._lanes = lanes_of(range(rank, rank + 1), world_size, data.lanes)
        self._position = Position(epoch=0, position=0)

    def __repr__(self) -> str:
        at = f"at epoch {self._position.epoch}, sample {self._position.position:,}"
        return f"TrainLoader({self.shards!r}, {self.steps_per_epoch:,} batches of {self._batch_size:,} per epoch, {at})"

    def __len__(self) -> int:
        """Return the number of batches per epoch, on this rank as on every other."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Views]:
        """Return the batches that are left of the epoch: all of them, or fewer after a resume in the middle."""
        for _ in range(self.steps_left):
            try:
                views = next(self)
            except StopIteration:
                raise ValueError("the loader is closed, or has ended with an error") from None
            yield views

    def __next__(self) -> Views:
        """Return the next batch, through the epochs without end.

        Raises:
            SampleError: A sample is bad and no other takes its place, or too many are.
            ShardError: The data as a whole cannot be read.
        """
        shard_orders = self._order.shards_from(self._position, self._batch_size, self._lanes)
        self._start(self._training_planner.positions(self._position), shard_orders)
        views = self._next()
        self._position = self._order.after(self._position, self._batch_size)
        return views

    def replay(self, at: Position) -> Replay:
        """Make this rank's batch at a position again, as training got it. Only before the first `next`.

        Raises:
            SampleError: As `next` does.
            ShardError: As `next` does.
            ValueError: The loader has started.
        """
        if self.started:
            raise ValueError("a loader that has started replays nothing")
        finished = self._make(self._order.normalized(at, self._batch_size))
        assert finished is not None, "training replaces samples and leaves none out"
        batch = finished.batch
        return Replay(
            views=finished.views,
            samples=batch.read,
            rows=batch.rows,
            clips=batch.clips,
            augment=batch.augment,
            replaced=finished.replaced,
        )

    @property
    def position(self) -> Position:
        """Position of the batch that `next` will return."""
        return self._position

    @property
    def steps_left(self) -> int:
        """Number of global batches that are left of the current epoch, in [1, steps_per_epoch]."""
        at = self._order.normalized(self._position, self._batch_size)
        return (len(self.shards) - at.position) // self._batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which any number of ranks continues after the last batch that was returned."""
        return {**self._identity(), **asdict(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; what was fetched ahead is dropped.

        Raises:
            ResumeError: The state is of other data or options (one sentence per mismatch).
            ValueError: The loader is closed.
        """
        wrong = {
            key: f"{key} was {repr(state.get(key))[:80]}, is {value!r}"
            for key, value in self._identity().items()
            if state.get(key) != value
        }
        if wrong:
            other_list = "keep" in wrong
            if other_list:
                wrong.pop("digest", None)  # it follows from the list
            raise ResumeError(
                "the data does not fit the checkpoint: " + "; ".join(wrong.values()),
                hint="name the list of samples that the run began with, or begin a new run" if other_list else None,
            )
        numbers = {}
        for key, limit in (("epoch", _MAX_EPOCH), ("position", len(self.shards) + 1)):
            value = state.get(key)
            if type(value) is not int or not 0 <= value < limit:
                raise ResumeError(
                    f"the data does not fit the checkpoint: loader.{key}={repr(value)[:80]} must be in [0, {limit})"
                )
            numbers[key] = value
        self._restart()
        self._position = Position(**numbers)

    def samples(self, at: Position) -> Int64Array:
        """Return the samples of the global batch at a position, before any is replaced, i64[batch_size]."""
        return self._order.batch(at, self._batch_size).samples

    def _identity(self) -> dict[str, Any]:
        """Return what a position is relative to."""
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "digest": self.shards.digest,
            "keep": self.shards.parts,
            "block_shards": self._data.block_shards,
            "lanes": self._data.lanes,
            "fixed_lanes": self._data.fixed_lanes,
        }


def _order_of(mixture: Mixture, data: DataConfig, seed: int) -> MixtureOrder:
    """Return the order of the samples of a run; raise ConfigError if a set is empty or has too few shards for lanes."""
    for one in mixture.sets:
        if len(one) == 0:
            raise ConfigError(f"{one.where}: the set has no samples", hint="choose another: --set data.train=FOLDER")
    try:
        return mixture.order(seed=seed, block_shards=data.block_shards, lanes=data.lanes, fixed_lanes=data.fixed_lanes)
    except ValueError as error:
        raise ConfigError(f"data.lanes={data.lanes}: {error}", hint="choose fewer: --set data.lanes=...") from None


def _fitting_batch(batch_size: int, num_samples: int, step: int) -> str:
    """Return the hint that names the nearest batch that fits.

    Args:
        batch_size: Size of the batch that does not fit.
        num_samples: Number of samples of an epoch.
        step: Every batch must be a multiple of this: of ranks, lanes, and pairs if videos are mixed.
    """
    if step > num_samples:
        return f"a batch has at least {step} videos here: use more videos, or fewer processes and lanes"
    fits = min(batch_size, num_samples) // step * step
    which = "the largest that fits" if fits else "the smallest that fits"
    return f"take {fits or step}, {which}: --set train.batch_size={fits or step}"


def _check_pairs(augment: AugmentConfig, batch_size: int, world_size: int) -> None:
    """Raise ConfigError where videos are to be mixed and a rank has one without a partner."""
    videos = batch_size // world_size
    if augment.mixes and videos % 2:
        raise ConfigError(
            f"augment.mixup={augment.mixup:g}, augment.cutmix={augment.cutmix:g}: videos are mixed in pairs, and "
            f"train.batch_size={batch_size} over {world_size} rank(s) leaves {videos} to each",
            hint=f"take a multiple of {2 * world_size}",
        )
