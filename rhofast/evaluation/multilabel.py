"""Evaluate a classifier of several labels per video: the test protocol, and mean average precision over the classes.

    K x 3 views of a video --sigmoid per class--> scores f[V, C] --maximum over views--> f[C]
    scores f[N, C], classes of each video bool[N, C] --> average precision per class --> mean

A video has a class if its label or one of its further labels is of it, whenever that holds. A video without any label
has none of the classes. PySlowFast takes the maximum over the views on Charades, too, and the mean on Kinetics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.batch_plan import evaluation_plan
from rhofast.data.sampling.labels import labels_in_clips
from rhofast.errors import ShardFormatError
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import score_views
from rhofast.evaluation.scores import Scores, class_map

MAP = "mAP"


def max_over_views(values: Tensor) -> Tensor:
    """Return the largest values f[B, 1, D] of f[B, V, D] over the views."""
    return values.amax(dim=1, keepdim=True)


def score_labels(
    classifier: nn.Module,
    train: ShardSet,
    test: ShardSet,
    config: Config,
    *,
    left_out: tuple[str, ...] = (),
    joined: int = 1,
    progress: Progress | None = None,
) -> Scores:
    """Measure the mean average precision of a classifier on the test shards, on every rank.

    Args:
        classifier: Returns a score per class in evaluation mode, each by itself (sigmoid).
        train: Training shards, whose classes the classifier knows.
        test: Held-out test shards, whose classes are among these by name.
        config: Input, reading and section `eval`.
        left_out: Lines about training samples that could not be read.
        joined: Number of clips that the classifier reads together, as for FeatureStream.
        progress: Called with (samples done, total samples).

    Returns:
        The scores: `mAP`, and the average precision of each class that a test video has.

    Raises:
        ConfigError: If a set has no classes, or the test set has a class that the training set lacks.
        ShardError: If shards cannot be read, or no readable test video has a label.
        NotFiniteError: If a score is not finite.
    """
    to_train_class = class_map(train, test)
    found = score_views(classifier, test, config, reduce=max_over_views, joined=joined, progress=progress)
    held = classes_of(test)[found.sample]
    positive = np.zeros((len(held), len(train.info.classes)), dtype=bool)
    known = to_train_class >= 0
    positive[:, to_train_class[known]] = held[:, known]
    return summarize_labels(
        found.values[:, 0],
        positive,
        classes=train.info.classes,
        left_out=[*left_out, *(str(error) for error in found.bad)],
    )


def classes_of(shards: ShardSet) -> npt.NDArray[np.bool_]:
    """Return which classes the samples of a set have at some time, bool[N, C].

    Raises:
        ShardError: If an index cannot be read.
    """
    held = np.zeros((len(shards), len(shards.info.classes)), dtype=bool)
    for shard in shards.used_shards().tolist():
        index, rows = shards.index(shard), shards.rows_of(shard)
        part = held[int(shards.starts[shard]) : int(shards.starts[shard + 1])]
        first = index.label[rows]
        part[np.flatnonzero(first >= 0), first[first >= 0]] = True
        place = np.full(len(index), -1)
        place[rows] = np.arange(len(rows))
        owner = np.repeat(place, np.diff(index.labels_starts))
        part[owner[owner >= 0], index.labels[owner >= 0]] = True
    return held


def classes_in_views(
    shards: ShardSet, samples: npt.NDArray[np.int64], config: Config, views: int
) -> npt.NDArray[np.bool_]:
    """Return which classes hold at some time of each of the center clips that features are made of.

    Args:
        shards: The set.
        samples: Sample numbers, i64[N].
        config: Section `clips`.
        views: V clips per video.

    Returns:
        bool[N, V, C].

    Raises:
        ShardError: If an index cannot be read.
    """
    rows = [shards.row(sample) for sample in samples.tolist()]
    clips, _ = evaluation_plan(rows, config.clips, views, 1)
    return labels_in_clips(rows, clips.frames, len(shards.info.classes))


def class_precisions(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_]) -> dict[int, float]:
    """Return the average precision of each class that any video has, by its number; arguments as `mean_precision`."""
    seen = np.flatnonzero(positive.any(axis=0)).tolist()
    return {c: average_precision(scores[:, c], positive[:, c]) for c in seen}


def mean_precision(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_]) -> float:
    """Return the mean average precision over the classes that any video has; 0 if there are none.

    Args:
        scores: f[N, C], a score per video and class.
        positive: bool[N, C], the classes that each video has.
    """
    precisions = class_precisions(scores, positive)
    return float(np.mean(list(precisions.values()))) if precisions else 0.0


def summarize_labels(
    scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_], *, classes: list[str], left_out: list[str]
) -> Scores:
    """Compute average precisions and their mean.

    Args:
        scores: f[N, C], a score per video and class; larger is more certain.
        positive: bool[N, C], the classes that each video has.
        classes: The C class names.
        left_out: Samples that could not be read, one line each.

    Returns:
        The scores. Classes that no video has count for nothing.

    Raises:
        ShardFormatError: If no video has a class.
    """
    precisions = class_precisions(scores, positive)
    if not precisions:
        raise ShardFormatError("no readable test sample has a label")
    return Scores(
        measures={MAP: float(np.mean(list(precisions.values())))},
        samples=len(scores),
        left_out=left_out,
        per_class={classes[c]: precision for c, precision in precisions.items()},
        confusion=None,
        chance={
            MAP: float(positive[:, list(precisions)].mean())
        },  # the precision of a random order is the share of positives
    )


def average_precision(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_]) -> float:
    """Return the average precision of one class, without interpolation.

    It is the mean, over the positives, of the precision among all videos whose score is at least as large. Equal scores
    count together, so the result does not depend on the order of the videos.

    Args:
        scores: f[N].
        positive: bool[N], at least one True.

    Returns:
        A number in (0, 1]. For scores that say nothing, it is about the share of positives.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float((gained * (hits[last] / (last + 1))).sum() / hits[-1])
