"""What is in a shard set, what its clips will cost to read and decode, and a picture of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rhofast.config.schema import ClipSection
from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.clip_cost import clip_cost

_SAMPLED = 256  # samples whose clips are planned to measure amplification
_DIGITS = 4  # significant digits of what is counted: at most 9000 values a decade, however many samples there are
_BLUE, _ORANGE, _GRAY, _PALE = "#2563a8", "#d97706", "#8a8f98", "#e5e7eb"
_NAMED = 12  # so many classes, or sizes, get a bar and a name each
_NAME = 28  # characters of a name
_BINS = 40
_TIMES = (0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000)  # seconds
_BYTES = tuple(digit * 10.0**power for power in range(1, 14) for digit in (1, 3))
_MAGNITUDES = 20  # between the shortest and the longest: more are shown on a logarithmic axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Totals and distributions of a set.

    seconds          p10, median, p90 of the samples' durations
    durations        seconds, to four digits -> samples;  weights: bytes of the stored video, likewise -> samples
    sizes            (width, height) -> samples;  rates: frames a second -> samples
    labels           class name -> samples; empty without labels
    frame_bytes      mean bytes of a stored frame
    clip_bytes       mean bytes read for one sample's clips, of the given geometry
    read_amplification    bytes read / bytes of the frames used
    decode_amplification  frames decoded / distinct frames used
    """

    name: str
    samples: int
    frames: int
    hours: float
    bytes: int
    shards: int
    seconds: tuple[float, float, float]
    durations: dict[float, int]
    weights: dict[float, int]
    sizes: dict[tuple[int, int], int]
    rates: dict[float, int]
    labels: dict[str, int]
    unlabeled: int
    refused: dict[str, int]
    frame_bytes: float
    clip_bytes: float
    read_amplification: float
    decode_amplification: float


def summarize(shards: ShardSet, clips: ClipSection) -> Summary:
    """Read all indices once; memory does not grow with the number of samples. Raises ShardError."""
    sizes: Counter[tuple[int, int]] = Counter()
    rates: Counter[float] = Counter()
    labels: Counter[int] = Counter()
    durations: Counter[float] = Counter()
    weights: Counter[float] = Counter()
    total_seconds, member_bytes = 0.0, 0
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        sizes.update(zip(index.width.tolist(), index.height.tolist(), strict=True))
        rates.update(np.round(index.fps, 3).tolist())
        labels.update(index.label.tolist())
        seconds = index.num_frames / index.fps
        durations.update(_tally(seconds))
        weights.update(_tally(index.size))
        total_seconds += float(seconds.sum())
        member_bytes += int(index.size.sum())
    p10, median, p90 = _percentiles(durations, (10, 50, 90))
    samples = np.unique(np.linspace(0, len(shards) - 1, _SAMPLED).astype(np.int64))
    cost = clip_cost(build_codec(shards.info.codec), [shards.row(int(sample)) for sample in samples], clips)
    return Summary(
        name=shards.info.name,
        samples=len(shards),
        frames=shards.info.num_frames,
        hours=total_seconds / 3600,
        bytes=shards.info.num_bytes,
        shards=len(shards.info.shards),
        seconds=(p10, median, p90),
        durations=dict(sorted(durations.items())),
        weights=dict(sorted(weights.items())),
        sizes=dict(sizes.most_common()),
        rates=dict(rates.most_common()),
        labels={name: labels[label] for label, name in enumerate(shards.info.classes)},
        unlabeled=sum(count for label, count in labels.items() if label < 0),
        refused=shards.info.refused,
        frame_bytes=member_bytes / shards.info.num_frames,
        clip_bytes=cost[0],
        read_amplification=cost[1],
        decode_amplification=cost[2],
    )


def _tally(values: npt.NDArray[Any]) -> dict[float, int]:
    """How often each of some positive values comes, to _DIGITS significant digits."""
    unit = 10.0 ** (np.floor(np.log10(values)) - _DIGITS + 1)
    found, counts = np.unique(np.round(values / unit) * unit, return_counts=True)
    tally: Counter[float] = Counter()
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        tally[float(f"{value:.{_DIGITS}g}")] += count  # 10.3, not 10.299999999999999
    return tally


