"""One self-contained page about a run: what was trained, how well, how fast, and what the clips looked like.

It reads the files of the run folder (config.json, metrics.jsonl, knn.json, clips.png) and draws what is there.
"""

from __future__ import annotations

import base64
import html
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rhofast.errors import ConfigError

Lines = list[dict[str, Any]]

_BLUE, _ORANGE, _GRAY, _RED = "#2563a8", "#d97706", "#8a8f98", "#b91c1c"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #666c75; --paper: #fff; --line: #d9dce1; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --faint: #9aa0a9; --paper: #16181c; --line: #33373e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1100px; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; font-size: 1.15rem; } .faint { color: var(--faint); }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.square { max-width: 600px; }
.plots img, .wide img, .square img { width: 100%; border-radius: 6px; background: var(--card);
  border: 1px solid var(--line); }
pre { overflow: auto; font-size: 12px; }
"""


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises ConfigError where RUN is not a run folder."""
    config, lines = _read_json(run / "config.json"), read_metrics(run / "metrics.jsonl")
    if config is None or not lines:
        raise ConfigError(f"{run}: not a run folder: no config.json or metrics.jsonl", hint="give runs/NAME")
    starts = [line for line in lines if line["kind"] == "start"]
    steps, checks = (_last_word([line for line in lines if line["kind"] == kind]) for kind in ("step", "knn"))
    knn = _read_json(run / "knn.json")
    path = run / "report.html"
    path.write_text(_page(run, config, starts, steps, checks, knn), encoding="utf-8")
    return path


def read_metrics(path: Path) -> Lines:
    """The lines of a metrics file; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _last_word(lines: Lines) -> Lines:
    """One line a step: a resumed run may have repeated some, and the later one counts."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _page(
    run: Path, config: dict[str, Any], starts: Lines, steps: Lines, checks: Lines, knn: dict[str, Any] | None
) -> str:
    clips = run / "clips.png"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(run.name)}: rhofast run</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(run.name)}</h1><p class=faint>{_headline(config, starts)}</p>",
        "<h2>Results</h2>",
        _table(_results(config, steps, knn)),
        "<h2>The run</h2>",
        f"<div class=plots>{''.join(_plots(config, steps, checks, knn))}</div>" if steps else "<p>No step yet.</p>",
    ]
    if knn is not None:
        parts += ["<h2>Where the classes go</h2>", f"<div class=square>{_confusion(knn)}</div>"]
    if clips.is_file():
        encoded = base64.b64encode(clips.read_bytes()).decode()
        parts += [
            "<h2>Clips as they are trained on</h2>",
            "<p class=faint>Two rows of one video are positives of each other; the line under a clip is its plan.</p>",
            f"<p class=wide><img alt='augmented clips' src='data:image/png;base64,{encoded}'></p>",
        ]
    dumped = html.escape(json.dumps(config, indent=2))
    parts.append(f"<h2>Configuration</h2><details><summary>all keys</summary><pre>{dumped}</pre></details></html>")
    return "\n".join(parts)


