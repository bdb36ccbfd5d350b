"""From class scores to what is said of them: accuracies, a table of classes, a confusion matrix, a JSON file.

What it is not: it makes no scores (knn.py, multiview.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.index import ShardSet
from rhofast.errors import ConfigError
from rhofast.files import write_atomically

_NAMED = 40  # classes whose names still fit beside a matrix


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
    before training, or None; chance: 1 / number of classes; settings: what was chosen on the way; notes: sentences that
    a reader must not miss."""

    kind: str
    origin: str
    step: int | None
    folder: Path
    trained: Scores
    chance: float
    classes: list[str]
    untrained: Scores | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "notes": list(self.notes)}


def summarize(
    scores: npt.NDArray[np.floating[Any]], label: npt.NDArray[np.int64], *, classes: list[str], left_out: list[str]
) -> Scores:
    """Accuracies of class scores f[M, C] against labels i64[M]. Equal scores count for the smaller class number."""
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
        raise ConfigError(f"{test.where}: class {unknown[0]!r} is not a class of {train.where}")
    return np.array([number[name] for name in test.info.classes], dtype=np.int64)


def write_evaluation(evaluation: Evaluation, path: Path) -> Path:
    """Write the JSON file `path`, and beside it NAME-confusion.png, which is returned. Raises OSError."""
    write_atomically(path, json.dumps(evaluation.to_json(), indent=1))
    picture = path.with_name(f"{path.stem}-confusion.png")
    draw_confusion(evaluation, picture)
    return picture


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """A picture of where the classes go: shares of each true class, row by row. Raises OSError."""
    from matplotlib.figure import Figure  # here: most commands do without

    scores, classes = evaluation.trained, evaluation.classes
    counts = np.array(scores.confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, max(4.5, 2.5 + 0.3 * len(classes)))
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(classes) <= _NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{evaluation.kind}: top-1 {scores.top1:.1%} of {scores.samples:,} videos", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    figure.savefig(path)