def _percentiles(counts: Mapping[float, int], wanted: Sequence[float]) -> list[float]:
    """The smallest values that at least so many percent of the samples do not exceed."""
    values = np.array(sorted(counts))
    reached = np.cumsum([counts[value] for value in values.tolist()])
    return [float(values[np.searchsorted(reached, percent / 100 * reached[-1])]) for percent in wanted]


# ---- the picture ----


def draw_summary(summary: Summary, path: Path) -> None:
    """Write a picture of a set: durations, bytes, picture sizes, labels. Its format is what the path's suffix says.
    Raises OSError."""
    figure = Figure(figsize=(11, 7.4))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, hspace=0.04, rect=(0, 0, 1, 0.91))
    grid = figure.add_gridspec(2, 2)
    facts = [
        f"{summary.samples:,} samples in {summary.shards:,} {'shard' if summary.shards == 1 else 'shards'}",
        f"{summary.hours:,.1f} h of video" if summary.hours >= 1 else f"{_duration(summary.hours * 3600)} of video",
        f"{summary.frames:,} frames",
        _bytes(summary.bytes),
    ]
    figure.text(0.012, 0.965, summary.name, fontsize=15, fontweight="bold", va="center", parse_math=False)
    figure.text(0.012, 0.922, "   ·   ".join(facts), color=_GRAY, fontsize=10.5, va="center")
    _histogram(_panel(figure, grid[0, 0], "Duration of a sample"), summary.durations, _duration, _TIMES)
    _histogram(_panel(figure, grid[0, 1], "Bytes of a sample"), summary.weights, _bytes, _BYTES)
    _bars(_panel(figure, grid[1, 0], f"Picture size ({_many(len(summary.sizes), 'size')})"), _top_sizes(summary))
    axes = _panel(figure, grid[1, 1], f"Labels ({_many(len(summary.labels), 'class', 'classes')})")
    if summary.labels:
        ranked = dict(sorted(summary.labels.items(), key=lambda item: -item[1]))
        (_bars if len(ranked) <= _NAMED else _falling)(axes, ranked)
        if summary.unlabeled:
            axes.set_title(f"{summary.unlabeled:,} samples have none", loc="right", fontsize=9, color=_ORANGE)
    else:
        axes.set_axis_off()
        axes.set_title("Labels", loc="left", fontsize=11, fontweight="bold")
        axes.text(0.5, 0.5, "this set has no labels", ha="center", va="center", color=_GRAY, transform=axes.transAxes)
    figure.savefig(path, dpi=150)


def _panel(figure: Figure, place: SubplotSpec, title: str) -> Axes:
    axes: Axes = figure.add_subplot(place)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def _histogram(axes: Axes, counts: Mapping[float, int], form: Callable[[float], str], ticks: Sequence[float]) -> None:
    """Samples by value; on a logarithmic axis, with these ticks, where the values are of several magnitudes."""
    values, samples = np.array(list(counts)), np.array(list(counts.values()))
    (median,) = _percentiles(counts, [50])
    low, high = (values[0], values[-1]) if len(values) > 1 else (0.9 * values[0], 1.1 * values[0])
    bins = min(_BINS, max(10, len(values))) + 1
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
    """A bar for each name, in the given order."""
    bars = axes.barh(range(len(counts)), list(counts.values()), color=_BLUE, height=0.64)
    axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=4, fontsize=8.5, color=_GRAY)
    axes.set_yticks(range(len(counts)), [_short(name) for name in counts], fontsize=9, parse_math=False)
    axes.set_ylim(max(len(counts), 5) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.margins(x=0.12)


def _falling(axes: Axes, counts: Mapping[str, int]) -> None:
    """Classes too many for a bar each, as one falling curve. counts: most samples first."""
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
        "parse_math": False,
    }
    for rank, which, x, align in ((0, "most", 0.02, "left"), (-1, "fewest", 1.0, "right")):
        text = f"{which}: {samples[rank]:,}\n{_short(names[rank])}"
        axes.text(x, 0.98, text, ha=align, **style)
    middle = f"median: {samples[len(samples) // 2]:,}"
    axes.text(0.51, 0.98, middle, ha="center", **style)


def _top_sizes(summary: Summary) -> dict[str, int]:
    """The most frequent sizes, and how many samples have another."""
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


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
