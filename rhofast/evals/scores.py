"""From class scores to what is said of them: accuracies, a table of classes, a confusion matrix, a JSON file.

What it is not: it makes no scores (knn.py, multiview.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.storage.files import replacing, write_atomically

_NAMED = 120  # classes whose names still fit beside a matrix
_COUNTED = 16  # classes whose counts still fit into its squares
_LONGEST = 32  # letters of a name that are shown
_INCHES = (2.5, 10.0)  # side of a matrix: the least, and where names do not fit


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


def write_evaluation(evaluation: Evaluation, path: Path) -> Path:
    """Write the JSON file `path`, and beside it NAME-confusion.png, which is returned. Raises OSError."""
    text = json.dumps(evaluation.to_json(), indent=1)
    rows = re.sub(r"\[\n\s*\d+(?:,\n\s*\d+)*\n\s*\]", lambda row: re.sub(r"\s+", " ", row[0]), text)  # a line a class
    write_atomically(path, rows)
    picture = path.with_name(f"{path.stem}-confusion.png")
    draw_confusion(evaluation, picture)
    return picture


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """A picture of where the classes go: shares of each true class, row by row. Raises OSError."""
    from matplotlib.figure import Figure  # here: most commands do without

    scores, classes = evaluation.trained, evaluation.classes
    counts = np.array(scores.confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count, (least, unnamed) = len(classes), _INCHES
    named = count <= _NAMED
    side = max(least, (0.3 if count <= 40 else 0.14) * count) if named else unnamed
    beside = 0.4 + (0.06 if count > 40 else 0.085) * min(max(map(len, classes)), _LONGEST) if named else 0.8
    figure = Figure(figsize=(side + beside + 1.6, side + beside + 0.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    # Beside many classes a share of a few percent is a speck: the root of it is seen.
    image = axes.imshow(shares, norm="linear" if count <= _COUNTED else _root(), cmap="Blues", interpolation="nearest")
    image.set_clim(0, 1)
    if named:
        size = 8 if count <= 40 else 6
        axes.set_xticks(range(count), _shown(classes), rotation=90, fontsize=size)
        axes.set_yticks(range(count), _shown(classes), fontsize=size)
    if count <= _COUNTED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.6 else "black"
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7 if len(text) < 4 else 5, color=color)
    axes.set_xlabel("predicted" if named else "predicted (numbers: the place in the JSON file's classes)")
    axes.set_ylabel("true")
    title = f"{evaluation.kind}: top-1 {scores.top1:.1%} of {scores.samples:,} videos"
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="share of the true class")
    with replacing(path) as aside:
        figure.savefig(aside, format="png")


def _root() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _shown(classes: list[str]) -> list[str]:
    """Names as labels: none is read as a formula, and none is longer than the picture."""
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..." for name in classes]
    return [name.replace("$", r"\$") for name in short]
