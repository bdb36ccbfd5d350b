"""From class scores to the numbers of an evaluation: accuracies, accuracy per class, and a confusion matrix."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.checkpoint.run_folder import FINE_TUNED, RunFolder
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.evaluation.chance import guessed_accuracy

TOP1, TOP5 = "top-1", "top-5"
"""Names of the measures of a classification."""

MAX_CLASSES = 5_000
"""Most classes of an evaluation: the confusion matrix has their square of entries."""

_NAME = 40  # characters of the name of a set in the name of a file


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What was measured on the test samples.

    Attributes:
        measures: Values in [0, 1] by name, the most important first. A classification has TOP1, and with more than five
            classes TOP5: of five or fewer, every class is one of the first five.
        samples: Number of test samples.
        left_out: Training and test samples that could not be read, one line each.
        per_class: The first measure per class name, for classes with test samples.
        confusion: Counts, confusion[true][predicted]. None where no class is predicted.
        chance: What a guess reaches (chance.py), by name of the measure, where that is known.
    """

    measures: dict[str, float]
    samples: int
    left_out: list[str]
    per_class: dict[str, float]
    confusion: list[list[int]] | None
    chance: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> tuple[str, float]:
        """Return name and value of the most important measure."""
        return next(iter(self.measures.items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of `rhofast eval`.

    Attributes:
        kind: One of KINDS (checkpoint/run_folder.py).
        origin: Where the weights of the backbone come from, in words.
        step: Number of optimizer steps behind these weights. None where it is not known.
        weights: SHA-256 of these weights. Fine-tuning begins with them.
        folder: Folder of the run, in which the result lies.
        trained: Scores of the backbone.
        classes: Class names of the training set.
        untrained: Scores of the same backbone before training. None where they were not requested.
        shards: Location, name, split, digest and size of the training and the test set.
        settings: Settings of the evaluation: its protocol.
        chosen: What the evaluation chose or found by itself, such as a penalty, beside the scores.
        notes: Warnings that belong to the result, one sentence each.
        published: Published values of this protocol, as the configuration names them (`eval.published`).
    """

    kind: str
    origin: str
    step: int | None
    weights: str
    folder: Path
    trained: Scores
    classes: list[str]
    untrained: Scores | None = None
    shards: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    published: tuple[dict[str, Any], ...] = ()

    @property
    def backbone(self) -> str:
        """Return what the measured backbone is: "fine-tuned", "trained", "untrained", or "loaded" from a file."""
        if self.kind in FINE_TUNED:
            return "fine-tuned"
        return "loaded" if self.step is None else "trained" if self.step else "untrained"

    @property
    def path(self) -> Path:
        """Return the file of this result in its run: another set, another protocol and other weights have another."""
        sets = [without_place(facts) for facts in self.shards.values()]
        digest, test = identity_of([self.kind, self.weights, sets, self.settings]), self.shards.get("test", {})
        words = dict.fromkeys([self.kind, test.get("name", ""), test.get("split", ""), digest])  # without repetitions
        name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word)[:_NAME] for word in words if word)
        return RunFolder(self.folder).results / f"{name}.json"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        lists = {"notes": list(self.notes), "published": list(self.published)}
        return {**asdict(self), "backbone": self.backbone, "folder": str(self.folder), **lists}


def without_place(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a set but where it lies, which makes it no other set."""
    return {key: value for key, value in facts.items() if key != "where"}


def identity_of(values: Any) -> str:
    """Return eight hexadecimal digits that tell JSON values apart."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


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
    counts = {name: count for name, count in ((TOP1, 1), (TOP5, 5)) if count == 1 or count < len(classes)}
    ranked = np.argsort(-scores, axis=1, kind="stable")
    hit = ranked == label[:, None]
    confusion, per_class = count_classes(label, ranked[:, 0], classes)
    return Scores(
        measures={name: float(hit[:, :count].any(axis=1).mean()) for name, count in counts.items()},
        samples=len(label),
        left_out=left_out,
        per_class=per_class,
        confusion=confusion,
        chance={name: guessed_accuracy(label, count) for name, count in counts.items()},
    )


def count_classes(
    label: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: list[str]
) -> tuple[list[list[int]], dict[str, float]]:
    """Count which class is predicted for which.

    Args:
        label: i64[M], the true class numbers.
        predicted: i64[M], the predicted ones.
        classes: The class names.

    Returns:
        (counts, confusion[true][predicted]; accuracy per class name, for classes that have samples).
    """
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (label, predicted), 1)
    seen = np.flatnonzero(confusion.sum(axis=1))
    return confusion.tolist(), {classes[c]: float(confusion[c, c] / confusion[c].sum()) for c in seen}


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
    every = (np.unique(np.concatenate([index.label, index.labels])) for index in indices)
    with_samples = {label for labels in every for label in labels.tolist() if label >= 0}
    unknown = [name for label, name in enumerate(test.info.classes) if name not in number and label in with_samples]
    if unknown:
        more = f" (and {len(unknown) - 1} more classes)" if len(unknown) > 1 else ""
        raise ConfigError(
            f"{test.where}: class {unknown[0]!r} is not a class of {train.where}{more}",
            hint="classes are matched by name; the test set may have fewer classes, but no others",
        )
    return np.array([number.get(name, -1) for name in test.info.classes], dtype=np.int64)


def kinds_of_labels(shards: ShardSet) -> tuple[bool, bool]:
    """Return whether any sample has a label, and whether any has further labels, which hold for some time.

    Raises:
        ShardError: If an index cannot be read.
    """
    further = False
    for shard in shards.used_shards().tolist():
        index, rows = shards.index(shard), shards.rows_of(shard)
        further |= bool(np.diff(index.labels_starts)[rows].any())
        if (index.label[rows] >= 0).any():
            return True, further
    return False, further


def has_several(shards: ShardSet) -> bool:
    """Return whether the videos of a set have further labels alone, so that each class is learned by itself.

    Raises:
        ShardError: If an index cannot be read.
    """
    return kinds_of_labels(shards) == (False, True)


def check_labeled(shards: ShardSet, *, several: bool = False) -> None:
    """Refuse a set of which nothing can be learned or measured, before hours are spent on it.

    Args:
        shards: Training or test shards with classes.
        several: Whether further labels count, too.

    Raises:
        ConfigError: No sample has a label.
        ShardError: If an index cannot be read.
    """
    single, further = kinds_of_labels(shards)
    if single or (several and further):
        return
    what, hint = "", "evaluate on shards of a labeled set"
    if further:
        what = ", only further labels"
        hint = "for several labels per video: rhofast eval multilabel, linear or attentive"
    raise ConfigError(f"{shards.where}: no video has a label{what}", hint=hint)
