"""Write the result of an evaluation: JSON, and a picture of the confusion matrix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rhofast.evaluation.scores import Evaluation
from rhofast.storage.files import replacing, write_atomically

_NAMED = 120  # classes whose names still fit beside a matrix
_COUNTED = 16  # classes whose counts still fit into its squares
_LONGEST = 32  # letters of a name that are shown
_INCHES = (2.5, 10.0)  # side of a matrix: the least, and where names do not fit


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
