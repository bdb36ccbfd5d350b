"""Recreate clips as training sees them: of any samples of a shard set, or of any batch of a run.

A batch is a function of the data, the configuration and its address (seed, epoch, position), so it can be computed
again. rendering.py draws the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rhofast.analysis.plan_text import describe_plan
from rhofast.analysis.rendering import DrawnClip, DrawnVideo
from rhofast.analysis.run_history import changes_since, read_run, start_of_step
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import AugmentConfig, ClipConfig, Config, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.reader import Reader
from rhofast.data.loader.batch import Batch, check_batch_values
from rhofast.data.loader.decoders import Decoders
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.batch_plan import training_plan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.data.sources import open_training
from rhofast.data.types import AugmentPlan, ClipPlan, Position
from rhofast.errors import ConfigError, ResumeError, ShardMissingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Clips to draw, with their description.

    Attributes:
        heading: Name and address of the clips, in phrases.
        samples: Numbers of all samples of the batch, in its order.
        videos: The drawn samples, which are the first of the batch.
        notes: One sentence per sample that replaces a bad one, with the reason.
        fps: Frames of a clip per second of the video.
    """

    heading: tuple[str, ...]
    samples: tuple[int, ...]
    videos: tuple[DrawnVideo, ...]
    notes: tuple[str, ...] = ()
    fps: float


def is_run(folder: Path) -> bool:
    """Return whether a folder belongs to a run, and not to a shard set."""
    return RunFolder(folder).config.is_file()


def augmented_clips(
    shards: ShardSet,
    *,
    clips: ClipConfig,
    augment: AugmentConfig,
    samples: Sequence[int],
    seed: int,
    epoch: int,
) -> Gallery:
    """Compute the augmented clips that training makes of some samples in an epoch.

    Args:
        shards: The shard set.
        clips: Section `clips` of the configuration.
        augment: Section `augment` of the configuration.
        samples: Sample numbers.
        seed: Seed of the run.
        epoch: Epoch of the plan.

    Returns:
        The clips.

    Raises:
        SampleError: If a sample cannot be read.
    """
    reader = Reader(shards)
    numbers = np.array(samples, dtype=np.int64)
    shards.load_indices({shards.locate(sample)[0] for sample in samples})
    rows = [reader.locate(sample) for sample in samples]
    augment = augment.model_copy(update={"mix": 0.0})  # whom a clip is mixed with follows from its batch
    clip_plan, augment_plan = training_plan(rows, numbers, clips, augment, seed=seed, epoch=epoch)
    requests = [reader.request(*asked) for asked in zip(samples, clip_plan.needed, rows, strict=True)]
    read = [reader.finish(request) for request in requests]
    decoders = Decoders(
        Mixture([shards]),
        augment,
        DataConfig(),
        max_videos=len(samples),
        max_pictures=clip_plan.frames.size,
        random_appearance=True,
        device_id=None,
        dtype=torch.float32,
    )
    batch = Batch(
        slots=np.arange(len(samples)), samples=numbers, rows=rows, clips=clip_plan, augment=augment_plan, read=read
    )
    pixels = decoders.finish(decoders.collect(decoders.start(batch)), augment_plan)
    frames = displayable(pixels, augment)
    classes = [shards.info.classes] * len(rows)
    return Gallery(
        heading=(shards.info.name, f"seed {seed}, epoch {epoch}"),
        samples=tuple(samples),
        videos=_drawn_videos(frames, rows, classes, clip_plan, augment_plan, notes={}),
        fps=_playback_fps(clips),
    )


