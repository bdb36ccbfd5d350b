"""Key frames of a shard set, with the boxes and actions in them, as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

NUM_ACTIONS = 80
"""Number of classes of AVA, which count from 1; some of them are not evaluated."""

Int64Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyFrames:
    """K key frames of a shard set, ordered by sample and frame, and the M boxes in them.

    Attributes:
        sample: Sample of each key frame, i64[K]: a number in the set.
        frame: Number of the frame in the sample, i64[K].
        second: Time in the source that the annotations name, i64[K].
        begins: Boxes of key frame k are those in [begins[k], begins[k + 1]), i64[K + 1].
        boxes: Left, top, right and bottom of each box as shares of the frame, f64[M, 4].
        detected: Whether a detector drew the box, bool[M].
        score: Score of the detector, f64[M]; 1 for the ground truth.
        action_begins: Actions of box m are those in [action_begins[m], action_begins[m + 1]), i64[M + 1].
        actions: Numbers of actions, i32[A], in [1, NUM_ACTIONS].
        classes: Name of each class that an evaluation counts, by number, ascending.
        digest: Digest of set and boxes, 64 hexadecimal characters.
    """

    sample: Int64Array
    frame: Int64Array
    second: Int64Array
    begins: Int64Array
    boxes: npt.NDArray[np.float64]
    detected: Bools
    score: npt.NDArray[np.float64]
    action_begins: Int64Array
    actions: npt.NDArray[np.int32]
    classes: Mapping[int, str] = field(repr=False)
    digest: str

    def __len__(self) -> int:
        return len(self.sample)

    def __repr__(self) -> str:
        return f"KeyFrames({len(self):,} key frames, {len(self.boxes):,} boxes)"

    def where(self, wanted: Bools) -> KeyFrames:
        """Return some of the boxes, and the key frames that have any of them; `wanted` is bool[M]."""
        kept, place = np.flatnonzero(wanted), self.place_of_box()
        frames, counts = np.unique(place[kept], return_counts=True)
        lengths = np.diff(self.action_begins)
        digest = hashlib.sha256(self.digest.encode() + np.packbits(wanted).tobytes())
        return KeyFrames(
            sample=self.sample[frames],
            frame=self.frame[frames],
            second=self.second[frames],
            begins=np.cumsum([0, *counts], dtype=np.int64),
            boxes=self.boxes[kept],
            detected=self.detected[kept],
            score=self.score[kept],
            action_begins=np.cumsum([0, *lengths[kept]], dtype=np.int64),
            actions=self.actions[np.repeat(wanted, lengths)],
            classes=self.classes,
            digest=digest.hexdigest(),
        )

    def at_seconds(self, stride: int) -> KeyFrames:
        """Return the key frames whose second is a multiple of `stride`."""
        return self if stride == 1 else self.where((self.second % stride == 0)[self.place_of_box()])

    def place_of_box(self) -> Int64Array:
        """Return the key frame of each box, i64[M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.begins))

    def boxes_of(self, frames: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the boxes of some key frames.

        Args:
            frames: Numbers of key frames, i64[B].

        Returns:
            For each box, the place of its key frame in `frames`, and its number; i64[N] each.
        """
        counts = np.diff(self.begins)[frames]
        place = np.repeat(np.arange(len(frames)), counts)
        first = np.cumsum(counts) - counts
        return place, np.arange(len(place)) - first[place] + self.begins[frames][place]

    def repeats(self) -> tuple[Int64Array, Int64Array]:
        """Return (box, action) of each action that is said of a box again, i64[R] each; AVA may list a box twice."""
        owner = np.repeat(np.arange(len(self.boxes)), np.diff(self.action_begins))
        pair = owner * (NUM_ACTIONS + 1) + self.actions
        order = np.argsort(pair, kind="stable")
        again = order[1:][np.diff(pair[order]) == 0]
        return owner[again], self.actions[again].astype(np.int64)

    def targets(self, boxes: Int64Array) -> npt.NDArray[np.float32]:
        """Return which actions boxes show, f32[N, NUM_ACTIONS] of 0 and 1: action a is column a - 1.

        Args:
            boxes: Numbers of boxes, i64[N].
        """
        rows = np.zeros((len(boxes), NUM_ACTIONS), dtype=np.float32)
        counts = np.diff(self.action_begins)[boxes]
        row = np.repeat(np.arange(len(boxes)), counts)
        within = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        rows[row, self.actions[self.action_begins[boxes][row] + within] - 1] = 1
        return rows
