"""Looking at clips as training sees them: of any samples of a shard set, or of any batch that a run was trained on.

A batch is a function of the data, the configuration and its address (seed, epoch, position), so nothing of it needs to
have been kept: it is made again. What it is not: it draws nothing itself (pictures.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rhofast.analysis.rendering import Group, Strip
from rhofast.checkpoint.checkpoint import latest_checkpoint, step_of
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import override_config, parse_config
from rhofast.config.schema import AugmentConfig, ClipConfig, Config
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.augment import LUMA
from rhofast.data.sampling.batch_plan import training_plan
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.data.sources import open_training
from rhofast.data.types import AugmentPlan, ClipPlan, Position
from rhofast.errors import ConfigError, ResumeError, ShardMissingError
from rhofast.training.metrics_file import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Clips to be drawn, and what is to be said of them.

    heading  what they are and their address, in phrases
    samples  the numbers of all samples of the batch, in its order
    groups   the first of them
    notes    where a sample stands in for a bad one, and why: a sentence each
    fps      frames of a clip that fill one second of the video
    """

    heading: tuple[str, ...]
    samples: tuple[int, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    fps: float


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, and not a shard set's."""
    return RunFolder(folder).config.is_file()


def show_clips(
    shards: ShardSet,
    *,
    clips: ClipConfig,
    augment: AugmentConfig,
    samples: Sequence[int],
    seed: int,
    epoch: int,
) -> Shown:
    """The augmented clips that training makes of these samples in an epoch. Raises SampleError."""
    reader = Reader(shards)
    numbers = np.array(samples, dtype=np.int64)
    rows = [reader.locate(sample) for sample in samples]
    clip_plan, augment_plan = training_plan(rows, numbers, clips, augment, seed=seed, epoch=epoch)
    read = [reader.read(*one) for one in zip(samples, clip_plan.needed, rows, strict=True)]
    decoded = not reader.codec.pictures
    pipeline = DecodePipeline(
        augment,
        max_pictures=clip_plan.frames.size,
        color=True,
        blur=True,
        difference=augment.difference > 0,
        threads=2,
        decoded=decoded,
    )
    frames = displayable(pipeline.run(read, clip_plan, augment_plan), augment)
    classes = [shards.info.classes] * len(rows)
    return Shown(
        heading=(shards.info.name, f"seed {seed}, epoch {epoch}"),
        samples=tuple(samples),
        groups=_groups(frames, rows, classes, clip_plan, augment_plan, notes={}),
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
) -> Shown:
    """The batch that `rank` consumed in optimizer step `step` of a run, made again on the CPU (pixels that a GPU has
    decoded differ from it in the last bits).

    step: as metrics.jsonl counts, from 1: step s consumes the s-th batch of the run. world_size: None for that with
    which the run went through the step; otherwise any batch is shown, also one that the run did not come to. count: how
    many samples are drawn, from the first; None for all. overrides: where the data are now, `data.key=value`.

    Raises ConfigError for a folder that is no run, a step that it did not do, a rank that it did not have; ResumeError
    where the data are not the run's; ShardError where they cannot be opened, SampleError.
    """
    config, lines = _open_run(run, overrides)
    start = _start_of(run, config, lines, step, any_step=world_size is not None)
    ranks = start["world_size"] if world_size is None else world_size
    if config.train.batch_size % ranks:
        raise ConfigError(f"--world-size {ranks}: does not divide the batch of {config.train.batch_size} samples")
    if not 0 <= rank < ranks:
        shared = "1 rank" if ranks == 1 else f"{ranks} ranks"
        raise ConfigError(f"--rank {rank}: step {step} of {run} has {shared}, from 0 to {ranks - 1}")
    with _open_loader(run, config, rank, ranks) as loader:
        digest = loader.state_dict()["digest"]
        if digest != start["digest"]:
            raise ResumeError(
                f"{run}: the data are not those that it was trained on: the digest was {start['digest']}, is {digest}",
                hint="give the set that it was trained on: --set data.train=FOLDER",
            )
        epoch, number = divmod(step - 1, loader.steps_per_epoch)
        at = Position(epoch=epoch, position=number * config.train.batch_size)
        planned = loader.samples(at)[rank_slice(config.train.batch_size, rank, ranks)].tolist()
        replay = loader.replay(at)
        samples = tuple(sample.sample for sample in replay.samples)
        sets = [loader.shards.sets[loader.shards.locate(sample)[0]] for sample in samples]
    instead = {slot: f"in place of sample {planned[slot]}: {reason}" for slot, reason in replay.replaced.items()}
    bad = {planned[slot]: reason for slot, reason in replay.replaced.items()}
    groups = _groups(
        displayable(replay.views.pixels[:count], config.augment),
        replay.rows,
        [one.info.classes for one in sets],
        replay.clips,
        replay.augment,
        notes=instead,
    )
    return Shown(
        heading=(
            f"{config.name}, step {step}, rank {rank} of {ranks}",
            f"seed {config.seed}, epoch {at.epoch}, position {at.position}",
        ),
        samples=samples,
        groups=groups,
        notes=(
            *(f"sample {samples[slot]} stands {reason}" for slot, reason in instead.items()),
            *_changed_since(run, at, set(planned), bad),
        ),
        fps=_playback_fps(config.clips),
    )


def displayable(pixels: torch.Tensor, augment: AugmentConfig) -> npt.NDArray[np.uint8]:
    """Normalized pixels [B, P, C, T, H, W] as u8[B, P, T, H, W, C]."""
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (augment.mean, augment.std))
    restored = (pixels.cpu().float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(restored.permute(0, 1, 3, 4, 5, 2).contiguous().numpy())


def plan_words(clips: ClipPlan, augment: AugmentPlan, b: int, p: int, *, fps: float) -> tuple[str, ...]:
    """The numbers of one clip's plan, in phrases. fps: of the stored video."""
    frames = clips.frames[b, p]
    left, top, width, height = (int(value) for value in augment.crop[b, p])
    words = [
        f"frames {' '.join(map(str, frames))}",
        f"{frames.min() / fps:.1f}-{frames.max() / fps:.1f} s",
        f"crop {width}x{height} at {left},{top}",
    ]
    if augment.flip[b, p]:
        words.append("flipped")
    if augment.difference is not None and augment.difference[b, p]:
        words.append("difference")
    words += color_words(augment.color[b, p])
    if augment.blur[b, p] > 0:
        words.append(f"blur {augment.blur[b, p]:.1f} px")
    return tuple(words)


def color_words(color: npt.NDArray[np.float32]) -> list[str]:
    """What a color matrix f32[3, 4] does, in phrases; none where it leaves colors as they are.

    Grays stay gray under every operation of augment.py, and the linear parts commute, so the composed map is known by
    five numbers: grays are multiplied by a gain (brightness times contrast) and shifted by an offset (contrast), and
    what lies around the gray axis is scaled (saturation) and turned (hue). The matrix has the eigenvalues g and
    g s exp(+-i h), so its trace is g + 2 g s cos h and its determinant g (g s)^2.
    """
    matrix, offset = color[:, :3].astype(np.float64), float(LUMA @ color[:, 3])
    gain = float(LUMA @ matrix.sum(axis=1))
    words = []
    if abs(gain - 1) > 5e-3 or abs(offset) > 0.5:
        words.append(f"luma x{gain:.2f} {offset:+.0f}")
    if gain < 1e-3:
        return words
    around = math.sqrt(max(float(np.linalg.det(matrix)) / gain, 0.0))  # gain times saturation
    if around < 1e-2 * gain:
        return ["gray", *words]
    if abs(around / gain - 1) > 5e-3:
        words.append(f"saturation x{around / gain:.2f}")
    cosine = (float(np.trace(matrix)) - gain) / (2 * around)
    turned = matrix @ np.array([1.0, 0.0, 0.0])
    angle = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
    if angle > 0.5:  # toward green, as red turns to yellow, or toward blue
        words.append(f"hue {math.copysign(angle, turned[1] - turned[2]):+.0f}°")
    return words


def _playback_fps(clips: ClipConfig) -> float:
    return clips.fps / clips.frame_stride


def _groups(
    frames: npt.NDArray[np.uint8],
    rows: Sequence[IndexRow],
    classes: Sequence[Sequence[str]],
    clips: ClipPlan,
    augment: AugmentPlan,
    *,
    notes: dict[int, str],
) -> tuple[Group, ...]:
    """The samples whose frames u8[B, P, T, H, W, 3] are given, which are the first of the others."""
    groups = []
    for b, strips in enumerate(frames):
        row = rows[b]
        label = () if row.label is None else (classes[b][row.label],)
        groups.append(
            Group(
                title=(row.key, *label, f"{row.num_frames} frames, {row.fps:g} fps"),
                note=notes.get(b),
                strips=tuple(
                    Strip(frames=strip, caption=plan_words(clips, augment, b, p, fps=row.fps))
                    for p, strip in enumerate(strips)
                ),
            )
        )
    return tuple(groups)


def _open_run(run: Path, overrides: Sequence[str]) -> tuple[Config, list[dict[str, Any]]]:
    """The configuration and the metrics of a run."""
    other = [text for text in overrides if not text.strip().startswith("data.")]
    if other:
        raise ConfigError(f"--set {other[0]}: a run is shown as it was", hint="only data.* can be set")
    path = RunFolder(run).config
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not the configuration of a run: {error}") from None
    lines = read_metrics(RunFolder(run).metrics)
    if not any(line["kind"] == "start" for line in lines):
        raise ConfigError(f"{run}: the run has not begun: nothing in its metrics.jsonl")
    return override_config(parse_config(values, where=str(path)), overrides), lines


def _start_of(run: Path, config: Config, lines: list[dict[str, Any]], step: int, *, any_step: bool) -> dict[str, Any]:
    """The start line of the process that went through a step: the last one, where a resumed run repeated it. any_step:
    that of the newest process will do."""
    spans: list[tuple[dict[str, Any], int]] = []  # a start, and the last step that is known to have followed it
    for line in lines:
        if line["kind"] == "start":
            if spans:  # which began from what the one before it had saved, or from something older
                spans[-1] = (spans[-1][0], max(spans[-1][1], line["step"]))
            spans.append((line, line["step"]))
        elif line["kind"] == "step":
            spans[-1] = (spans[-1][0], max(spans[-1][1], line["step"]))
    saved = latest_checkpoint(run)
    if saved is not None:
        spans[-1] = (spans[-1][0], max(spans[-1][1], step_of(saved)))
    found = [start for start, last in spans if start["step"] < step <= last]
    if found:
        return found[-1]
    if any_step and step >= 1:
        return spans[-1][0]
    done = max(last for _, last in spans)
    known = f"it is known to have done 1 to {done}" if done else "it is not known to have done any"
    raise ConfigError(
        f"--step {step}: not a step of {run}: {known} (it logs every {config.train.log_steps})",
        hint="with --world-size, the batch that a step would get is shown all the same" if step >= 1 else None,
    )


def _open_loader(run: Path, config: Config, rank: int, world_size: int) -> TrainLoader:
    data = config.data.model_copy(update={"max_bad": 1.0})  # what is bad is to be seen, however much
    try:
        sources = open_training(data, world_size=world_size)
    except ShardMissingError as error:
        raise ShardMissingError(
            f"{run}: the data that it was trained on: {error.message}",
            hint="if they are elsewhere now: --set data.train=FOLDER",
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


def _changed_since(run: Path, at: Position, planned: set[int], bad: dict[int, str]) -> list[str]:
    """What keeps a batch from being the one of then: samples of it that were bad and are not, or the other way round,
    by the run's list of bad samples."""
    recorded = {
        line["sample"]
        for line in read_metrics(RunFolder(run).bad_samples)
        if (line["epoch"], line["position"]) == (at.epoch, at.position) and line["sample"] in planned
    }
    healed = [f"sample {sample} was bad then and is not now: the run saw another one" for sample in recorded - set(bad)]
    return healed + [f"sample {sample} is bad now and was not then: the run saw it" for sample in set(bad) - recorded]
