"""The plots of a report. Each draws one quantity of one or several runs as an <img> element with embedded data."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rhofast.display.fonts import plot_names
from rhofast.display.text import html_text, plot_text
from rhofast.evaluation.results import confusion_figure
from rhofast.evaluation.scores import TOP1
from rhofast.training.metrics import METRICS, STEP_PHASES

Lines = list[dict[str, Any]]

_BLUE, _ORANGE, _GRAY, _RED = "#2563a8", "#d97706", "#8a8f98", "#b91c1c"
_DASHES = ("solid", "dashed", "dotted")  # for runs 1 to 10, 11 to 20, ...; names of both CSS and matplotlib
_COLORS = (_BLUE, _ORANGE, "#15803d", _RED, "#7c3aed", "#0e7490", "#be185d", "#713f12", "#4d7c0f", _GRAY)
_PHASE_COLORS = dict(zip(STEP_PHASES, ("#b91c1c", "#2563a8", "#60a5fa", "#15803d", "#c4c8ce"), strict=True))
_OVER_RANKS = {
    "mean": "mean over ranks",
    "sum": "sum over ranks",
    "max": "maximum over ranks",
    "min": "minimum over ranks",
}
_DPI = 150
_NAME = 24  # characters of a run's name in a plot
_SMOOTHED = 200  # number of points from which a curve is drawn as running medians, with pale points behind it


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """The files of a run folder.

    Attributes:
        folder: Folder of the run.
        name: Name in the report.
        config: Configuration of the run; empty for weights from elsewhere, of which there are results only.
        starts: All start lines of metrics.jsonl.
        steps: Step lines of metrics.jsonl, one per step.
        checks: kNN lines of metrics.jsonl, one per step.
        messages: All lines with a text, such as warnings.
        state: State of the run, in words.
        results: Results of all evaluations, as `read_results` orders them.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    starts: Lines
    steps: Lines
    checks: Lines
    messages: Lines
    state: str
    results: list[dict[str, Any]]

    @property
    def knn(self) -> dict[str, Any] | None:
        """The result of `rhofast eval knn` with an accuracy that is shown: on the run's own test set, of the last step.

        Without one on its own test set, one on another.
        """
        found = [one for one in self.results if one["kind"] == "knn" and TOP1 in one["trained"]["measures"]]
        return max(found, key=lambda one: (self._is_own(one), one.get("step") or 0), default=None)

    def _is_own(self, result: dict[str, Any]) -> bool:
        test = self.config.get("data", {}).get("test") or {}
        own = test.get("shards") if isinstance(test, dict) else test
        return own is not None and result.get("shards", {}).get("test", {}).get("where") == str(own)


def draw_plots(runs: Sequence[RunLog]) -> list[str]:
    """Return <img> elements of all quantities that the runs have. Each run must have a step."""
    x_axis = _x_axis(runs)
    drawn = [_curves(runs, x_axis, "loss")]
    if any(run.checks or run.knn for run in runs):
        drawn.append(_knn_plot(runs, x_axis))
    drawn.append(_curves(runs, x_axis, "data_wait_share", style=_small_share))
    drawn.append(_curves(runs, x_axis, "clips_per_second", style=_from_zero))
    if any(_has(run, "data_seconds") for run in runs):
        drawn.append(_split_of_one(runs[0], x_axis) if len(runs) == 1 else _split_of_several(runs))
    drawn.append(_schedules(runs, x_axis))
    if any(_has(run, "feature_std") for run in runs):
        drawn.append(_curves(runs, x_axis, "feature_std", style=_std_axis))
    if any(_has(run, "grad_norm") for run in runs):
        drawn.append(_curves(runs, x_axis, "grad_norm"))
    for name in ("memory_bytes", "device_memory_bytes"):
        if any(_has(run, name) for run in runs):
            drawn.append(_curves(runs, x_axis, name, style=_from_zero))
    return drawn