def replay_batch(
    run: Path,
    *,
    step: int,
    rank: int = 0,
    world_size: int | None = None,
    count: int | None = None,
    overrides: Sequence[str] = (),
) -> Gallery:
    """Compute the batch again that a rank consumed in an optimizer step of a run.

    It is computed on the CPU. Pixels that a GPU has decoded may differ from it in the last bits.

    Args:
        run: Folder of the run.
        step: Optimizer step as in metrics.jsonl, from 1; step s consumes the s-th batch of the run.
        rank: The rank.
        world_size: Number of ranks. None means that of the run in this step; a number also allows steps that the run
            did not reach.
        count: Number of samples to draw, from the first. None means all.
        overrides: Settings `data.key=value`, such as the new location of the data.

    Returns:
        The clips.

    Raises:
        ConfigError: If the folder is not a run, the run did not do the step, or it has no such rank.
        ResumeError: If the data set is not that of the run.
        ShardError: If the data set cannot be opened.
        SampleError: If too few samples can be read.
    """
    config, lines = read_run(run, overrides)
    start = start_of_step(run, config, lines, step, any_step=world_size is not None)
    ranks = start.get("world_size", 1) if world_size is None else world_size
    if config.train.batch_size % ranks:
        raise ConfigError(f"--world-size {ranks}: must divide train.batch_size={config.train.batch_size}")
    if not 0 <= rank < ranks:
        raise ConfigError(f"--rank {rank}: must be in [0, {ranks - 1}]; step {step} of {run} ran on {ranks} rank(s)")
    check_batch_values(
        clips=config.train.batch_size // ranks * config.clips.num_clips,
        num_frames=config.clips.num_frames,
        size=config.augment.size,
        hint="only smaller batches can be computed again",
    )
    with _open_loader(run, config, rank, ranks) as loader:
        digest = loader.state_dict()["digest"]
        before = start.get("digest")
        if digest != before:
            raise ResumeError(
                f"{run}: the data set is not that of the run: its digest was {before}, and is {digest} now",
                hint="name the data set of the run: --set data.train=FOLDER",
            )
        epoch, number = divmod(step - 1, loader.steps_per_epoch)
        position = Position(epoch=epoch, position=number * config.train.batch_size)
        planned = loader.samples(position)[rank_slice(config.train.batch_size, rank, ranks)].tolist()
        replay = loader.replay(position)
        samples = tuple(sample.sample for sample in replay.samples)
        sets = [loader.shards.sets[loader.shards.locate(sample)[0]] for sample in samples]
    replacements = {slot: f"in place of sample {planned[slot]}: {reason}" for slot, reason in replay.replaced.items()}
    bad = {planned[slot]: reason for slot, reason in replay.replaced.items()}
    videos = _drawn_videos(
        displayable(replay.views.pixels[:count], config.augment),
        replay.rows,
        [shard_set.info.classes for shard_set in sets],
        replay.clips,
        replay.augment,
        notes=replacements,
    )
    return Gallery(
        heading=(
            f"{config.name}, step {step}, rank {rank} of {ranks}",
            f"seed {config.seed}, epoch {position.epoch}, position {position.position}",
        ),
        samples=samples,
        videos=videos,
        notes=(
            *(f"sample {samples[slot]} was used {reason}" for slot, reason in replacements.items()),
            *changes_since(run, position, set(planned), bad),
        ),
        fps=_playback_fps(config.clips),
    )


def displayable(pixels: torch.Tensor, augment: AugmentConfig) -> npt.NDArray[np.uint8]:
    """Convert normalized pixels to images.

    Args:
        pixels: f[B, P, C, T, H, W].
        augment: Section `augment` of the configuration, with mean and standard deviation.

    Returns:
        u8[B, P, T, H, W, C].
    """
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (augment.mean, augment.std))
    restored = (pixels.cpu().float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(restored.permute(0, 1, 3, 4, 5, 2).contiguous().numpy())


def _playback_fps(clips: ClipConfig) -> float:
    return clips.fps / clips.frame_stride


def _drawn_videos(
    frames: npt.NDArray[np.uint8],
    rows: Sequence[IndexRow],
    classes: Sequence[Sequence[str]],
    clips: ClipPlan,
    augment: AugmentPlan,
    *,
    notes: dict[int, str],
) -> tuple[DrawnVideo, ...]:
    """Combine frames with captions.

    Args:
        frames: u8[B, P, T, H, W, 3] of the first B samples of the batch.
        rows: Index row per sample of the batch.
        classes: Class names of the set of each sample.
        clips: Clip plan of the batch.
        augment: Augmentation plan of the batch.
        notes: Note per index of a sample in the batch.

    Returns:
        One entry per sample in `frames`.
    """
    videos = []
    for b, clips_of_video in enumerate(frames):
        row = rows[b]
        label = () if row.label is None else (classes[b][row.label],)
        videos.append(
            DrawnVideo(
                title=(row.key, *label, f"{row.num_frames} frames, {row.fps:g} fps"),
                note=notes.get(b),
                clips=tuple(
                    DrawnClip(frames=clip, caption=describe_plan(clips, augment, b, p, fps=row.fps))
                    for p, clip in enumerate(clips_of_video)
                ),
            )
        )
    return tuple(videos)


def _open_loader(run: Path, config: Config, rank: int, world_size: int) -> TrainLoader:
    data = config.data.model_copy(update={"max_bad": 1.0})  # Bad samples are reported here, however many there are.
    try:
        sources = open_training(data, world_size=world_size)
    except ShardMissingError as error:
        raise ShardMissingError(
            f"{run}: the data set of the run cannot be opened: {error.message}",
            hint="if it has moved: --set data.train=FOLDER",
        ) from None
    return TrainLoader(
        Mixture(sources.sets, sources.weights),
        clips=config.clips,
        augment=config.augment,
        data=data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
    )
