"""Frame average precision of action detection, by the definition of Pascal VOC 2010 and later, as AVA is evaluated.

    per image and class   detections, best score first: each takes the truth of its class with which it overlaps most;
                          it is right if they overlap by at least 0.5 (intersection over union) and nothing took that
                          truth before
    per class             all detections of all images, best score first: precision and recall after each of them;
                          precision made non-increasing in recall; the area below it, under every step
    mAP                   the mean over the classes that have any truth

It is what ActivityNet's `get_ava_performance.py` computes, which looks at the `OFFICIAL_CAPACITY` best scores of each
image only. PySlowFast's copy, with which the published values of self-supervised networks were measured, has no
such limit, and lets the detections of an image take their truth in the order of the file; this one, like the original,
begins with the best score. Among equal scores the original's order is that of its sort, here it is that of the file.
There are no "difficult" boxes and there is no suppression. Boxes without area are never right, and as detections they
do not count. Tools for COCO differ: they interpolate precision at 101 points of recall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IOU = 0.5
"""Least intersection over union at which a detection may be right."""

OFFICIAL_CAPACITY = 50
"""Scores per image, of all boxes and classes together, that ActivityNet's script looks at."""

Float = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """G true boxes.

    Attributes:
        image: Number of the image of each box, i64[G].
        boxes: Left, top, right and bottom, f64[G, 4].
        shows: Which of C classes each box shows, bool[G, C].
    """

    image: Int64Array
    boxes: Float
    shows: Bools


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """D detected boxes, each with a score for every class.

    Attributes:
        image: Number of the image of each box, i64[D].
        boxes: Left, top, right and bottom, f64[D, 4].
        scores: f64[D, C]; finite.
    """

    image: Int64Array
    boxes: Float
    scores: Float


def average_precisions(truth: Truth, detections: Detections, *, capacity: int | None = None) -> Float:
    """Compute the average precision of each class.

    Args:
        truth: True boxes.
        detections: Detected boxes. Of equal scores the first ranks first.
        capacity: Number of best scores per image that count, of all its boxes and classes. None: all.

    Returns:
        f64[C] in [0, 1]; NaN for a class without truth.
    """
    kept = _best(detections, detections.scores.size if capacity is None else capacity)[_has_area(detections)]
    image, boxes, scores = _with_area(detections)
    # What is left out has lower scores than the rest of its image, and takes no truth from it.
    right, counts = _right(truth, image, boxes, scores), truth.shows.sum(axis=0)
    columns = zip(scores.T, right.T, kept.T, counts.tolist(), strict=True)
    return np.array([_area(score[counted], hit[counted], count) for score, hit, counted, count in columns])


def guessed_precisions(truth: Truth, detections: Detections) -> Float:
    """Return what the average precision of each class would be if boxes had scores at random.

    Precision would then be the share of right boxes all along, up to the recall of all boxes together. In small sets it
    is more, since precision is taken at its best.

    Args:
        truth: True boxes.
        detections: Detected boxes; their scores do not matter.

    Returns:
        f64[C] in [0, 1]; NaN for a class without truth.
    """
    image, boxes, scores = _with_area(detections)
    hits = _right(truth, image, boxes, np.zeros_like(scores)).sum(axis=0)
    positives = truth.shows.sum(axis=0).astype(np.float64)
    recall: Float = np.divide(hits, positives, out=np.full(len(hits), np.nan), where=positives > 0)
    area: Float = recall * hits / max(len(boxes), 1)
    return area


def overlaps(boxes: Float, others: Float) -> Float:
    """Return the intersection over union of boxes f64[D, 4] and f64[G, 4], f64[D, G]; 0 where both have no area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    area, other = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, others))
    union = area[:, None] + other[None, :] - shared
    share: Float = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return share


def _best(detections: Detections, capacity: int) -> Bools:
    """Return which scores are among the best ones of their image, bool[D, C]; of equal ones the first is better."""
    kept: Bools = np.zeros_like(detections.scores, dtype=np.bool_)
    classes = kept.shape[1]
    order = np.argsort(detections.image, kind="stable")
    for here in np.split(order, np.flatnonzero(np.diff(detections.image[order])) + 1):
        best = np.argsort(-detections.scores[here].ravel(), kind="stable")[:capacity]
        kept[here[best // classes], best % classes] = True
    return kept


def _has_area(detections: Detections) -> Int64Array:
    """Return the numbers of the detections that have an area."""
    x1, y1, x2, y2 = detections.boxes.T
    return np.flatnonzero((x1 < x2) & (y1 < y2))


def _with_area(detections: Detections) -> tuple[Int64Array, Float, Float]:
    """Return image, boxes and scores of the detections that have an area."""
    kept = _has_area(detections)
    return detections.image[kept], detections.boxes[kept], detections.scores[kept]


def _right(truth: Truth, image: Int64Array, boxes: Float, scores: Float) -> Bools:
    """Return which detections are right, bool[D, C]."""
    right = np.zeros(scores.shape, dtype=np.bool_)
    order, true_order = np.argsort(image, kind="stable"), np.argsort(truth.image, kind="stable")
    numbers = np.intersect1d(image, truth.image)
    edges, true_edges = (
        [np.searchsorted(ordered, numbers, side=side) for side in ("left", "right")]
        for ordered in (image[order], truth.image[true_order])
    )
    for first, end, true_first, true_end in zip(*edges, *true_edges, strict=True):
        here, true = order[first:end], true_order[true_first:true_end]
        share = overlaps(boxes[here], truth.boxes[true])
        for c in np.flatnonzero(truth.shows[true].any(axis=0)):
            of_class = share[:, truth.shows[true, c]]
            best = of_class.argmax(axis=1)
            taken = np.zeros(of_class.shape[1], dtype=np.bool_)
            for place in np.argsort(-scores[here, c], kind="stable"):
                if of_class[place, best[place]] >= IOU and not taken[best[place]]:
                    taken[best[place]] = right[here[place], c] = True
    return right


def _area(scores: Float, right: Bools, positives: int) -> float:
    """Return the area below precision over recall, for D detections of one class; NaN without positives."""
    if not positives:
        return float("nan")
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(hits, prepend=0) > 0
    return float(precision[steps].sum() / positives)
