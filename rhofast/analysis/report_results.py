"""The table of all evaluations of runs: what was measured on which set, by which protocol, beside published values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhofast.analysis.report_plots import RunLog
from rhofast.checkpoint.run_folder import KINDS, RunFolder
from rhofast.display import html_text
from rhofast.evaluation.result_file import read_result

_TEXT = 1_000  # characters of a cell


def read_results(run: Path) -> list[dict[str, Any]]:
    """Return the results of all evaluations of a run, in the order of KINDS.

    Args:
        run: Folder of the run.

    Raises:
        ConfigError: If a file is not the result of an evaluation.
    """
    found = [read_result(path) for path in RunFolder(run).results()]
    return [result for result in found if result is not None]


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
    untrained = any(row[-2] for group in rows for row in group)
    heads = [*(["run"] if several else []), "measure", "set", "protocol", "value", "untrained", "published"]
    numbers = {"value", "untrained"}
    shown = [column for column, head in enumerate(heads) if head != "untrained" or untrained]
    classes = [" class=number" if head in numbers else "" for head in heads]
    lines = [f"<tr>{''.join(f'<th{classes[column]}>{heads[column]}' for column in shown)}"]
    for row in (row for group in rows for row in group):
        lines.append(f"<tr>{''.join(f'<td{classes[column]}>{html_text(row[column], _TEXT)}' for column in shown)}")
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _rows(result: dict[str, Any], run: str | None) -> list[list[str]]:
    """Return the cells of a result: one row per measure, with set and protocol in the first."""
    test = result.get("shards", {}).get("test", {})
    samples = f"{result['trained']['samples']:,} videos"
    where = f"{test['name']}, {samples}" if test.get("name") else samples
    before = (result.get("untrained") or {}).get("measures", {})
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
                where if number == 0 else "",
                _protocol(result.get("settings", {})) if number == 0 else "",
                f"{value:.1%}",
                f"{before[measure]:.1%}" if measure in before else "",
                published,
            ]
        )
    return rows


def _protocol(settings: dict[str, Any]) -> str:
    """Return the settings of an evaluation that are single values, in words."""
    shown = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in shown.items()
    )
