"""What is in a shard set, what its clips will cost to read and decode, and a picture of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.clip_cost import clip_cost

_SAMPLED = 256  # samples whose clips are planned to measure amplification
_DIGITS = 4  # significant digits of what is counted: at most 9000 values a decade, however many samples there are


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Totals and distributions of a set.

    seconds          p10, median, p90 of the samples' durations
    durations        seconds, to four digits -> samples;  weights: bytes of the stored video, likewise -> samples
    sizes            (width, height) -> samples;  rates: frames a second -> samples
    labels           class name -> samples; empty without labels
    frame_bytes      mean bytes of a stored frame
    clip_bytes       mean bytes read for one sample's clips, of the given geometry
    read_amplification    bytes read / bytes of the frames used
    decode_amplification  frames decoded / distinct frames used
    """

    name: str
    samples: int
    frames: int
    hours: float
    bytes: int
    shards: int
    seconds: tuple[float, float, float]
    durations: dict[float, int]
    weights: dict[float, int]
    sizes: dict[tuple[int, int], int]
    rates: dict[float, int]
    labels: dict[str, int]
    unlabeled: int
    refused: dict[str, int]
    frame_bytes: float
    clip_bytes: float
    read_amplification: float
    decode_amplification: float


def summarize(shards: ShardSet, clips: ClipConfig) -> Summary:
    """Read all indices once; memory does not grow with the number of samples. Raises ShardError."""
    sizes: Counter[tuple[int, int]] = Counter()
    rates: Counter[float] = Counter()
    labels: Counter[int] = Counter()
    durations: Counter[float] = Counter()
    weights: Counter[float] = Counter()
    total_seconds, member_bytes = 0.0, 0
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        sizes.update(zip(index.width.tolist(), index.height.tolist(), strict=True))
        rates.update(np.round(index.fps, 3).tolist())
        labels.update(index.label.tolist())
        seconds = index.num_frames / index.fps
        durations.update(_tally(seconds))
        weights.update(_tally(index.size))
        total_seconds += float(seconds.sum())
        member_bytes += int(index.size.sum())
    p10, median, p90 = percentiles(durations, (10, 50, 90))
    samples = np.unique(np.linspace(0, len(shards) - 1, _SAMPLED).astype(np.int64))
    cost = clip_cost(build_codec(shards.info.codec), [shards.row(int(sample)) for sample in samples], clips)
    return Summary(
        name=shards.info.name,
        samples=len(shards),
        frames=shards.info.num_frames,
        hours=total_seconds / 3600,
        bytes=shards.info.num_bytes,
        shards=len(shards.info.shards),
        seconds=(p10, median, p90),
        durations=dict(sorted(durations.items())),
        weights=dict(sorted(weights.items())),
        sizes=dict(sizes.most_common()),
        rates=dict(rates.most_common()),
        labels={name: labels[label] for label, name in enumerate(shards.info.classes)},
        unlabeled=sum(count for label, count in labels.items() if label < 0),
        refused=shards.info.refused,
        frame_bytes=member_bytes / shards.info.num_frames,
        clip_bytes=cost[0],
        read_amplification=cost[1],
        decode_amplification=cost[2],
    )


def _tally(values: npt.NDArray[Any]) -> dict[float, int]:
    """How often each of some positive values comes, to _DIGITS significant digits."""
    unit = 10.0 ** (np.floor(np.log10(values)) - _DIGITS + 1)
    found, counts = np.unique(np.round(values / unit) * unit, return_counts=True)
    tally: Counter[float] = Counter()
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        tally[float(f"{value:.{_DIGITS}g}")] += count  # 10.3, not 10.299999999999999
    return tally


def percentiles(counts: Mapping[float, int], wanted: Sequence[float]) -> list[float]:
    """The smallest values that at least so many percent of the samples do not exceed."""
    values = np.array(sorted(counts))
    reached = np.cumsum([counts[value] for value in values.tolist()])
    return [float(values[np.searchsorted(reached, percent / 100 * reached[-1])]) for percent in wanted]
