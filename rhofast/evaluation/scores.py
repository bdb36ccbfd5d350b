"""From class scores to the numbers of an evaluation: accuracies, accuracy per class, and a confusion matrix."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError

MAX_CLASSES = 5_000
"""Most classes of an evaluation: the confusion matrix has their square of entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Accuracies on the test samples.

    Attributes:
        top1: Top-1 accuracy in [0, 1].
        top5: Top-5 accuracy in [0, 1].
        samples: Number of test samples.
        left_out: Training and test samples that could not be read, one line each.
        per_class: Accuracy per class name, for classes with test samples.
        confusion: Counts, confusion[true][predicted].
    """

    top1: float
    top5: float
    samples: int
    left_out: list[str]
    per_class: dict[str, float]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of `rhofast eval`.

    Attributes:
        kind: "knn", "linear" or "finetune".
        origin: Where the weights come from, in words.
        step: Number of optimizer steps behind the weights. None where it is not known.
        folder: Folder for result files.
        trained: Scores of the backbone.
        chance: 1 / number of classes.
        classes: Class names of the training set.
        untrained: Scores of the same backbone before training. None where they were not requested.
        shards: Location, name, digest and size of the training and the test set.
        settings: Settings of the evaluation, and what it chose.
        notes: Warnings that belong to the result, one sentence each.
    """

    kind: str
    origin: str
    step: int | None
    folder: Path
    trained: Scores
    chance: float
    classes: list[str]
    untrained: Scores | None = None
    shards: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "folder": str(self.folder), "notes": list(self.notes)}


def summarize(
    scores: npt.NDArray[np.floating[Any]], label: npt.NDArray[np.int64], *, classes: list[str], left_out: list[str]
) -> Scores:
    """Compute accuracies from class scores. Among equal scores the smaller class number ranks first.

    Args:
        scores: f[M, C], class scores.
        label: i64[M], class numbers.
        classes: The C class names.
        left_out: Samples that could not be read, one line each.

    Returns:
        The accuracies.

    Raises:
        ShardFormatError: If M is 0.
    """
    if not len(label):
        raise ShardFormatError("no readable test sample has a label")
    ranked = np.argsort(-scores, axis=1, kind="stable")
    hit = ranked == label[:, None]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (label, ranked[:, 0]), 1)
    seen = np.flatnonzero(confusion.sum(axis=1))
    return Scores(
        top1=float(hit[:, 0].mean()),
        top5=float(hit[:, :5].any(axis=1).mean()),
        samples=len(label),
        left_out=left_out,
        per_class={classes[c]: float(confusion[c, c] / confusion[c].sum()) for c in seen},
        confusion=confusion.tolist(),
    )


def class_map(train: ShardSet, test: ShardSet) -> npt.NDArray[np.int64]:
    """Map the class numbers of a test set to those of a training set, by name.

    Only the classes that have test samples need to be classes of the training set.

    Args:
        train: Labeled training shards.
        test: Labeled test shards.

    Returns:
        i64[test classes], the training class number of each test class; -1 for a class that the training set lacks.

    Raises:
        ConfigError: If a set has no classes or too many, a name occurs twice, or a test sample has a class that the
            training set lacks.
        ShardError: If an index cannot be read.
    """
    for shards in (train, test):
        if not shards.info.classes:
            raise ConfigError(f"{shards.where}: the set has no labels", hint="evaluate on shards of a labeled set")
        if len(shards.info.classes) > MAX_CLASSES:
            raise ConfigError(
                f"{shards.where}: {len(shards.info.classes):,} classes; an evaluation takes {MAX_CLASSES:,} at most",
                hint="evaluate on a set with class labels; labels that are ids of videos are none",
            )
        if len(set(shards.info.classes)) != len(shards.info.classes):
            twice, _ = Counter(shards.info.classes).most_common(1)[0]
            raise ConfigError(
                f"{shards.where}: two classes have the name {twice!r}", hint="make the shards again with unique names"
            )
    number = {name: place for place, name in enumerate(train.info.classes)}
    indices = map(test.index, range(len(test.info.shards)))
    with_samples = {int(label) for index in indices for label in np.unique(index.label) if label >= 0}
    unknown = [name for label, name in enumerate(test.info.classes) if name not in number and label in with_samples]
    if unknown:
        more = f" (and {len(unknown) - 1} more classes)" if len(unknown) > 1 else ""
        raise ConfigError(
            f"{test.where}: class {unknown[0]!r} is not a class of {train.where}{more}",
            hint="classes are matched by name; the test set may have fewer classes, but no others",
        )
    return np.array([number.get(name, -1) for name in test.info.classes], dtype=np.int64)
