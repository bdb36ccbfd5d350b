"""Write one self-contained HTML page about a run, or about several runs side by side.

The page shows what was trained, how well, how fast, and what clips and detections look like. It is made from the files
of the run folders (config.json, metrics.jsonl, results of evaluations with their pictures, clips.png).
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhofast.analysis.report_plots import Lines, RunLog, confusion_image, draw_legend, draw_plots
from rhofast.analysis.report_results import read_results, results_table
from rhofast.checkpoint.run_folder import RunFolder, set_name
from rhofast.checkpoint.run_lines import read_metrics
from rhofast.config.load import parse_config
from rhofast.display.text import html_text
from rhofast.errors import ConfigError
from rhofast.evaluation.results import beside
from rhofast.storage.files import write_atomically
from rhofast.storage.strict_json import read_bounded, read_record

_FACT = 1_000  # characters of a fact, a message or a setting
_MAX_PICTURE = 64 << 20  # bytes of a picture that is shown as it is
_MAX_MESSAGES = 20  # the last ones are shown
_MAX_TITLE_NAMES = 4  # runs whose names fit into the title
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #666c75; --paper: #fff; --line: #d9dce1; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9eb; --faint: #9aa0a9; --paper: #16181c; --line: #33373e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1100px; padding: 0 1rem; }
h1 { margin-bottom: 0; } h1, h3 { overflow-wrap: anywhere; }
h2 { margin-top: 2.2rem; font-size: 1.15rem; } .faint { color: var(--faint); }
h3 { margin: 1rem 0 0; font-size: 1rem; } h3 + p { margin-top: .1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
th.number { text-align: right; vertical-align: bottom; }
td.number, th.number { min-width: 6.5rem; max-width: 15rem; overflow-wrap: anywhere; }
.scroll td:first-child { white-space: nowrap; }
.legend { position: sticky; top: 0; background: var(--paper); padding: .4rem 0; display: flex; flex-wrap: wrap;
  gap: .2rem 1.4rem; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1.8rem; margin-right: .5rem; vertical-align: middle; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.square { max-width: 600px; }
.plots img, .wide img, .square img { width: 100%; border-radius: 6px; background: var(--card);
  border: 1px solid var(--line); }
pre { overflow: auto; font-size: 12px; }
"""