def draw_legend(runs: Sequence[RunLog]) -> str:
    """Return the legend of all plots of several runs as HTML, since names may be long and curves many."""
    entries = (
        f"<span><i style='border-top: 3px {dashes} {color}'></i>{html_text(run.name)}</span>"
        for run, (color, dashes) in zip(runs, _styles(runs), strict=True)
    )
    return f"<div class=legend>{''.join(entries)}</div>"


def confusion_image(knn: dict[str, Any]) -> str:
    """Draw the confusion matrix of a kNN result (the contents of its file) as an <img> element."""
    trained = knn["trained"]
    of = plot_text(knn.get("shards", {}).get("test", {}).get("name", ""))
    title = f"kNN on {trained['samples']:,} videos{of and f' of {of}'}: top-1 {trained['measures'][TOP1]:.1%}"
    return _image(confusion_figure(trained["confusion"], knn["classes"], title=title), "confusion matrix")


def _x_axis(runs: Sequence[RunLog]) -> str:
    """Return the x axis of comparisons: steps, or epochs where the steps of the runs differ in size."""
    return "step" if len({round(_epochs_per_step(run), 9) for run in runs}) == 1 else "epoch"


def _epochs_per_step(run: RunLog) -> float:
    return float(run.steps[-1]["epoch"] / run.steps[-1]["step"])


def _has(run: RunLog, name: str) -> bool:
    return any(line.get(name) is not None for line in run.steps)


def _points(run: RunLog, x_axis: str, name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    known = [line for line in run.steps if line.get(name) is not None]
    return [line[x_axis] for line in known], [scale * line[name] for line in known]


def _plot(axes: Axes, x: list[float], y: list[float], color: str, dashes: str) -> None:
    """Draw a curve. Many points are drawn pale, with running medians over a fiftieth of them."""
    if len(y) >= _SMOOTHED:
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
        half = len(y) // 100
        y = [statistics.median(y[max(0, index - half) : index + half + 1]) for index in range(len(y))]
    axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.4, marker="o" if len(y) == 1 else None)


def _curves(
    runs: Sequence[RunLog],
    x_axis: str,
    name: str,
    *,
    style: Callable[[Axes], object] | None = None,
) -> str:
    """Draw one metric over the steps, one color per run, with the title and unit of METRICS.

    Args:
        runs: The runs.
        x_axis: "step" or "epoch".
        name: Name of the metric.
        style: Function that styles the axes.

    Returns:
        An <img> element.
    """
    metric = METRICS[name]
    title = f"{metric.label[0].upper()}{metric.label[1:]}"
    unit, scale = ("GB", 1e-9) if metric.unit == "bytes" else (metric.unit, 1.0)
    figure, axes = _figure(title, x_axis, f"{unit}, {_OVER_RANKS[metric.over_ranks]}".removeprefix(", "))
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        if _has(run, name):
            _plot(axes, *_points(run, x_axis, name, scale), color, dashes)
    if style is not None:
        style(axes)
    return _image(figure, f"{title} over {x_axis}s")


def _styles(runs: Sequence[RunLog]) -> list[tuple[str, str]]:
    """Return (color, dashes) of each run, the same in all plots."""
    count, kinds = len(_COLORS), len(_DASHES)
    return [(_COLORS[number % count], _DASHES[number // count % kinds]) for number in range(len(runs))]


def _small_share(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))


def _from_zero(axes: Axes) -> None:
    axes.set_ylim(bottom=0)


def _std_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.1)
    axes.axhline(0.1, color=_RED, linewidth=1, linestyle=":", label="below: collapsed, the run warns")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.1))


def _schedules(runs: Sequence[RunLog], x_axis: str) -> str:
    """Draw learning rates, and the EMA momentum if there is a single run."""
    figure, axes = _figure("Schedules" if len(runs) == 1 else "Learning rate", x_axis, "learning rate")
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        axes.plot(*_points(run, x_axis, "lr"), color=color, linestyle=dashes, linewidth=1.4)
    if len(runs) == 1 and _has(runs[0], "ema_momentum"):
        twin = axes.twinx()
        twin.plot(*_points(runs[0], x_axis, "ema_momentum"), color=_ORANGE, linewidth=1.4)
        twin.set_ylabel("EMA momentum", color=_ORANGE)
        twin.spines["top"].set_visible(False)
        axes.set_ylabel("learning rate", color=_BLUE)
    return _image(figure, f"learning rate over {x_axis}s")


