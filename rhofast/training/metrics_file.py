"""The metrics of a run as a file: one JSON object per line, appended."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """The file `metrics.jsonl`: one JSON object per line, appended and flushed.

    A killed run loses no finished line. Values that are not finite become null (JSON has no NaN). A line that was cut
    short, by a full disk or a killed process, is left alone: the next one begins on a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends_with_newline = False  # known only after a line was written whole

    def write(self, kind: str, **values: Any) -> None:
        """Append a line.

        Args:
            kind: The kind of line (metrics.LINE_KINDS).
            **values: Anything that JSON can hold.

        Raises:
            OSError: The file cannot be written.
        """
        line = json.dumps({"kind": kind, **{key: _finite_or_none(value) for key, value in values.items()}}) + "\n"
        whole, self._ends_with_newline = self._ends_with_newline or self._read_last_byte() in (b"", b"\n"), False
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line if whole else "\n" + line)
        self._ends_with_newline = True

    def _read_last_byte(self) -> bytes:
        if not self._path.is_file() or self._path.stat().st_size == 0:
            return b""
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read()


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
