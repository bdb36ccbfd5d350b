"""The metrics of a run as a file: one JSON object per line, appended."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, appended and flushed, so that a killed run loses no finished line.
    Values that are not finite become null (JSON has no NaN). A line that was cut short, by a full disk or a killed
    process, is left alone: the next one begins on a line of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = False  # whether the file is known to end with a line's end

    def write(self, kind: str, **values: Any) -> None:
        """Raises OSError."""
        line = json.dumps({"kind": kind, **{key: _plain(value) for key, value in values.items()}}) + "\n"
        begins, self._whole = self._whole or self._ends_whole(), False
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line if begins else "\n" + line)
        self._whole = True

    def _ends_whole(self) -> bool:
        if not self._path.is_file() or self._path.stat().st_size == 0:
            return True
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, or none where it is missing; what was cut short or is damaged is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
