"""Draw videos with their nearest neighbors in feature space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rhofast.analysis.rendering import DrawnClip, DrawnVideo, animation, check_suffix, write_pictures
from rhofast.analysis.replay import displayable
from rhofast.data.format.dataset import ShardSet, choose_samples
from rhofast.data.format.selection import find_samples
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.sources import open_shards, open_source
from rhofast.distributed.process_group import rank
from rhofast.errors import ConfigError
from rhofast.evaluation.features import Features, Progress, extract_features, part_of
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.model import EvalModel, open_model
from rhofast.evaluation.nearest import nearest_rows
from rhofast.evaluation.task import placed
from rhofast.storage.files import check_writable, replacing

_DECODED_AT_ONCE = 16  # videos that are decoded together


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbors:
    """The neighbors of a query.

    Attributes:
        query: Sample number of the query.
        neighbors: Sample numbers in the bank, the nearest first.
        cosine: Cosine similarity of each neighbor.
    """

    query: int
    neighbors: tuple[int, ...]
    cosine: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighborsPage:
    """What was drawn.

    Attributes:
        near: The neighbors of each query.
        left_out: Samples that could not be read, one line each.
    """

    near: list[Neighbors]
    left_out: list[str]


def open_bank(
    source: str | Path,
    *,
    bank: str | Path | None,
    queries: str | Path | None,
    keys: Sequence[str],
    samples: int,
    overrides: Sequence[str] = (),
    on_read: Progress | None = None,
) -> tuple[EvalModel, ShardSet, ShardSet, npt.NDArray[np.int64]]:
    """Open the backbone, the bank and the queries.

    Args:
        source: Any backbone that `open_model` accepts.
        bank: Shards in which to search. None means the first training set of the run.
        queries: Shards of the queries. None means the bank.
        keys: Keys of the queries. If empty, samples are spread over the set.
        samples: Number of queries if no keys are given.
        overrides: Settings `key=value`.
        on_read: Called with (shards searched for keys, shards of the set).

    Returns:
        (backbone, bank, query set, i64[Q] sample numbers of the queries).

    Raises:
        ConfigError: If no bank is known, or a key does not exist.
        ResumeError: If the checkpoint cannot be read.
        ShardError: If a set cannot be opened.
    """
    model = open_model(source, overrides=overrides)
    training_sets = model.config.data.train
    if bank is None and not training_sets:
        raise ConfigError("no shards are known in which to search for neighbors", hint="pass them with --train SHARDS")
    data = model.config.data
    opened = open_shards(bank, data=data) if bank else open_source(training_sets[0], data=data)
    query_set = opened if queries is None else open_shards(queries, data=data)
    chosen = find_samples(query_set, keys, on_read=on_read) if keys else choose_samples(query_set, samples)
    return model, opened, query_set, np.array(chosen, dtype=np.int64)


def nearest(
    bank: Features, queries: Features, same: npt.NDArray[np.bool_], count: int, *, device: torch.device
) -> list[Neighbors]:
    """Find the nearest bank samples of each query, by the cosine similarity of the mean features over views.

    Call it in every process, with the same values.

    Args:
        bank: Features of N samples.
        queries: Features of Q samples.
        same: bool[Q, N], pairs from the same source video, which are skipped.
        count: Neighbors per query.
        device: Device of this rank, on which neighbors are searched.

    Returns:
        The neighbors of each query.
    """
    # So many that enough are left of each query when those of its own source are skipped.
    most = min(count + int(same.sum(axis=1).max(initial=0)), len(bank.sample))
    cosine, row = nearest_rows(bank.values, queries.values.mean(axis=1), most, device=device)
    found = []
    for number, query in enumerate(queries.sample.tolist()):
        kept = np.flatnonzero(~same[number, row[number]])[:count]
        found.append(
            Neighbors(
                query=query,
                neighbors=tuple(bank.sample[row[number, kept]].tolist()),
                cosine=tuple(cosine[number, kept].tolist()),
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
) -> NeighborsPage:
    """Draw queries with their nearest neighbors. Call it in every process; rank 0 draws.

    Videos of the same source as the query are skipped.

    Args:
        model: The backbone and its configuration.
        bank: Shards in which to search.
        queries: Shards of the queries.
        samples: i64[Q], sample numbers of the queries.
        target: The file. A .png shows the middle frame; .gif, .webp and .mp4 play.
        count: Neighbors per query.
        progress: Called with (samples done, total samples).

    Returns:
        The neighbors.

    Raises:
        ConfigError: If the suffix is not supported.
        ShardError: If the shards cannot be read.
        NotFiniteError: If a feature is not finite.
        OSError: If the file cannot be written.
    """
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

    query_features, bank_features = extract(queries, samples, 0), extract(bank, None, len(samples))
    query_source = source_digests(queries)[query_features.sample]
    bank_source = source_digests(bank)[bank_features.sample]
    same = query_source[:, None] == bank_source[None, :]
    found = nearest(bank_features, query_features, same, count, device=next(network.parameters()).device)
    page = NeighborsPage(near=found, left_out=[str(error) for error in [*bank_features.bad, *query_features.bad]])
    if rank() > 0:
        return page
    query_frames = _frames(model, queries, [near.query for near in found])
    bank_frames = _frames(model, bank, [number for near in found for number in near.neighbors])
    videos = [
        _drawn_video(near, queries, bank, query_frames, bank_frames) for near in found if near.query in query_frames
    ]
    heading = (f"Nearest neighbors among {len(bank_features.sample):,} videos in {bank.info.name}", model.origin)
    if target.suffix.lower() == ".png":
        pictures = animation(videos, heading=heading)
        with replacing(target, suffix=".png") as aside:
            pictures[len(pictures) // 2].save(aside)
    else:
        write_pictures(target, videos, heading=heading, fps=config.clips.fps / config.clips.frame_stride)
    return page


def _frames(model: EvalModel, shards: ShardSet, samples: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Return the middle clip of each sample, u8[T, H, W, 3], decoded on the CPU."""
    config = model.config
    wanted = np.unique(np.array(samples, dtype=np.int64))
    frames: dict[int, npt.NDArray[np.uint8]] = {}
    with EvalLoader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=_DECODED_AT_ONCE,
        views=3,
        samples=wanted,
    ) as loader:
        for batch in loader:
            clips = displayable(batch.pixels[:, 1:2], config.augment)
            frames |= {sample: clip[0] for sample, clip in zip(batch.sample.tolist(), clips, strict=True)}
    return frames


def _drawn_video(
    near: Neighbors,
    queries: ShardSet,
    bank: ShardSet,
    query_frames: dict[int, npt.NDArray[np.uint8]],
    bank_frames: dict[int, npt.NDArray[np.uint8]],
) -> DrawnVideo:
    key, name = _key_and_class(queries, near.query)
    clips = [DrawnClip(frames=query_frames[near.query], caption=("query", *name))]
    for number, cosine in zip(near.neighbors, near.cosine, strict=True):
        if number not in bank_frames:  # The frames of its features could be read, but not these.
            continue
        other_key, other_class = _key_and_class(bank, number)
        clips.append(DrawnClip(frames=bank_frames[number], caption=(f"cosine {cosine:.3f}", *other_class, other_key)))
    return DrawnVideo(title=(key,), clips=tuple(clips))


def _key_and_class(shards: ShardSet, sample: int) -> tuple[str, tuple[str, ...]]:
    """Return the key of a sample, and its class name in a tuple that is empty without a label."""
    row, classes = shards.row(sample), shards.info.classes
    return row.key, (classes[row.label],) if classes and row.label is not None else ()
