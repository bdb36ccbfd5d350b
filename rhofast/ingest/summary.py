"""Summarize a shard set: what is in it, and what its clips cost to read and decode.

Totals are those of `dataset.json`. How values are distributed, the indices tell; of a large set some of them are read,
since all together may have hundreds of gigabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow, ShardIndex
from rhofast.data.sampling.clip_cost import clip_cost

SHARDS = 1_000  # shards whose indices are read, unless all are
_SAMPLED = 256  # samples whose clips are planned to measure amplification
_AT_ONCE = 100  # shards whose indices are fetched side by side
_DIGITS = 4  # significant digits of counted values: at most 9000 values per decade, for any number of samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Totals and distributions of a shard set.

    Totals are of all samples; numbers of samples by value, percentiles and means are of those that were read.

    Attributes:
        name: Name of the set.
        samples: Number of samples.
        frames: Number of frames.
        hours: Hours of video.
        bytes: Bytes of all files.
        shards: Number of shards.
        read: Number of samples that were read.
        read_shards: Number of their shards.
        seconds: 10th percentile, median and 90th percentile of the samples' durations.
        durations: Number of samples by duration in seconds, rounded to four digits.
        weights: Number of samples by bytes of the stored video, rounded likewise.
        sizes: Number of samples by (width, height).
        rates: Number of samples by frames per second.
        codecs: Number of samples by the name of their storage codec.
        labels: Number of samples by class name, which may have several classes; empty without labels.
        unlabeled: Number of samples without any label.
        several: Number of samples with further labels, number of these labels, and of those among them with times.
        refused: Number of refused sources by reason.
        frame_bytes: Mean bytes of a stored frame.
        clip_bytes: Mean bytes read for the clips of one sample, with the given geometry.
        read_amplification: Bytes read divided by the bytes of the frames used.
        decode_amplification: Frames decoded divided by the distinct frames used.
    """

    name: str
    samples: int
    frames: int
    hours: float
    bytes: int
    shards: int
    read: int
    read_shards: int
    seconds: tuple[float, float, float]
    durations: dict[float, int]
    weights: dict[float, int]
    sizes: dict[tuple[int, int], int]
    rates: dict[float, int]
    codecs: dict[str, int]
    labels: dict[str, int]
    unlabeled: int
    several: tuple[int, int, int]
    refused: dict[str, int]
    frame_bytes: float
    clip_bytes: float
    read_amplification: float
    decode_amplification: float


