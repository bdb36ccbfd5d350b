"""The plots of a report: each draws one thing of one run or of several, as an image that stands in a page by itself."""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rhofast.evaluation.results import confusion_figure
from rhofast.training.metrics import METRICS
from rhofast.training.step_timer import STEP_PHASES

Lines = list[dict[str, Any]]

_BLUE, _ORANGE, _GRAY, _RED = "#2563a8", "#d97706", "#8a8f98", "#b91c1c"
_DASHES = ("solid", "dashed", "dotted")  # of the first ten runs, the second, ...; CSS and matplotlib call them so
_COLORS = (_BLUE, _ORANGE, "#15803d", _RED, "#7c3aed", "#0e7490", "#be185d", "#713f12", "#4d7c0f", _GRAY)
_STAGE_COLORS = dict(zip(STEP_PHASES, ("#b91c1c", "#2563a8", "#60a5fa", "#15803d", "#c4c8ce"), strict=True))
_OVER_RANKS = {
    "mean": "mean over ranks",
    "sum": "all ranks together",
    "max": "the largest of any rank",
    "min": "the smallest of any rank",
}
_DPI = 150
_NAME = 24  # characters of a run's name in a plot
_SMOOTHED = 200  # points from which on a curve is drawn as running medians, with the points behind it


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """What a run left. steps, checks: one line a step of the metrics file; starts, remarks: all of them; knn: the
    result of the last evaluation, where there is one; state: how it stands, in words."""

    folder: Path
    name: str
    config: dict[str, Any]
    starts: Lines
    steps: Lines
    checks: Lines
    remarks: Lines
    state: str
    knn: dict[str, Any] | None


def draw_plots(runs: Sequence[RunLog]) -> list[str]:
    """<img> elements of what the runs have; each has a step."""
    across = _across(runs)
    drawn = [_curves(runs, across, "loss")]
    if any(run.checks or run.knn for run in runs):
        drawn.append(_knn_plot(runs, across))
    drawn.append(_curves(runs, across, "data_wait_share", dress=_small_share))
    drawn.append(_curves(runs, across, "clips_per_second", dress=_from_zero))
    if any(_has(run, "data_seconds") for run in runs):
        drawn.append(_split_of_one(runs[0], across) if len(runs) == 1 else _split_of_several(runs))
    drawn.append(_schedules(runs, across))
    if any(_has(run, "feature_std") for run in runs):
        drawn.append(_curves(runs, across, "feature_std", dress=_spread))
    if any(_has(run, "grad_norm") for run in runs):
        drawn.append(_curves(runs, across, "grad_norm"))
    for name in ("memory_bytes", "device_memory_bytes"):
        if any(_has(run, name) for run in runs):
            drawn.append(_curves(runs, across, name, dress=_from_zero))
    return drawn


def draw_legend(runs: Sequence[RunLog]) -> str:
    """Whose curves are whose, for all plots of several runs, as HTML: names may be long, and curves many."""
    entries = (
        f"<span><i style='border-top: 3px {dashes} {color}'></i>{html.escape(run.name)}</span>"
        for run, (color, dashes) in zip(runs, _styles(runs), strict=True)
    )
    return f"<div class=legend>{''.join(entries)}</div>"


def confusion_image(knn: dict[str, Any]) -> str:
    """Draw the confusion matrix of a kNN result (the contents of knn.json) as an <img> element."""
    trained = knn["trained"]
    title = f"top-1 {trained['top1']:.1%} of {trained['samples']:,} videos"
    return _image(confusion_figure(trained["confusion"], knn["classes"], title=title), "confusion matrix")


def _across(runs: Sequence[RunLog]) -> str:
    """What runs are compared along: steps, or epochs where their steps differ in size."""
    return "step" if len({round(_epochs_a_step(run), 9) for run in runs}) == 1 else "epoch"


def _epochs_a_step(run: RunLog) -> float:
    return float(run.steps[-1]["epoch"] / run.steps[-1]["step"])


def _has(run: RunLog, name: str) -> bool:
    return any(line.get(name) is not None for line in run.steps)


def _points(run: RunLog, across: str, name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    known = [line for line in run.steps if line.get(name) is not None]
    return [line[across] for line in known], [scale * line[name] for line in known]


def _plot(axes: Axes, x: list[float], y: list[float], color: str, dashes: str) -> None:
    """A curve; of many points, the running medians over a fiftieth of them, and the points faintly."""
    if len(y) >= _SMOOTHED:
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
        half = len(y) // 100
        y = [statistics.median(y[max(0, at - half) : at + half + 1]) for at in range(len(y))]
    axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.4, marker="o" if len(y) == 1 else None)


def _curves(
    runs: Sequence[RunLog],
    across: str,
    name: str,
    *,
    dress: Callable[[Axes], object] | None = None,
) -> str:
    """One number of the lines over the steps, a color a run, with the title and the unit that METRICS gives it."""
    metric = METRICS[name]
    title = f"{metric.label[0].upper()}{metric.label[1:]}"
    unit, scale = ("GB", 1e-9) if metric.unit == "bytes" else (metric.unit, 1.0)
    figure, axes = _figure(title, across, f"{unit}, {_OVER_RANKS[metric.over_ranks]}".removeprefix(", "))
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        if _has(run, name):
            _plot(axes, *_points(run, across, name, scale), color, dashes)
    if dress is not None:
        dress(axes)
    return _image(figure, f"{title} over {across}s")


