"""Write the result of an evaluation: a JSON file, and a picture of the confusion matrix; name what goes beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rhofast.checkpoint.run_folder import KINDS, set_name
from rhofast.display.fonts import plot_names
from rhofast.display.text import plot_text
from rhofast.evaluation.scores import Evaluation
from rhofast.storage.files import replacing, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NAMED = 120  # classes whose names fit beside a matrix
_MAX_COUNTED = 16  # classes whose counts fit into the squares of a matrix
_MAX_TITLE = 60  # characters of the name of a set in a title
_MAX_NAME = 32  # characters of a class name that are drawn
_MIN_INCHES, _UNNAMED_INCHES = 2.5, 10.0  # side of a matrix: the least, and without class names


def beside(path: Path, name: str) -> Path:
    """Return the path of a file that belongs to a result: NAME-`name` for the result NAME.json."""
    return path.with_name(f"{path.stem}-{name}")


def write_evaluation(evaluation: Evaluation, path: Path) -> Path | None:
    """Write the JSON file of an evaluation, and NAME-confusion.png beside it where classes are predicted.

    Args:
        evaluation: The result.
        path: The JSON file.

    Returns:
        The path of the picture, or None.

    Raises:
        OSError: If a file cannot be written.
    """
    text = json.dumps(evaluation.to_json(), indent=1)
    # One line per row of the confusion matrix.
    rows = re.sub(r"\[\n\s*\d+(?:,\n\s*\d+)*\n\s*\]", lambda row: re.sub(r"\s+", " ", row[0]), text)
    write_atomically(path, rows)
    scores = evaluation.trained
    if scores.confusion is None:
        return None
    picture = beside(path, "confusion.png")
    measure, value = scores.main
    of = plot_text(set_name(evaluation.shards.get("test", {})), _MAX_TITLE)
    title = f"{KINDS[evaluation.kind]} on {scores.samples:,} videos{of and f' of {of}'}: {measure} {value:.1%}"
    figure = confusion_figure(scores.confusion, evaluation.classes, title=title)
    with replacing(picture) as aside:
        figure.savefig(aside, format="png")
    return picture


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], *, title: str) -> Figure:
    """Draw a confusion matrix: in each row the shares into which one true class is predicted.

    Args:
        confusion: Counts, confusion[true][predicted].
        classes: Class names.
        title: Title of the figure.

    Returns:
        The figure. Large matrices have no counts and very large ones no class names.
    """
    from matplotlib.figure import Figure  # most commands that import this module draw nothing

    counts = np.array(confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count = len(classes)
    named = count <= _MAX_NAMED
    names, fonts = plot_names(classes if named else [], _MAX_NAME)
    side = max(_MIN_INCHES, (0.3 if count <= 40 else 0.14) * count) if named else _UNNAMED_INCHES
    beside = 0.4 + (0.06 if count > 40 else 0.085) * max(map(len, names)) if named else 0.8
    figure = Figure(figsize=(side + beside + 1.6, side + beside + 0.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    # Among many classes a share of a few percent is too pale to see; a square root scale shows it.
    image = axes.imshow(
        shares, norm="linear" if count <= _MAX_COUNTED else _square_root_scale(), cmap="Blues", interpolation="nearest"
    )
    image.set_clim(0, 1)
    if named:
        size = 8 if count <= 40 else 6
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, fontfamily=fonts)
        axes.set_yticks(range(count), names, fontsize=size, fontfamily=fonts)
    if count <= _MAX_COUNTED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.6 else "black"
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7 if len(text) < 4 else 5, color=color)
    axes.set_xlabel("predicted" if named else "predicted (class numbers, as in `classes` of the JSON file)")
    axes.set_ylabel("true")
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="share of the true class")
    return figure


def _square_root_scale() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)
