"""Write the study's results as tables and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.machine import facts_line, facts_of_the_machine
from benchmarks.study.questions import NETWORKS, UNTRAINED, Question, Run

Results = dict[str, dict[str, Any]]
MEASURES = {"knn": "kNN", "linear": "linear probe"}
COLORS = ("#2563a8", "#d97706", "#15803d", "#b91c1c")
PACKAGES = ("torch", "nvidia-dali-cuda130", "numpy")


def values_of(run: Run, seeds: int, results: Results, measure: str) -> list[float]:
    """Return the top-1 accuracies of a cell, one per finished seed."""
    names = [replace(run, seed=seed).name for seed in range(seeds)]
    return [results[name][measure]["top1"] for name in names if name in results]


def mean_text(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation over seeds if there are several."""
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def table(question: Question, results: Results, measure: str, seeds: int) -> list[str]:
    """Return the table of one measure of a question in Markdown."""
    rows, columns = question.sides
    lines = [f"| {MEASURES[measure]} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [question.cells.get((row, column)) for column in columns]
        texts = [mean_text(values_of(run, seeds, results, measure)) if run is not None else "" for run in cells]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return lines


def gains(question: Question, results: Results, measure: str, seeds: int) -> list[str]:
    """Return the gain of several clips over one in Markdown, if the question is about rho and has several seeds.

    The spread is that of a difference of two runs.
    """
    rows, columns = question.sides
    if columns[0] != "1" or seeds < 2:
        return []
    lines = [
        f"| {MEASURES[measure]}, gain over one clip in points | {' | '.join(columns[1:])} |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        one, *others = (values_of(question.cells[row, clips], seeds, results, measure) for clips in columns)
        lines.append(f"| {row} | {' | '.join(_gain(one, more) for more in others)} |")
    return [*lines, ""]


def _gain(one: Sequence[float], more: Sequence[float]) -> str:
    if min(len(one), len(more)) < 2:
        return ""
    spread = (statistics.variance(one) + statistics.variance(more)) ** 0.5
    return f"{100 * (statistics.mean(more) - statistics.mean(one)):+.1f} (spread {100 * spread:.1f})"


def untrained(results: Results, measure: str, network: str) -> list[float]:
    """Return the top-1 accuracies of an untrained network, one per seed."""
    runs = (Run(method=UNTRAINED[network], network=network, seed=seed).name for seed in range(len(results)))
    known = [results[name][measure]["untrained_top1"] for name in runs if name in results]
    return [value for value in known if value is not None]


def untrained_line(results: Results) -> str:
    """Return a sentence on the untrained networks and chance."""
    sentences = []
    for network, words in NETWORKS.items():
        known = {name: untrained(results, measure, network) for measure, name in MEASURES.items()}
        if before := ", ".join(f"{name} {mean_text(values)}" for name, values in known.items() if values):
            sentences.append(f"{words}, untrained: {before}.")
    some = next(iter(results.values()))["knn"]
    return " ".join([*sentences, f"Chance: {some['chance']:.1%}. {some['samples']} held-out videos."])


def plot(axes: Axes, question: Question, results: Results, measure: str, seeds: int) -> None:
    """Plot means over seeds: one line per row if the columns are a scale, else bars.

    Several seeds are drawn as dots too, since a mean says little if some runs have learned and others have not.
    """
    rows, columns = question.sides
    for number, (row, color) in enumerate(zip(rows, COLORS, strict=False)):
        aside = number - (len(rows) - 1) / 2  # moves dots and bars beside each other
        points = [
            (columns.index(column), values)
            for (its, column), run in question.cells.items()
            if its == row and (values := values_of(run, seeds, results, measure))
        ]
        if not points:
            continue
        y = [statistics.mean(values) for _, values in points]
        width = 0.04 if question.scale else 0.7 / len(rows)
        x = [place + width * aside for place, _ in points]
        if question.scale:
            axes.plot(x, y, color=color, marker="_", markersize=9, linewidth=1.4, label=row)
        else:
            axes.bar(x, y, 0.92 * width, color=color, label=row)
        seen = [(at, value) for at, (_, values) in zip(x, points, strict=True) if len(values) > 1 for value in values]
        dots = {"s": 18, "color": color, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}  # seen on bars, too
        axes.scatter([at for at, _ in seen], [value for _, value in seen], **dots)
    if question.one_network and (before := untrained(results, measure, question.network)):
        axes.axhline(statistics.mean(before), color="#8a8f98", linestyle=":", linewidth=1.2, label="untrained")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xlabel(question.across)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.03)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(chosen: Sequence[Question], results: Results, path: Path, seeds: int | None) -> None:
    """Draw a row of plots per question: kNN on the left, the linear probe on the right."""
    figure = Figure(figsize=(11, 3.3 * len(chosen)), dpi=110, layout="constrained")
    grid = figure.subplots(len(chosen), 2, squeeze=False, sharey="row")
    for question, pair in zip(chosen, grid, strict=True):
        for axes, (measure, words) in zip(pair, MEASURES.items(), strict=True):
            plot(axes, question, results, measure, seeds or question.seeds)
            axes.set_ylabel(f"top-1, {words}")
        pair[0].set_title(question.title, loc="left", fontsize=11, fontweight="bold")
        pair[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def write_report(chosen: Sequence[Question], results: Results, out: Path, seeds: int | None) -> list[Path]:
    """Write study.md, study.png and study.json to `out`; return their paths, or none if no run is finished."""
    if not results:
        return []
    facts = facts_of_the_machine(PACKAGES)
    cost = sum(one["train_cpu_seconds"] + one["evaluate_cpu_seconds"] for one in results.values())
    lines = ["# The study's questions, on generated videos", "", untrained_line(results), "", "![](study.png)", ""]
    for question in chosen:
        count = seeds or question.seeds
        lines += [f"## {question.title}", "", *([f"Paper: {question.paper}", ""] if question.paper else [])]
        for measure in MEASURES:
            lines += [*table(question, results, measure, count), ""]
            lines += gains(question, results, measure, count)
    lines += [f"{len(results)} runs, {cost / 3600:.1f} CPU hours. {facts_line(facts)}", ""]
    paths = [out / f"study.{suffix}" for suffix in ("md", "png", "json")]
    paths[0].write_text("\n".join(lines))
    draw(chosen, results, paths[1], seeds)
    paths[2].write_text(json.dumps({"machine": facts, "runs": results}, indent=1))
    return paths
