"""Describe the machine of a benchmark, and find its input videos."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SUFFIXES = {".mp4", ".mkv", ".avi", ".webm", ".mov"}


def facts_of_the_machine(packages: Iterable[str]) -> dict[str, Any]:
    """Return date, processor, number of cores and versions of the installed packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def facts_line(facts: dict[str, Any], load: float | None = None) -> str:
    """Return the facts as one sentence, for the footer of a table.

    Args:
        facts: What facts_of_the_machine returned.
        load: Load average before the first round; None: left out.
    """
    busy = "" if load is None else f", load average before the first round {load:.1f}"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores{busy}. Python {facts['python']}, {versions}."


def write_table(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str],
    report: dict[str, Any],
    out: Path | None,
) -> None:
    """Print a table and, if wanted, write it as Markdown and what it was made of as JSON.

    Args:
        name: Name of both files, without suffix.
        title: Title of the printed table.
        columns: Heads of the columns; numbers stand in all but the first.
        rows: Cells.
        notes: Sentences below the table; the last one, about the machine, is written only.
        report: Content of the JSON file.
        out: Folder of the files, or None.
    """
    console, table = Console(width=120), Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes[:-1]:
        console.print(note)
    if out is not None:
        lines = [f"| {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 1) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(report, indent=1))
        (out / f"{name}.md").write_text("\n".join([*lines, *(f"\n{note}" for note in notes), ""]))


def find_videos(given: list[Path]) -> list[Path]:
    """Return the given video files and those in the given folders; exits if there are none."""
    files = [
        file
        for path in given
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.suffix.lower() in SUFFIXES
    ]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise SystemExit(f"{missing[0]}: no such file" if missing else "no videos found")
    return files