def _split_of_one(run: RunLog, x_axis: str) -> str:
    figure, axes = _figure("Time per step by phase", x_axis, "milliseconds")
    x = [line[x_axis] for line in run.steps if line.get("data_seconds") is not None]
    layers = [_points(run, x_axis, f"{name}_seconds", 1000)[1] for name in STEP_PHASES]
    axes.stackplot(x, layers, labels=STEP_PHASES, colors=[_PHASE_COLORS[name] for name in STEP_PHASES], linewidth=0)
    medians = [statistics.median(map(sum, zip(*layers, strict=True)))]
    axes.set_ylim(0, 1.6 * medians[0])  # the first steps include one-time work and would flatten the others
    axes.legend(ncols=len(STEP_PHASES), fontsize=8, loc="upper center", columnspacing=1, handlelength=1, edgecolor="w")
    return _image(figure, "phases of a step")


def _split_of_several(runs: Sequence[RunLog]) -> str:
    """Draw the median time of each phase, one bar per run."""
    known = [run for run in runs if _has(run, "data_seconds")]
    figure, axes = _figure("Time per step by phase", "milliseconds (medians)", "", height=1.3 + 0.25 * len(known))
    left = [0.0] * len(known)
    for name in STEP_PHASES:
        widths = [statistics.median(_points(run, "step", f"{name}_seconds", 1000)[1]) for run in known]
        axes.barh(range(len(known)), widths, left=left, label=name, color=_PHASE_COLORS[name], height=0.6)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    names, fonts = plot_names([run.name for run in known], _NAME)
    axes.set_yticks(range(len(known)), names, fontfamily=fonts)
    axes.set_ylim(len(known) - 0.4, -0.6)  # the first on top
    axes.grid(visible=False)
    figure.legend(
        frameon=False, ncols=len(STEP_PHASES), fontsize=8, loc="outside lower center", columnspacing=1, handlelength=1
    )
    return _image(figure, "phases of a step")


def _knn_plot(runs: Sequence[RunLog], x_axis: str) -> str:
    figure, axes = _figure("kNN on held-out videos", x_axis, "top-1 accuracy")
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        last, unit = run.steps[-1]["step"], _epochs_per_step(run) if x_axis == "epoch" else 1
        points = [(line["step"], line["top1"]) for line in run.checks]
        if run.knn is not None and not any(step == (run.knn.get("step") or last) for step, _ in points):
            points = sorted([*points, (run.knn.get("step") or last, run.knn["trained"]["measures"][TOP1])])
        if points:
            x, y = zip(*((step * unit, top1) for step, top1 in points), strict=True)
            axes.plot(x, y, color=color, linestyle=dashes, marker="o", markersize=4, linewidth=1.4, label="trained")
    if (knn := runs[0].knn) is not None and len(runs) == 1:
        if knn.get("untrained"):
            before = knn["untrained"]["measures"].get(TOP1, 0)
            axes.axhline(before, color=_ORANGE, linestyle="--", linewidth=1.2, label="untrained")
        if (chance := knn["trained"].get("chance", {}).get(TOP1)) is not None:
            axes.axhline(chance, color=_GRAY, linestyle=":", linewidth=1.2, label="chance")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
    if len(runs) == 1:
        axes.legend(frameon=False)
    return _image(figure, f"kNN accuracy over {x_axis}s")


def _figure(title: str, x_axis: str, up: str, *, height: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, max(3.3, height)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x_axis)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _image(figure: Figure, alt: str) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI)
    return f"<img alt='{html_text(alt)}' src='data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}'>"
