"""A page of pictures: some videos, and beside each the videos whose features are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rhofast.analysis.rendering import Group, Strip, animation, check_suffix, write_pictures
from rhofast.analysis.replay import displayable
from rhofast.data.format.dataset import ShardSet, choose_samples, find_keys
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.sources import open_shards
from rhofast.distributed.process_group import rank
from rhofast.errors import ConfigError
from rhofast.evaluation.features import Features, Progress, extract_features, part_of
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.model import EvalModel, open_model
from rhofast.evaluation.task import placed
from rhofast.storage.files import check_writable, replacing

_SHOWN_AT_ONCE = 16  # videos that are decoded together


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """query: its sample number; neighbors: sample numbers in the bank, the nearest first; cosine: of each."""

    query: int
    neighbors: tuple[int, ...]
    cosine: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """near: what was found; left_out: what could not be read, a line each."""

    near: list[Near]
    left_out: list[str]


def open_bank(
    source: str | Path,
    *,
    bank: str | Path | None,
    queries: str | Path | None,
    keys: Sequence[str],
    samples: int,
    overrides: Sequence[str] = (),
) -> tuple[EvalModel, ShardSet, ShardSet, npt.NDArray[np.int64]]:
    """(backbone, bank, query set, sample numbers of the queries). bank: None for a run's own training shards; queries:
    None for the bank; keys: of the queries, none for `samples` of them, spread over the set. Raises ConfigError,
    ResumeError, ShardError."""
    model = open_model(source, overrides=overrides)
    own = model.config.data.train
    if bank is None and not own:
        raise ConfigError("no shards to look for neighbors in", hint="give them with --train")
    opened = open_shards(bank or own[0].shards, data=model.config.data)
    asked = opened if queries is None else open_shards(queries, data=model.config.data)
    chosen = find_keys(asked, keys) if keys else choose_samples(asked, samples)
    return model, opened, asked, np.array(chosen, dtype=np.int64)


def nearest(bank: Features, queries: Features, same: npt.NDArray[np.bool_], count: int) -> list[Near]:
    """The `count` nearest bank samples of each query, by the cosine of the means over views. same bool[Q, N]: pairs
    that are cut from one source, which are passed over."""
    rows, asked = (_unit(features.values.mean(axis=1)) for features in (bank, queries))
    cosine = np.where(same, -np.inf, asked @ rows.T)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
    found = []
    for query, places, near in zip(queries.sample.tolist(), order, cosine, strict=True):
        kept = [place for place in places.tolist() if np.isfinite(near[place])]
        found.append(
            Near(
                query=query,
                neighbors=tuple(int(bank.sample[place]) for place in kept),
                cosine=tuple(float(near[place]) for place in kept),
            )
        )
    return found


def draw_neighbors(
    model: EvalModel,
    bank: ShardSet,
    queries: ShardSet,
    samples: npt.NDArray[np.int64],
    target: Path,
    *,
    count: int = 5,
    progress: Progress | None = None,
) -> Drawn:
    """Write a page with `samples` of `queries` and the `count` nearest videos of `bank`: .png shows the frame in the
    middle, .gif and .mp4 play. Videos of the same source are passed over. In every process; rank 0 draws. Raises
    ConfigError for another suffix, ShardError, NotFiniteError, OSError."""
    check_suffix(target)
    check_writable(target)
    config = model.config
    network = placed(model.backbone, config)

    def extract(shards: ShardSet, some: npt.NDArray[np.int64] | None, before: int) -> Features:
        return extract_features(
            network,
            shards,
            config,
            samples=some,
            progress=part_of(progress, before, len(bank) + len(samples)),
        )

    asked, known = extract(queries, samples, 0), extract(bank, None, len(samples))
    own, others = source_digests(queries)[asked.sample], source_digests(bank)[known.sample]
    found = nearest(known, asked, own[:, None] == others[None, :], count)
    drawn = Drawn(near=found, left_out=[str(error) for error in [*known.bad, *asked.bad]])
    if rank() > 0:
        return drawn
    shown = _frames(model, queries, [near.query for near in found])
    beside = _frames(model, bank, [number for near in found for number in near.neighbors])
    groups = [_group(near, queries, bank, shown, beside) for near in found if near.query in shown]
    heading = (f"Nearest of {len(known.sample):,} videos in {bank.info.name}", model.origin)
    with replacing(target, suffix=target.suffix) as aside:
        if target.suffix.lower() == ".png":
            pictures = animation(groups, heading=heading)
            pictures[len(pictures) // 2].save(aside)
        else:
            write_pictures(aside, groups, heading=heading, fps=config.clips.fps / config.clips.frame_stride)
    return drawn


def _frames(model: EvalModel, shards: ShardSet, samples: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """One clip of each sample, u8[T, H, W, 3]: the one in the middle, on the CPU."""
    config = model.config
    wanted = np.unique(np.array(samples, dtype=np.int64))
    frames: dict[int, npt.NDArray[np.uint8]] = {}
    with EvalLoader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=_SHOWN_AT_ONCE,
        views=3,
        samples=wanted,
    ) as loader:
        for batch in loader:
            clips = displayable(batch.pixels[:, 1:2], config.augment)
            frames |= {sample: clip[0] for sample, clip in zip(batch.sample.tolist(), clips, strict=True)}
    return frames


def _group(
    near: Near,
    queries: ShardSet,
    bank: ShardSet,
    shown: dict[int, npt.NDArray[np.uint8]],
    beside: dict[int, npt.NDArray[np.uint8]],
) -> Group:
    key, name = _words(queries, near.query)
    strips = [Strip(frames=shown[near.query], caption=("query", *name))]
    for number, cosine in zip(near.neighbors, near.cosine, strict=True):
        if number not in beside:  # its features came from other frames, and these cannot be read
            continue
        other, its = _words(bank, number)
        strips.append(Strip(frames=beside[number], caption=(f"{cosine:.3f}", *its, other)))
    return Group(title=(key,), strips=tuple(strips))


def _words(shards: ShardSet, sample: int) -> tuple[str, tuple[str, ...]]:
    """(key, class or nothing)"""
    row, classes = shards.row(sample), shards.info.classes
    return row.key, (classes[row.label],) if classes and row.label is not None else ()


def _unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = values / np.maximum(
        np.linalg.norm(values, axis=-1, keepdims=True), np.finfo(np.float32).tiny
    )
    return unit
