"""The table of all evaluations of runs: what was measured on which set, by which protocol, beside published values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhofast.analysis.report_plots import RunLog
from rhofast.checkpoint.run_folder import FINE_TUNED, KINDS, RunFolder, set_name
from rhofast.display.text import html_text
from rhofast.evaluation.result_file import read_result

_TEXT = 1_000  # characters of a cell


def read_results(run: Path) -> list[dict[str, Any]]:
    """Return the results of all evaluations of a run, in the order of KINDS, sets, classifiers and steps.

    Args:
        run: Folder of the run.

    Returns:
        The contents of the files. `classifier` is the name of the classifier that was trained, or "", and `file` the
        path of the file.

    Raises:
        ConfigError: If a file is not the result of an evaluation.
    """
    folder, found = RunFolder(run), []
    for path in folder.result_files():
        result = read_result(path)
        if result is not None:
            above = path.parent.parent
            found.append({**result, "classifier": "" if above == folder.path else above.name, "file": path})
    kinds = list(KINDS)
    found.sort(
        key=lambda one: (kinds.index(one["kind"]), set_name(_test(one)), one["classifier"], one.get("step") or 0)
    )
    return found


def results_table(runs: Sequence[RunLog]) -> str:
    """Return one HTML table with a row per measure of each evaluation; empty text if there are none.

    Evaluations of one kind stand together, so that runs can be compared.
    """
    several = len(runs) > 1
    rows = [
        _rows(result, run.name if several else None)
        for kind in KINDS
        for run in runs
        for result in run.results
        if result["kind"] == kind
    ]
    if not rows:
        return ""
    heads = [*(["run"] if several else []), "measure", "set", "weights", "protocol"]
    heads += ["value", "untrained", "chance", "published"]
    numbers = {"value", "untrained", "chance"}
    optional = {"untrained", "chance"}  # shown where any result has them
    known = [any(row[column] for group in rows for row in group) for column in range(len(heads))]
    shown = [column for column, head in enumerate(heads) if head not in optional or known[column]]
    classes = [" class=number" if head in numbers else "" for head in heads]
    lines = [f"<tr>{''.join(f'<th{classes[column]}>{heads[column]}' for column in shown)}"]
    for row in (row for group in rows for row in group):
        lines.append(f"<tr>{''.join(f'<td{classes[column]}>{html_text(row[column], _TEXT)}' for column in shown)}")
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _rows(result: dict[str, Any], run: str | None) -> list[list[str]]:
    """Return the cells of a result: one row per measure, with what they have in common in the first."""
    common = [_sets(result), _weights(result), _protocol({**result.get("settings", {}), **result.get("chosen", {})})]
    before = (result.get("untrained") or {}).get("measures", {})
    chance = result["trained"].get("chance", {})
    rows = []
    for number, (measure, value) in enumerate(result["trained"]["measures"].items()):
        published = ", ".join(
            f"{one['value']:.1%}{f' ({one_of})' if (one_of := one.get('of')) else ''}"
            for one in result.get("published", [])
            if one["measure"] == measure
        )
        rows.append(
            [
                *([] if run is None else [run if number == 0 else ""]),
                f"{KINDS[result['kind']]}, {measure}",
                *(common if number == 0 else [""] * len(common)),
                f"{value:.1%}",
                f"{before[measure]:.1%}" if measure in before else "",
                f"{chance[measure]:.1%}" if measure in chance else "",
                published,
            ]
        )
    return rows


def _test(result: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = result.get("shards", {}).get("test", {})
    return facts


def _sets(result: dict[str, Any]) -> str:
    """Return in words what was tested, and what was trained on or searched."""
    parts = []
    measured, train = result["trained"]["samples"], result.get("shards", {}).get("train", {})
    for facts, count in ((_test(result), measured), (train, train.get("samples"))):
        part = f" of {facts['of']:,}" if (facts.get("of") or 0) > (facts.get("samples") or 0) else ""
        videos = f"{count:,}{part} videos" if count else ""
        parts.append(", ".join(text for text in (set_name(facts), videos) if text))
    return f"{parts[0]}; training: {parts[1]}" if parts[1] else parts[0]


def _weights(result: dict[str, Any]) -> str:
    """Return in words which weights were evaluated, or fine-tuning began with, and the classifier's name."""
    step = result.get("step")
    first = result.get("origin", "") if step is None else f"step {step:,}" if step else "untrained"
    fine_tuned = f"fine-tuned from {first}" if result["kind"] in FINE_TUNED else first
    classifier = result.get("classifier")
    return f"{fine_tuned} ({classifier})" if classifier else fine_tuned


def _protocol(settings: dict[str, Any]) -> str:
    """Return the settings of an evaluation that are single values, in words."""
    shown = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in shown.items()
    )
