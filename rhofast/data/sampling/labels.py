"""Which classes hold in a clip: labels with times, and the span of the clip's frames. All functions are pure.

label     [2 s ------------ 9 s)                        frame i is shown for [i / fps, (i + 1) / fps)
clip 0           [3 s --- 5 s)          holds
clip 1                            [9 s --- 11 s)        does not
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rhofast.data.format.index import IndexRow


def labels_in_clips(rows: Sequence[IndexRow], frames: npt.NDArray[np.int32], num_classes: int) -> npt.NDArray[np.bool_]:
    """Return which classes hold at some time of each clip.

    The span of a clip is from the beginning of its first frame to the end of its last one, including the frames
    between them that it skips. A label counts if its time and the span have more than a point in common; the label of
    the sample, and labels without times, always do. PySlowFast takes the union of the labels of the same frames.

    Args:
        rows: Rows of the index of B samples.
        frames: Frame numbers of their clips, i32[B, P, T], in any order; nothing holds in clips without frames.
        num_classes: Number of classes C.

    Returns:
        bool[B, P, C].
    """
    held = np.zeros((*frames.shape[:2], num_classes), dtype=bool)
    if not frames.shape[2]:
        return held
    for row, first, last, classes in zip(rows, frames.min(axis=2), frames.max(axis=2), held, strict=True):
        if row.label is not None:
            classes[:, row.label] = True
        if not row.labels:
            continue
        number = np.array([each.label for each in row.labels])
        start = np.array([0.0 if each.start is None else each.start for each in row.labels])
        end = np.array([math.inf if each.end is None else each.end for each in row.labels])
        meets = (start < (last[:, None] + 1) / row.fps) & (end > first[:, None] / row.fps)
        clip, label = np.nonzero(meets)
        classes[clip, number[label]] = True
    return held
