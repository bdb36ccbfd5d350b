"""Loaders of clips around key frames, with the boxes of persons in them: one for training, one for testing.

    key frames --KeyFrameMixture--> order, lanes, resume: those of samples
    clips around them --the stages of every loader--> pixels;  the plan's crop and flip --> boxes in pixels of the clip

Training cuts random squares, as the config says. Testing cuts nothing: a clip is the whole frame. Videos have different
shapes, so a batch of the test has key frames of videos of one shape. Batches are formed before they are divided among
ranks, so that each is computed alike whatever the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.decode.finish import copy_to_device
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.key_frames import KeyFrames
from rhofast.data.loader.batch import Batch, Int64Array, check_batch_values
from rhofast.data.loader.batch_planner import ListedBatchPlanner, TrainingPlanner
from rhofast.data.loader.eval_loader import ListedBatchLoader
from rhofast.data.loader.fields import BatchFields
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.batch_plan import geometry_of, key_frame_evaluation_plan, key_frame_training_plan
from rhofast.data.sampling.key_frames import KeyFrameMixture, boxes_in_clips, whole_size
from rhofast.data.types import AugmentPlan, ClipPlan, Views
from rhofast.errors import ConfigError

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, repr=False, slots=True)
class BoxViews(Views):
    """A batch of clips around key frames; `sample` holds the numbers of the key frames.

    Attributes:
        boxes: Place of its clip in the batch, left, top, right and bottom in pixels of the clip, f32[N, 5].
        box: Numbers of the boxes in `KeyFrames`, i64[N].
        targets: Which actions each box shows, f32[N, NUM_ACTIONS] of 0 and 1.
    """

    boxes: torch.Tensor
    box: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFields(BatchFields):
    """The boxes that a batch has besides pixels and numbers.

    Attributes:
        key_frames: Key frames and boxes.
        size: Side of the clips in pixels, where plans do not say it.
    """

    key_frames: KeyFrames
    size: int

    def views(self, pixels: torch.Tensor, batch: Batch, device: torch.device) -> BoxViews:
        """Return what the consumer gets of a batch.

        Args:
            pixels: Its pixels [B, 1, C, T, H, W], on the device.
            batch: The batch.
            device: The device.
        """
        place, box = self.key_frames.boxes_of(batch.samples)
        frame_size = np.array([(row.width, row.height) for row in batch.rows], dtype=np.int32)
        moved = boxes_in_clips(self.key_frames.boxes[box], place, batch.augment, frame_size, self.size)
        plain = BatchFields.views(self, pixels, batch, device)  # super() does not know a class with slots
        return BoxViews(
            **dict(plain),
            boxes=copy_to_device(torch.from_numpy(np.column_stack([place.astype(np.float32), moved])), device),
            box=copy_to_device(torch.from_numpy(box), device),
            targets=copy_to_device(torch.from_numpy(self.key_frames.targets(box)), device),
        )


class _KeyFrameTrainingPlanner(TrainingPlanner):
    """Plans random augmentations of clips around key frames."""

    def __init__(self, *given: Any, key_frames: KeyFrames, **options: Any) -> None:
        super().__init__(*given, **options)
        self._key_frames = key_frames

    def plan(
        self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array, earlier: Int64Array
    ) -> tuple[ClipPlan, AugmentPlan]:
        """Plan the clips of key frames, which `samples` numbers."""
        return key_frame_training_plan(
            rows,
            samples,
            self._key_frames.frame[samples],
            self._clips,
            self._augment,
            seed=self._seed,
            epoch=epochs,
        )


class BoxTrainLoader(TrainLoader):
    """Training batches of clips around key frames: order, resume and bad samples are those of TrainLoader.

    A bad sample is replaced by another key frame.

    Args:
        shards: The shard set.
        key_frames: The key frames to train on, and their boxes.
        clips: Options of clips: length, stride and frame rate.
        augment: Options of augmentation. Differences in time, RandAugment and mixing are not offered.
        data: Options of loading.
        batch_size: Key frames per global batch.
        seed: Seed of order and augmentation.
        rank: This rank.
        world_size: Number of ranks.
        device: Device of the views.
        dtype: Type of the pixels: float32, or float16 on a GPU.
        bad_log: File to which a line of JSON is appended per bad sample; None for no file.

    Raises:
        ConfigError: As TrainLoader; or the list of samples has weights, or an augmentation that is not offered is on.
    """

    def __init__(
        self,
        shards: ShardSet,
        key_frames: KeyFrames,
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
    ) -> None:
        _check_training(shards, augment)
        super().__init__(
            KeyFrameMixture(shards, key_frames),
            clips=clips.model_copy(update={"num_clips": 1}),
            augment=augment,
            data=data,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=device,
            dtype=dtype,
            fields=BoxFields(key_frames=key_frames, size=augment.size),
            bad_log=bad_log,
            duplicate_single_clip=False,
            planner=partial(_KeyFrameTrainingPlanner, key_frames=key_frames),
        )

    def __next__(self) -> BoxViews:
        """Return the next batch; raises as TrainLoader does."""
        views = super().__next__()
        assert isinstance(views, BoxViews)
        return views


def _check_training(shards: ShardSet, augment: AugmentConfig) -> None:
    """Raise ConfigError for a list with weights, and for an augmentation that boxes do not follow."""
    if shards.part is not None and shards.part.rates is not None:
        raise ConfigError(
            f"{shards.where}: key frames are visited equally often; the list of samples has weights",
            hint="leave out its column `weight`",
        )
    if augment.difference:
        raise ConfigError(
            f"augment.difference={augment.difference:g}: clips with boxes show no differences in time",
            hint="--set augment.difference=0",
        )
    if augment.rand_ops or augment.mixes:
        option = f"augment.rand_ops={augment.rand_ops}" if augment.rand_ops else f"augment.mix={augment.mix:g}"
        raise ConfigError(
            f"{option}: boxes do not follow what RandAugment moves, nor into clips that are mixed",
            hint="--set augment.rand_ops=0 --set augment.mix=0",
        )


class _KeyFrameEvaluationPlanner(ListedBatchPlanner):
    """Plans batches of whole frames of one shape, which are given by their key frames."""

    sizes = True

    def __init__(
        self, shards: ShardSet, key_frames: KeyFrames, clips: ClipConfig, *, batches: list[Int64Array], short_side: int
    ) -> None:
        samples = np.concatenate([key_frames.sample[batch] for batch in batches] or [np.zeros(0, dtype=np.int64)])
        super().__init__(batches, samples, shards)
        self._key_frames, self._clips, self._short_side = key_frames, clips, short_side

    def plan(
        self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array, earlier: Int64Array
    ) -> tuple[ClipPlan, AugmentPlan]:
        """Plan the clips of key frames, which `samples` numbers; nothing is random."""
        centers = self._key_frames.frame[samples]
        return key_frame_evaluation_plan(rows, centers, self._clips, short_side=self._short_side)


class BoxEvalLoader(ListedBatchLoader):
    """Whole frames around every key frame, each exactly once over all ranks; batch by batch of one shape.

    Args:
        shards: The shard set.
        key_frames: The key frames to test on, and their boxes.
        clips: Options of clips: length, stride and frame rate.
        augment: Options of augmentation: `size` is the short side; normalization.
        data: Options of loading.
        batch_size: Key frames per batch, at most.
        rank: This rank.
        world_size: Number of ranks.
        device: Device of the views.
        dtype: Type of the pixels: float32, or float16 on a GPU.

    Attributes:
        batches: The key frames of each batch of this rank, i64[B] each.

    Raises:
        ConfigError: A decoder is not available, or a batch has more than MAX_BATCH_VALUES values.
        ShardError: An index cannot be read.
    """

    def __init__(
        self,
        shards: ShardSet,
        key_frames: KeyFrames,
        *,
        clips: ClipConfig,
        augment: AugmentConfig,
        data: DataConfig,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shapes = clip_shapes(shards, key_frames, augment.size)
        check_batch_values(
            clips=batch_size,
            num_frames=clips.num_frames,
            size=int(np.ceil(np.sqrt(shapes.prod(axis=1).max(initial=1)))),
            hint="decrease eval.batch_size, clips.num_frames or eval.test_size",
        )
        batches = batches_by_shape(shapes, batch_size)
        first, end = (len(batches) * part // world_size for part in (rank, rank + 1))
        self.batches = batches[first:end]
        super().__init__(
            KeyFrameMixture(shards, key_frames),
            _KeyFrameEvaluationPlanner(shards, key_frames, clips, batches=self.batches, short_side=augment.size),
            rank=rank,
            augment=augment,
            data=data,
            fields=BoxFields(key_frames=key_frames, size=augment.size),
            max_videos=batch_size,
            max_pictures=batch_size * clips.num_frames,
            device=device,
            dtype=dtype,
        )

    def __next__(self) -> BoxViews:
        """Return the next batch; raises as EvalLoader does."""
        views = super().__next__()
        assert isinstance(views, BoxViews)
        return views


def clip_shapes(shards: ShardSet, key_frames: KeyFrames, short_side: int) -> Int64Array:
    """Return width and height of the test clip of each key frame in pixels, i64[K, 2].

    Args:
        shards: The shard set.
        key_frames: The key frames.
        short_side: Short side of the clips in pixels.

    Raises:
        ShardError: An index cannot be read.
    """
    samples, which = np.unique(key_frames.sample, return_inverse=True)
    if not len(samples):
        return np.zeros((0, 2), dtype=np.int64)
    return whole_size(geometry_of([shards.row(sample) for sample in samples.tolist()]), short_side)[which].astype(
        np.int64
    )


def batches_by_shape(shapes: Int64Array, batch_size: int) -> list[Int64Array]:
    """Divide items into batches of one shape.

    Args:
        shapes: Shape of each item, i64[K, 2].
        batch_size: Items per batch, at most; only the last batch of a shape has fewer.

    Returns:
        The items of each batch, ascending; batches by their first item, so that data are read nearly in order.
    """
    batches: list[Int64Array] = []
    for shape in np.unique(shapes, axis=0):
        items = np.flatnonzero((shapes == shape).all(axis=1))
        batches += [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return sorted(batches, key=lambda items: int(items[0]))
