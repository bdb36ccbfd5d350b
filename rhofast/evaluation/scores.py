"""From class scores to what is said of them: accuracies, a table of classes, a confusion matrix, a JSON file.

What it is not: it makes no scores (knn.py, multiview.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """top1 and top5 in [0, 1] over `samples` test samples; per_class: accuracy by class name, for classes with test
    samples; confusion[true][predicted] counts; left_out: what could not be read of the training and the test samples, a
    line each."""

    top1: float
    top5: float
    samples: int
    left_out: list[str]
    per_class: dict[str, float]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What `rhofast eval` found. kind: "knn", "linear" or "finetune"; origin: what the weights are, in words; step:
    optimizer steps behind them, where it is known; folder: where files about it go; untrained: the same of the backbone
    before training, or None; chance: 1 / number of classes; shards: the training and the test set, where they are and
    their digests; settings: what was chosen on the way; notes: sentences that a reader must not miss."""

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
        return {**asdict(self), "folder": str(self.folder), "notes": list(self.notes)}


def summarize(
    scores: npt.NDArray[np.floating[Any]], label: npt.NDArray[np.int64], *, classes: list[str], left_out: list[str]
) -> Scores:
    """Accuracies of class scores f[M, C] against labels i64[M]. Equal scores count for the smaller class number. Raises
    ShardFormatError where M is 0."""
    if not len(label):
        raise ShardFormatError("of the test samples that can be read, not one has a label")
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
    """Test class number -> training class number, by name. Raises ConfigError where a set has no classes, or the test
    set one that the training set has not."""
    for shards in (train, test):
        if not shards.info.classes:
            raise ConfigError(f"{shards.where}: no labels", hint="shard a labeled set to evaluate on")
    number = {name: place for place, name in enumerate(train.info.classes)}
    unknown = [name for name in test.info.classes if name not in number]
    if unknown:
        more = f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else ""
        raise ConfigError(
            f"{test.where}: class {unknown[0]!r} is not a class of {train.where}{more}",
            hint="classes are matched by name; the test set may have fewer of them",
        )
    return np.array([number[name] for name in test.info.classes], dtype=np.int64)
