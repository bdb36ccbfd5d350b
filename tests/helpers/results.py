"""Find the results of evaluations in a run folder."""

import json
from pathlib import Path
from typing import Any


def result_path(run: Path, kind: str) -> Path:
    """Return the only result of a kind in a run's folder."""
    (path,) = (run / "results").glob(f"{kind}-*.json")
    return path


def read_one(run: Path, kind: str) -> dict[str, Any]:
    """Return the content of the only result of a kind in a run's folder."""
    content: dict[str, Any] = json.loads(result_path(run, kind).read_text())
    return content
