"""Measure what it costs to read and decode random clips of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rhofast.config.schema import ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.batch_plan import training_clips
from rhofast.data.units import usage

if TYPE_CHECKING:
    from rhofast.data.codecs.codec import Codec


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