def write_report(runs: Sequence[Path], target: Path | None = None) -> Path:
    """Write one page about one or several runs.

    Args:
        runs: Folders of the runs.
        target: The HTML file. None means RUN/report.html for one run, and comparison.html next to the first of several.

    Returns:
        The path of the page.

    Raises:
        ConfigError: If a folder is not a run folder.
    """
    runs = list({run.resolve(): run for run in runs}.values())
    read = [_read_run(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    if target is None:
        target = RunFolder(runs[0]).report if len(runs) == 1 else runs[0].parent / "comparison.html"
    write_atomically(target, _page(read))
    return target


def _names(runs: Sequence[Path]) -> list[str]:
    """Return a distinct name per run: the names of the folders, or whole paths where two folders share a name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _read_run(run: Path, name: str) -> RunLog:
    path, lines = RunFolder(run).config, read_metrics(RunFolder(run).metrics)
    results = read_results(run)
    if results and not path.exists() and not lines:  # weights from elsewhere, which were evaluated only
        return RunLog(
            folder=run,
            name=name,
            config={},
            starts=[],
            steps=[],
            checks=[],
            messages=[],
            state="evaluated",
            results=results,
        )
    if not path.exists() or not lines:
        raise ConfigError(f"{run}: not a run folder: config.json or metrics.jsonl is missing", hint="pass runs/NAME")
    config = read_record(path, dict[str, Any], raises=ConfigError)
    parse_config(config, where=str(path))  # the values are shown as they were written
    lines = _without_discarded(lines)
    return RunLog(
        folder=run,
        name=name,
        config=config,
        starts=[line for line in lines if line["kind"] == "start"],
        steps=_last_per_step([line for line in lines if line["kind"] == "step"]),
        checks=_last_per_step([line for line in lines if line["kind"] == "knn"]),
        messages=[line for line in lines if "text" in line],
        state=_state(lines, config),
        results=results,
    )


def _state(lines: Lines, config: Mapping[str, Any]) -> str:
    """Return the state of the newest process of the run, as far as its metrics tell."""
    newest = max((index for index, line in enumerate(lines) if line["kind"] == "start"), default=0)
    last = next((line for line in reversed(lines[newest:]) if line["kind"] in ("step", "stop", "error")), None)
    if last is None:
        last = next((line for line in reversed(lines) if line["kind"] == "step"), None)
    if last is None:
        return "no step yet"
    if last["kind"] == "error":
        return f"failed at step {last['step']:,}"
    if last["kind"] == "stop":
        return f"stopped at step {last['step']:,} ({last['reason']}); can be resumed"
    train = config["train"]
    total = train.get("steps") or max(1, round(train["epochs"] * last["step"] / last["epoch"]))
    if last["step"] >= total:
        return "finished"
    return f"at step {last['step']:,} of {total:,} (running, or killed)"


def _without_discarded(lines: Lines) -> Lines:
    """Remove the steps that a process did after the checkpoint from which the next process continued."""
    kept: Lines = []
    for line in lines:
        if line["kind"] == "start":
            kept = [old for old in kept if old["kind"] not in ("step", "knn") or old["step"] <= line["step"]]
        kept.append(line)
    return kept


def _last_per_step(lines: Lines) -> Lines:
    """Return one line per step. Where a resumed run repeated a step, the later line counts."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _page(runs: list[RunLog]) -> str:
    names = ", ".join(run.name for run in runs)
    title = html_text(names if len(runs) <= _MAX_TITLE_NAMES else f"{len(runs)} runs", _FACT)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{title}: rhofast</title><style>{_STYLE}</style><h1>{title}</h1>",
    ]
    trained = [run for run in runs if run.config]
    for run in trained:
        heading = f"<h3>{html_text(run.name)}</h3>" if len(runs) > 1 else ""
        between = " &middot; " if len(runs) > 1 else "<br>"
        parts.append(f"{heading}<p class=faint>{_headline(run, between)}</p>")
    if trained:
        parts += ["<h2>Results</h2>", _table({run.name: _results(run) for run in trained})]
    if evaluations := results_table(runs):
        parts += ["<h2>Evaluations</h2>", evaluations]
    if len(trained) > 1:
        parts += ["<h2>Differences between the configurations</h2>", _differences(trained)]
    begun = [run for run in runs if run.steps]
    if trained:
        parts.append("<h2>The run</h2>" if len(runs) == 1 else "<h2>The runs</h2>")
        if len(begun) > 1:
            parts.append(draw_legend(begun))
        parts.append(f"<div class=plots>{''.join(draw_plots(begun))}</div>" if begun else "<p>No steps logged yet.</p>")
    if any(run.messages for run in runs):
        parts += [
            "<h2>Warnings and advice</h2>",
            *(_log(run, named=len(runs) > 1) for run in runs if run.messages),
        ]
    if len(runs) == 1:
        parts += _pictures(runs[0])
    parts += ["<h2>Configuration</h2>"] if trained else []
    for run in trained:
        lines = json.dumps(run.config, indent=2, ensure_ascii=False).split("\n")
        dumped, name = "\n".join(html_text(line, _FACT) for line in lines), html_text(run.name)
        parts.append(f"<details><summary>{name}: all keys</summary><pre>{dumped}</pre></details>")
    return "\n".join([*parts, "</html>"])


def _headline(run: RunLog, between: str) -> str:
    config, starts = run.config, run.starts
    clips, first = config["clips"], starts[0] if starts else {}
    backbone = config["backbone"]
    versions = first.get("versions", {})
    facts = [
        f"{config['method']['name']}, \u03c1 = {clips['num_clips']}, {clips['num_frames']} frames at stride "
        f"{clips['frame_stride']}",
        f"{backbone['name']} ({first['parameters'] / 1e6:.2f} M parameters)"
        if "parameters" in first
        else backbone["name"],
        f"{first['samples']:,} videos of {config['data'].get('train', '?')}" if "samples" in first else "",
        f"of these sets {first['keep']}" if "keep" in first else "",
        f"{first.get('world_size', 1)} x {first.get('device', '?')}, started {first.get('time', '?')}",
        "; ".join([*first.get("remote", []), *first.get("decoders", [])]),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if len(starts) > 1:
        facts.append(f"resumed {len(starts) - 1} times" if len(starts) > 2 else "resumed once")
    return between.join(html_text(fact, _FACT) for fact in facts if fact)


def _results(run: RunLog) -> dict[str, str]:
    rows, steps = {"state": run.state}, run.steps
    if run.checks:
        rows["last kNN top-1"] = f"{run.checks[-1]['top1']:.1%} (step {run.checks[-1]['step']:,})"
    if steps:
        last = steps[-1]
        rows["last loss"] = f"{last['loss']:.4f}" if last["loss"] is not None else "not finite"
        rows["steps"] = f"{last['step']:,} ({last['epoch']:.1f} epochs)"
        rows["clips per second (median)"] = f"{statistics.median(line['clips_per_second'] for line in steps):,.0f}"
        rows["waiting for data (median)"] = f"{statistics.median(line['data_wait_share'] for line in steps):.1%}"
        for name, label in (
            ("step_seconds", "time per step (median)"),
            ("communication_seconds", "waiting for gradients (median)"),
        ):
            if known := [line[name] for line in steps if line.get(name) is not None]:
                rows[label] = f"{1000 * statistics.median(known):,.1f} ms"
        rows["bad samples"] = f"{last.get('bad_samples', 0)}"
    return rows


def _table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table with one row per name and one column per run, with headings if there are several columns."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = "".join(f"<th class=number>{html_text(name)}" for name in columns)
    cells = [f"<tr><th>{head}"] if len(columns) > 1 else []
    for name in names:
        values = "".join(f"<td class=number>{html_text(column.get(name, '-'), _FACT)}" for column in columns.values())
        cells.append(f"<tr><td>{html_text(name)}{values}")
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"


def _differences(runs: Sequence[RunLog]) -> str:
    """Return a table of the keys that differ between runs."""
    flat = {run.name: _flat(run.config) for run in runs}
    keys = sorted({key for values in flat.values() for key in values} - {"name", "out"})
    differing = [key for key in keys if len({values.get(key) for values in flat.values()}) > 1]
    if not differing:
        return "<p>The configurations are the same.</p>"
    return _table({name: {key: values.get(key, "-") for key in differing} for name, values in flat.items()})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested tables as `section.key`, with each value as it would be written."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _log(run: RunLog, *, named: bool) -> str:
    """Return a table of the last warnings and advice of a run."""
    heading = f"<h3>{html_text(run.name)}</h3>" if named else ""
    rows = (
        f"<tr><td class=number>step {line['step']:,}<td>{html_text(line['kind'])}<td>{html_text(line['text'], _FACT)}"
        for line in run.messages[-_MAX_MESSAGES:]
    )
    return f"{heading}<table>{''.join(rows)}</table>"


def _pictures(run: RunLog) -> list[str]:
    parts = []
    if run.knn is not None and run.knn["trained"].get("confusion"):
        parts += ["<h2>Confusion matrix</h2>", f"<div class=square>{confusion_image(run.knn)}</div>"]
    for result in (one for one in run.results if one["kind"] == "detection"):
        if page := _picture(beside(result["file"], "detections.png"), "key frames with boxes"):
            of = html_text(set_name(result.get("shards", {}).get("test", {})))
            parts += [f"<h2>Detections{of and f' on {of}'}</h2>", page]
    if page := _picture(RunFolder(run.folder).clips, "augmented clips"):
        parts += [
            "<h2>Training clips</h2>",
            "<p class=faint>Rows of the same video are positive pairs. The line below a clip describes its plan.</p>",
            page,
        ]
    return parts


def _picture(path: Path, alt: str) -> str:
    """Return a PNG file as an element of the page; empty text if there is none."""
    if not path.is_file():
        return ""
    encoded = base64.b64encode(read_bounded(path, raises=ConfigError, max_bytes=_MAX_PICTURE)).decode()
    return f"<p class=wide><img alt='{alt}' src='data:image/png;base64,{encoded}'></p>"