def _headline(config: dict[str, Any], starts: Lines) -> str:
    clips, first = config["clips"], starts[0] if starts else {}
    backbone = config["backbone"]
    versions = first.get("versions", {})
    facts = [
        f"{config['method']['name']}, &rho; = {clips['num_clips']}, {clips['num_frames']} frames at stride "
        f"{clips['frame_stride']}",
        f"{backbone['name']} ({first['parameters'] / 1e6:.2f} M parameters)"
        if "parameters" in first
        else backbone["name"],
        f"{first['samples']:,} videos of {config['data'].get('train', '?')}" if "samples" in first else "",
        f"{first.get('world_size', 1)} x {first.get('device', '?')}, began {first.get('time', '?')}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if len(starts) > 1:
        facts.append(f"resumed {len(starts) - 1} times")
    return "<br>".join(fact if "&rho;" in fact else html.escape(fact) for fact in facts if fact)


def _results(config: dict[str, Any], steps: Lines, knn: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    if knn is not None:
        for name in ("trained", "untrained"):
            if knn.get(name):
                one = knn[name]
                rows.append((f"kNN top-1 / top-5, {name}", f"{one['top1']:.1%} / {one['top5']:.1%}"))
        rows.append(("chance", f"{knn['chance']:.1%}"))
        rows.append(("held-out videos", f"{knn['trained']['samples']:,}"))
    if steps:
        last = steps[-1]
        rows += [
            ("loss, last", f"{last['loss']:.4f}" if last["loss"] is not None else "not finite"),
            ("steps", f"{last['step']:,} ({last['epoch']:.1f} epochs)"),
            ("clips a second, median", f"{statistics.median(line['clips_per_second'] for line in steps):,.0f}"),
            ("waiting for data, median", f"{statistics.median(line['data_wait_share'] for line in steps):.1%}"),
            ("bad samples", f"{last.get('bad_samples', 0)}"),
        ]
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(name)}<td class=number>{html.escape(value)}" for name, value in rows)
    return f"<table>{cells}</table>"


def _plots(config: dict[str, Any], steps: Lines, checks: Lines, knn: dict[str, Any] | None) -> list[str]:
    def curve(axes: Axes, name: str, color: str = _BLUE, label: str | None = None) -> None:
        points = [(line["step"], line[name]) for line in steps if line.get(name) is not None]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, label=label)

    drawn = []
    figure, axes = _figure("Loss", "step", "loss, summed over query clips")
    curve(axes, "loss")
    drawn.append(_image(figure, "loss over steps"))
    if checks or knn:
        drawn.append(_knn_plot(checks, knn, steps[-1]["step"]))
    figure, axes = _figure("Time spent waiting for data", "step", "share of the step")
    curve(axes, "data_wait_share")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, max(0.05, 1.1 * max(line["data_wait_share"] for line in steps)))
    drawn.append(_image(figure, "data-wait share over steps"))
    figure, axes = _figure("Speed", "step", "clips a second, all ranks")
    curve(axes, "clips_per_second")
    axes.set_ylim(bottom=0)
    drawn.append(_image(figure, "clips per second over steps"))
    figure, axes = _figure("Schedules", "step", "learning rate")
    curve(axes, "lr", label="learning rate")
    if any(line.get("ema_momentum") is not None for line in steps):
        curve(twin := axes.twinx(), "ema_momentum", _ORANGE, "key network's momentum")
        twin.set_ylabel("momentum", color=_ORANGE)
        axes.set_ylabel("learning rate", color=_BLUE)
    drawn.append(_image(figure, "learning rate and momentum over steps"))
    if any(line.get("feature_std") is not None for line in steps):
        figure, axes = _figure("Spread of the embeddings", "step", "1: spread out   0: collapsed")
        curve(axes, "feature_std")
        axes.set_ylim(0, 1.1)
        axes.axhline(0.1, color=_RED, linewidth=1, linestyle=":")
        drawn.append(_image(figure, "feature spread over steps"))
    return drawn


def _knn_plot(checks: Lines, knn: dict[str, Any] | None, last: int) -> str:
    figure, axes = _figure("kNN on held-out videos", "step", "top-1 accuracy")
    points = [(line["step"], line["top1"]) for line in checks]
    if knn is not None and not any(step == last for step, _ in points):
        points.append((last, knn["trained"]["top1"]))
    axes.plot(*zip(*points, strict=True), color=_BLUE, marker="o", linewidth=1.4, label="trained")
    if knn is not None:
        if knn.get("untrained"):
            axes.axhline(knn["untrained"]["top1"], color=_ORANGE, linestyle="--", linewidth=1.2, label="untrained")
        axes.axhline(knn["chance"], color=_GRAY, linestyle=":", linewidth=1.2, label="chance")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return _image(figure, "kNN accuracy over steps")


def _confusion(knn: dict[str, Any]) -> str:
    counts, names = knn["trained"]["confusion"], knn["classes"]
    if len(names) > 60:
        return f"<p class=faint>{len(names)} classes: too many to draw; see knn.json.</p>"
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.colorbar(picture, ax=axes, format=PercentFormatter(1.0), shrink=0.8)
        if len(names) <= 20:
            for y, row in enumerate(shares):
                for x, share in enumerate(row):
                    if share >= 0.005:
                        axes.text(x, y, f"{share:.0%}", ha="center", va="center", color="w" if share > 0.5 else "k")
        return _image(figure, "confusion matrix")


def _figure(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.3), layout="constrained")
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
    figure.savefig(sink, format="png", dpi=150)
    return f"<img alt='{alt}' src='data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}'>"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
