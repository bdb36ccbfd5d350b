"""Measure what it costs to read and decode random clips of samples, and how the sizes of frames vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rhofast.config.schema import ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.batch_plan import training_clips
from rhofast.data.units import frames_in, usage

if TYPE_CHECKING:
    from rhofast.data.codecs.codec import Codec

_QUANTILES = 32


def clip_cost(codecs: Sequence[Codec], rows: Sequence[IndexRow], clips: ClipConfig) -> tuple[float, float, float]:
    """Return what random clips of samples cost, counted as `usage` counts.

    Args:
        codecs: Storage codecs, which the rows name by their places.
        rows: Rows of the index of the samples, at least one.
        clips: Options of the clips.

    Returns:
        Bytes read per sample; bytes read per byte of the used frames; frames decoded per distinct used frame.
    """
    plan = training_clips(rows, np.arange(len(rows), dtype=np.int64), clips, seed=0, epoch=0)
    bytes_read, bytes_used, decoded, used = 0, 0.0, 0, 0
    for row, frames in zip(rows, plan.frames, strict=True):
        wanted = np.unique(frames)
        bytes_read += int(
            row.units.size[codecs[row.codec].units_for(row.units, row.num_frames, wanted)].sum(dtype=np.int64)
        )
        sample_bytes_used, sample_decoded = usage(row.units, row.num_frames, wanted)
        bytes_used += sample_bytes_used
        decoded += sample_decoded
        used += len(wanted)
    return bytes_read / len(rows), bytes_read / bytes_used, decoded / used


def frame_sizes(rows: Sequence[IndexRow]) -> list[float]:
    """Return quantiles of the bytes per frame of samples, second by second, at equal distances, ascending.

    How many bytes lie between the frames of a clip differs from video to video, and from scene to scene within one,
    which a mean does not show. Each sample counts the same, however long it is.

    Args:
        rows: Rows of the index of the samples, at least one.
    """
    sizes, weights = [], []
    for row in rows:
        frames = frames_in(row.units, row.num_frames)
        seconds = max(1, min(row.num_frames, round(row.num_frames / row.fps)))
        second = np.minimum((np.cumsum(frames) - frames) * seconds // row.num_frames, seconds - 1)
        count = np.bincount(second, frames, seconds)
        begun = count > 0  # a long unit belongs to the second in which it begins
        sizes.append(np.bincount(second, row.units.size, seconds)[begun] / count[begun])
        weights.append(count[begun] / count.sum())
    order = np.argsort(every := np.concatenate(sizes))
    weight = np.concatenate(weights)[order]
    place = (np.cumsum(weight) - weight / 2) / weight.sum()
    found: list[float] = np.interp((np.arange(_QUANTILES) + 0.5) / _QUANTILES, place, every[order]).tolist()
    return found