def _styles(runs: Sequence[RunLog]) -> list[tuple[str, str]]:
    """(color, dashes) of each run, the same in all plots."""
    count, kinds = len(_COLORS), len(_DASHES)
    return [(_COLORS[number % count], _DASHES[number // count % kinds]) for number in range(len(runs))]


def _small_share(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))


def _from_zero(axes: Axes) -> None:
    axes.set_ylim(bottom=0)


def _spread(axes: Axes) -> None:
    axes.set_ylim(0, 1.1)
    axes.axhline(0.1, color=_RED, linewidth=1, linestyle=":")


def _schedules(runs: Sequence[RunLog], across: str) -> str:
    """Learning rates; of one run, the key network's momentum, too."""
    figure, axes = _figure("Schedules" if len(runs) == 1 else "Learning rate", across, "learning rate")
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        axes.plot(*_points(run, across, "lr"), color=color, linestyle=dashes, linewidth=1.4)
    if len(runs) == 1 and _has(runs[0], "ema_momentum"):
        twin = axes.twinx()
        twin.plot(*_points(runs[0], across, "ema_momentum"), color=_ORANGE, linewidth=1.4)
        twin.set_ylabel("key network's momentum", color=_ORANGE)
        twin.spines["top"].set_visible(False)
        axes.set_ylabel("learning rate", color=_BLUE)
    return _image(figure, f"learning rate over {across}s")


def _split_of_one(run: RunLog, across: str) -> str:
    figure, axes = _figure("Where the time of a step goes", across, "milliseconds")
    x = [line[across] for line in run.steps if line.get("data_seconds") is not None]
    layers = [_points(run, across, f"{name}_seconds", 1000)[1] for name in STEP_PHASES]
    axes.stackplot(x, layers, labels=STEP_PHASES, colors=[_STAGE_COLORS[name] for name in STEP_PHASES], linewidth=0)
    medians = [statistics.median(map(sum, zip(*layers, strict=True)))]
    axes.set_ylim(0, 1.6 * medians[0])  # the first windows hold what happens once, and would press the others flat
    axes.legend(ncols=len(STEP_PHASES), fontsize=8, loc="upper center", columnspacing=1, handlelength=1, edgecolor="w")
    return _image(figure, "stages of a step")


def _split_of_several(runs: Sequence[RunLog]) -> str:
    """The stages' medians, a bar a run."""
    known = [run for run in runs if _has(run, "data_seconds")]
    figure, axes = _figure("Where the time of a step goes", "milliseconds, medians", "", height=1.3 + 0.25 * len(known))
    left = [0.0] * len(known)
    for name in STEP_PHASES:
        widths = [statistics.median(_points(run, "step", f"{name}_seconds", 1000)[1]) for run in known]
        axes.barh(range(len(known)), widths, left=left, label=name, color=_STAGE_COLORS[name], height=0.6)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(known)), [_short(run.name) for run in known], parse_math=False)
    axes.set_ylim(len(known) - 0.4, -0.6)  # the first on top
    axes.grid(visible=False)
    figure.legend(
        frameon=False, ncols=len(STEP_PHASES), fontsize=8, loc="outside lower center", columnspacing=1, handlelength=1
    )
    return _image(figure, "stages of a step")


def _knn_plot(runs: Sequence[RunLog], across: str) -> str:
    figure, axes = _figure("kNN on held-out videos", across, "top-1 accuracy")
    for run, (color, dashes) in zip(runs, _styles(runs), strict=True):
        last, unit = run.steps[-1]["step"], _epochs_a_step(run) if across == "epoch" else 1
        points = [(line["step"], line["top1"]) for line in run.checks]
        if run.knn is not None and not any(step == last for step, _ in points):
            points.append((last, run.knn["trained"]["top1"]))
        if points:
            x, y = zip(*((step * unit, top1) for step, top1 in points), strict=True)
            axes.plot(x, y, color=color, linestyle=dashes, marker="o", markersize=4, linewidth=1.4, label="trained")
    if (knn := runs[0].knn) is not None and len(runs) == 1:
        if knn.get("untrained"):
            axes.axhline(knn["untrained"]["top1"], color=_ORANGE, linestyle="--", linewidth=1.2, label="untrained")
        axes.axhline(knn["chance"], color=_GRAY, linestyle=":", linewidth=1.2, label="chance")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
    if len(runs) == 1:
        axes.legend(frameon=False)
    return _image(figure, f"kNN accuracy over {across}s")


def _short(name: str) -> str:
    """A name that leaves room for the plot: its end tells runs of one kind apart as well as its beginning."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"


def _figure(title: str, across: str, up: str, *, height: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, max(3.3, height)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _image(figure: Figure, alt: str) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI)
    return f"<img alt='{html.escape(alt)}' src='data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}'>"
