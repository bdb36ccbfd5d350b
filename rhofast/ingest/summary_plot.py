"""Draw the summary of a shard set as a picture of histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rhofast.display.fonts import plot_names
from rhofast.ingest.summary import Summary, percentiles
from rhofast.storage.files import replacing

_BLUE, _ORANGE, _GRAY, _PALE = "#2563a8", "#d97706", "#8a8f98", "#e5e7eb"
_NAMED = 12  # up to this many classes or sizes get a bar and a name each
_NAME = 28  # longest name of a class, in characters
_TITLE = 72  # longest name of a set, in characters
_BINS = 40
_TIMES = (0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000)  # seconds
_BYTES = tuple(digit * 10.0**power for power in range(1, 14) for digit in (1, 3))
_MAGNITUDES = 20  # ratio of the largest to the smallest value above which the axis is logarithmic


# ---- the picture ----


def draw_summary(summary: Summary, path: Path) -> None:
    """Write a picture of a set: durations, bytes, picture sizes and labels.

    Args:
        summary: Summary of the set.
        path: File to write; its suffix chooses the format.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(11, 7.4))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, hspace=0.04, rect=(0, 0, 1, 0.91))
    grid = figure.add_gridspec(2, 2)
    facts = [
        f"{summary.samples:,} samples in {summary.shards:,} {'shard' if summary.shards == 1 else 'shards'}",
        f"{summary.hours:,.1f} h of video" if summary.hours >= 1 else f"{_duration(summary.hours * 3600)} of video",
        f"{summary.frames:,} frames",
        _bytes(summary.bytes),
    ]
    (title,), fonts = plot_names([summary.name], _TITLE)
    figure.text(0.012, 0.965, title, fontsize=15, va="center", fontfamily=fonts)
    figure.text(0.012, 0.922, "   ·   ".join(facts), color=_GRAY, fontsize=10.5, va="center")
    _histogram(_panel(figure, grid[0, 0], "Duration of a sample"), summary.durations, _duration, _TIMES)
    _histogram(_panel(figure, grid[0, 1], "Bytes of a sample"), summary.weights, _bytes, _BYTES)
    _bars(_panel(figure, grid[1, 0], f"Picture size ({_many(len(summary.sizes), 'size')})"), _top_sizes(summary))
    axes = _panel(figure, grid[1, 1], f"Labels ({_many(len(summary.labels), 'class', 'classes')})")
    if summary.labels:
        ranked = dict(sorted(summary.labels.items(), key=lambda item: -item[1]))
        (_bars if len(ranked) <= _NAMED else _falling)(axes, ranked)
        if summary.unlabeled:
            axes.set_title(f"{summary.unlabeled:,} samples without label", loc="right", fontsize=9, color=_ORANGE)
    else:
        axes.set_axis_off()
        axes.set_title("Labels", loc="left", fontsize=11, fontweight="bold")
        axes.text(0.5, 0.5, "this set has no labels", ha="center", va="center", color=_GRAY, transform=axes.transAxes)
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix[1:].lower() or "png", dpi=150)


def _panel(figure: Figure, place: SubplotSpec, title: str) -> Axes:
    axes: Axes = figure.add_subplot(place)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def _histogram(axes: Axes, counts: Mapping[float, int], form: Callable[[float], str], ticks: Sequence[float]) -> None:
    """Draw samples by value; if values span several magnitudes, on a logarithmic axis with these ticks."""
    values, samples = np.array(list(counts)), np.array(list(counts.values()))
    (median,) = percentiles(counts, [50])
    low, high = (values[0], values[-1]) if len(values) > 1 else (0.9 * values[0], 1.1 * values[0])
    bins = min(_BINS, max(11, len(values))) + 1  # of an odd number of bars, a single value is in the middle of one
    edges = np.linspace(low, high, bins)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if high > _MAGNITUDES * low:
        edges = np.geomspace(low, high, bins)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.hist(values, bins=edges.tolist(), weights=samples, color=_BLUE, edgecolor="white", linewidth=0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.axvline(median, color=_ORANGE, linewidth=1.4)
    axes.set_title(f"median {form(median)}", loc="right", fontsize=9.5, color=_ORANGE)
    _count_axis(axes)


def _bars(axes: Axes, counts: Mapping[str, int]) -> None:
    """Draw one bar per name, in the given order."""
    bars = axes.barh(range(len(counts)), list(counts.values()), color=_BLUE, height=0.64)
    axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=4, fontsize=8.5, color=_GRAY)
    names, fonts = plot_names(list(counts), _NAME)
    axes.set_yticks(range(len(counts)), names, fontsize=9, fontfamily=fonts)
    axes.set_ylim(max(len(counts), 5) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.margins(x=0.12)


def _falling(axes: Axes, counts: Mapping[str, int]) -> None:
    """Draw many classes as one falling curve; `counts` must be sorted, most samples first."""
    names, samples = list(counts), list(counts.values())
    axes.stairs(samples, np.arange(len(names) + 1), fill=True, color=_BLUE)
    axes.set_xlim(0, len(names))
    axes.set_ylim(0, 1.3 * max(1, *samples))  # room for the names
    axes.set_xlabel("classes, by number of samples")
    _count_axis(axes)
    style: dict[str, Any] = {
        "va": "top",
        "fontsize": 9,
        "color": _GRAY,
        "transform": axes.transAxes,
    }
    ends, fonts = plot_names([names[0], names[-1]], _NAME)
    for rank, which, x, align in ((0, "most", 0.02, "left"), (-1, "fewest", 1.0, "right")):
        text = f"{which}: {samples[rank]:,}\n{ends[rank]}"
        axes.text(x, 0.98, text, ha=align, fontfamily=fonts, **style)
    middle = f"median: {samples[len(samples) // 2]:,}"
    axes.text(0.51, 0.98, middle, ha="center", **style)


def _top_sizes(summary: Summary) -> dict[str, int]:
    """Return the number of samples for the most frequent sizes, and for all others together."""
    counts = {f"{width} x {height}": count for (width, height), count in summary.sizes.items()}
    if len(counts) <= _NAMED:
        return counts
    top = dict(list(counts.items())[: _NAMED - 1])
    return {**top, f"{len(counts) - len(top):,} others": sum(counts.values()) - sum(top.values())}


def _count_axis(axes: Axes) -> None:
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color=_PALE, linewidth=0.8)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _bytes(count: float) -> str:
    return EngFormatter(unit="B")(float(f"{count:.3g}"))


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
