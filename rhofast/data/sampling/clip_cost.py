"""What it costs to read and decode the clips of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rhofast.config.schema import ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.batch_plan import clips_alone
from rhofast.data.types import usage

if TYPE_CHECKING:
    from rhofast.data.codecs.codec import Codec


def clip_cost(codec: Codec, rows: Sequence[IndexRow], clips: ClipConfig) -> tuple[float, float, float]:
    """(bytes read a sample, bytes read / bytes of the frames used, frames decoded / distinct frames used) for random
    clips of the given samples, at least one. `usage` says how both are counted.
    """
    plan = clips_alone(rows, np.arange(len(rows), dtype=np.int64), clips, seed=0, epoch=0)
    bytes_read, bytes_used, decoded, used = 0, 0.0, 0, 0
    for row, frames in zip(rows, plan.frames, strict=True):
        wanted = np.unique(frames)
        bytes_read += int(row.units.size[codec.units_for(row.units, wanted)].sum(dtype=np.int64))
        holding, through = usage(row.units, row.num_frames, wanted)
        bytes_used += holding
        decoded += through
        used += len(wanted)
    return bytes_read / len(rows), bytes_read / bytes_used, decoded / used
