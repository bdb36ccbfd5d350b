"""What is in a shard set, and what its clips will cost to read and decode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rhofast.config import ClipSection
from rhofast.data.codecs import build_codec
from rhofast.data.index import ShardSet
from rhofast.data.plan import clips_alone

_SAMPLED = 256  # samples whose clips are planned to measure amplification


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Totals and distributions of a set.

    seconds          p10, median, p90 of the samples' durations
    sizes            (width, height) -> samples;  rates: frames a second -> samples
    labels           class name -> samples; empty without labels
    frame_bytes      mean bytes of a stored frame
    clip_bytes       mean bytes read for one sample's clips, of the given geometry
    read_amplification    bytes read / bytes of the frames used
    decode_amplification  frames decoded / distinct frames used
    """

    samples: int
    frames: int
    hours: float
    bytes: int
    shards: int
    seconds: tuple[float, float, float]
    sizes: dict[tuple[int, int], int]
    rates: dict[float, int]
    labels: dict[str, int]
    unlabeled: int
    refused: dict[str, int]
    frame_bytes: float
    clip_bytes: float
    read_amplification: float
    decode_amplification: float


def summarize(shards: ShardSet, clips: ClipSection) -> Summary:
    """Read all indices once. Raises ShardError."""
    sizes: Counter[tuple[int, int]] = Counter()
    rates: Counter[float] = Counter()
    labels: Counter[int] = Counter()
    seconds, member_bytes = [], 0
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        sizes.update(zip(index.width.tolist(), index.height.tolist(), strict=True))
        rates.update(np.round(index.fps, 3).tolist())
        labels.update(index.label.tolist())
        seconds.append(index.num_frames / index.fps)
        member_bytes += int(index.size.sum())
    unlabeled = sum(count for label, count in labels.items() if label < 0)
    durations = np.concatenate(seconds)
    p10, median, p90 = np.percentile(durations, [10, 50, 90]).tolist()
    clip_bytes, read_amplification, decode_amplification = _clip_cost(shards, clips)
    return Summary(
        samples=len(shards),
        frames=shards.info.num_frames,
        hours=float(durations.sum()) / 3600,
        bytes=shards.info.num_bytes,
        shards=len(shards.info.shards),
        seconds=(p10, median, p90),
        sizes=dict(sizes.most_common()),
        rates=dict(rates.most_common()),
        labels={name: labels[label] for label, name in enumerate(shards.info.classes)},
        unlabeled=unlabeled,
        refused=shards.info.refused,
        frame_bytes=member_bytes / shards.info.num_frames,
        clip_bytes=clip_bytes,
        read_amplification=read_amplification,
        decode_amplification=decode_amplification,
    )


def _clip_cost(shards: ShardSet, clips: ClipSection) -> tuple[float, float, float]:
    """(bytes read a sample, read amplification, decode amplification) over evenly spread samples."""
    codec = build_codec(shards.info.codec)
    samples = np.unique(np.linspace(0, len(shards) - 1, _SAMPLED).astype(np.int64))
    rows = [shards.row(int(sample)) for sample in samples]
    plan = clips_alone(rows, samples, clips, seed=0, epoch=0)
    read, used, decoded, frames_used = 0, 0.0, 0, 0
    for row, frames in zip(rows, plan.frames, strict=True):
        wanted = np.unique(frames)
        units = codec.units_for(row.units, wanted)
        sizes = row.units.size[units].astype(np.int64)
        frames_in = (np.append(row.units.frame[1:], row.num_frames) - row.units.frame)[units]
        last = np.searchsorted(row.units.frame[units], wanted, side="right") - 1
        wanted_in = np.bincount(last, minlength=len(units))  # wanted frames in each unit
        read += int(sizes.sum())
        used += float((sizes * wanted_in / frames_in).sum())
        decoded += int(frames_in.sum())
        frames_used += len(wanted)
    return read / len(samples), read / used, decoded / frames_used