def summarize(
    shards: ShardSet, clips: ClipConfig, *, every: bool = False, on_read: Callable[[int, int], None] | None = None
) -> Summary:
    """Summarize a shard set from its indices; memory does not grow with the number of samples.

    Args:
        shards: The set.
        clips: Clip geometry for the cost of reading and decoding.
        every: Whether all indices are read; otherwise at most 1,000, evenly spread over the set.
        on_read: Called with (shards read, shards to read), from time to time.

    Returns:
        The summary.

    Raises:
        ShardError: An index cannot be read.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    rates: Counter[float] = Counter()
    codecs = [build_codec(settings) for settings in shards.info.codecs]
    stored_with: Counter[int] = Counter()
    labels = np.zeros(len(shards.info.classes) + 1, dtype=np.int64)  # the last: of samples without any
    several = np.zeros(3, dtype=np.int64)
    durations: Counter[float] = Counter()
    weights: Counter[float] = Counter()
    member_bytes = frames = 0
    chosen = np.arange(len(shards.info.shards))
    if not every:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, SHARDS).astype(np.int64))
    starts = np.cumsum([0, *(shards.info.shards[number].samples for number in chosen.tolist())])
    planned = np.unique(np.linspace(0, starts[-1] - 1, _SAMPLED).astype(np.int64))  # of the samples that are read
    rows: list[IndexRow] = []
    for place, number in enumerate(chosen.tolist()):
        if place % _AT_ONCE == 0:
            shards.load_indices(chosen[place : place + _AT_ONCE].tolist())
        index = shards.index(number)
        here = planned[np.searchsorted(planned, starts[place]) : np.searchsorted(planned, starts[place + 1])]
        rows += map(index.row, (here - starts[place]).tolist())
        sizes.update(zip(index.width.tolist(), index.height.tolist(), strict=True))
        rates.update(np.round(index.fps, 3).tolist())
        stored_with.update(index.codec.tolist())
        labels += _class_counts(index, len(labels) - 1)
        has_time = ~(np.isnan(index.label_start) & np.isnan(index.label_end))
        several += [int((np.diff(index.labels_starts) > 0).sum()), len(index.labels), int(has_time.sum())]
        seconds = index.num_frames / index.fps
        durations.update(_tally(seconds))
        weights.update(_tally(index.size))
        member_bytes += int(index.size.sum())
        frames += int(index.num_frames.sum())
        if on_read is not None:
            on_read(place + 1, len(chosen))
    p10, median, p90 = percentiles(durations, (10, 50, 90))
    cost = clip_cost(codecs, rows, clips)
    return Summary(
        name=shards.info.name,
        samples=len(shards),
        frames=shards.info.num_frames,
        hours=shards.info.seconds / 3600,
        bytes=shards.info.num_bytes,
        shards=len(shards.info.shards),
        read=int(starts[-1]),
        read_shards=len(chosen),
        seconds=(p10, median, p90),
        durations=dict(sorted(durations.items())),
        weights=dict(sorted(weights.items())),
        sizes=dict(sizes.most_common()),
        rates=dict(rates.most_common()),
        codecs=_by_name(codecs, stored_with),
        labels=dict(zip(shards.info.classes, labels[:-1].tolist(), strict=True)),
        unlabeled=int(labels[-1]),
        several=(int(several[0]), int(several[1]), int(several[2])),
        refused=shards.info.refused,
        frame_bytes=member_bytes / frames,
        clip_bytes=cost[0],
        read_amplification=cost[1],
        decode_amplification=cost[2],
    )


def _by_name(codecs: Sequence[Codec], counts: Mapping[int, int]) -> dict[str, int]:
    """Return the number of samples by the name of their codec; two codecs may differ in their settings alone."""
    named: Counter[str] = Counter()
    for place, codec in enumerate(codecs):
        named[codec.name] += counts.get(place, 0)
    return dict(named)


def _class_counts(index: ShardIndex, num_classes: int) -> npt.NDArray[np.int64]:
    """Return the number of samples that have each class at some time and, at the end, of those that have none.

    Args:
        index: The index of a shard.
        num_classes: Number of classes C.

    Returns:
        i64[C + 1].
    """
    rows, sizes = np.arange(len(index)), np.diff(index.labels_starts)
    first = np.where(index.label < 0, num_classes, index.label)
    classes = np.concatenate([first[(index.label >= 0) | (sizes == 0)], index.labels])
    owners = np.concatenate([rows[(index.label >= 0) | (sizes == 0)], np.repeat(rows, sizes)])
    distinct = np.unique(owners * (num_classes + 1) + classes) % (num_classes + 1)  # a class may hold at several times
    return np.bincount(distinct, minlength=num_classes + 1)


def _tally(values: npt.NDArray[Any]) -> dict[float, int]:
    """Return how often each positive value occurs, rounded to _DIGITS significant digits."""
    step = 10.0 ** (np.floor(np.log10(values)) - _DIGITS + 1)
    found, counts = np.unique(np.round(values / step) * step, return_counts=True)
    tally: Counter[float] = Counter()
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        tally[float(f"{value:.{_DIGITS}g}")] += count  # 10.3, not 10.299999999999999
    return tally


def percentiles(counts: Mapping[float, int], wanted: Sequence[float]) -> list[float]:
    """Return percentiles of a distribution.

    Args:
        counts: Number of samples by value.
        wanted: The percentages, in [0, 100].

    Returns:
        For each percentage, the smallest value that at least that share of the samples does not exceed.
    """
    values = np.array(sorted(counts))
    reached = np.cumsum([counts[value] for value in values.tolist()])
    return [float(values[np.searchsorted(reached, percent / 100 * reached[-1])]) for percent in wanted]
