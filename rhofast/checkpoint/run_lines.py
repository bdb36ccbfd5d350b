"""Read the files of a run folder that hold one JSON object per line: metrics.jsonl and bad_samples.jsonl.

A last line that was cut short, by a full disk or a killed process, is passed over. Such a line can also stand in the
middle, if the run went on: it is passed over too, but said. Every other line must fit its model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rhofast.errors import ConfigError
from rhofast.storage.files import open_regular
from rhofast.storage.strict_json import parse_record

_MAX_BYTES = 256 << 20  # a million logged windows take about this much
_MAX_LINE = 1 << 20
_NAMED = 5  # lines that are named in a warning

_Plain = bool | int | float | str | None
_Step = Annotated[int, Field(ge=0, lt=1 << 53)]
_Number = Annotated[float, Field(ge=-1e18, le=1e18)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Plain | list[_Plain] | dict[str, _Plain]]

    step: _Step


class _Start(_Line):
    kind: Literal["start"]
    world_size: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    digest: str = ""
    device: str = ""
    time: str = ""
    parameters: _Step = 0
    samples: _Step = 0
    keep: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    decoders: list[str] = Field(default_factory=list)


class _Window(_Line):
    """The numbers of a window of steps, without a value where they were not finite (training/metrics.py)."""

    __pydantic_extra__: dict[str, _Number | None]  # type: ignore[assignment]

    kind: Literal["step"]
    epoch: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    clips_per_second: _Number = 0.0
    data_wait_share: _Number = 0.0


class _Knn(_Line):
    kind: Literal["knn"]
    top1: _Share
    top5: _Share = 0.0
    samples: _Step = 0


class _Score(_Line):
    kind: Literal["validation", "test"]
    measure: str
    score: _Share
    samples: _Step = 0


class _Checkpoint(_Line):
    kind: Literal["checkpoint"]
    seconds: _Number = 0.0
    stall_seconds: _Number = 0.0


class _Text(_Line):
    kind: Literal["warning", "advice", "note", "error"]
    text: str


class _Stop(_Line):
    kind: Literal["stop"]
    reason: str


_AnyLine = Annotated[
    _Start | _Window | _Knn | _Score | _Checkpoint | _Text | _Stop,
    Field(discriminator="kind"),
]


class _BadSample(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    sample: _Step
    epoch: _Step
    position: _Step
    reason: str = ""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, or none if it is missing.

    Lines in the middle that are not JSON are named by a line of kind "warning" in the place of the first of them.

    Raises:
        ConfigError: The file cannot be read, or a line that is whole does not fit.
    """
    lines: list[dict[str, Any]] = []
    unread: list[int] = []
    place = 0
    for number, values in _read(path, _AnyLine):
        if values is not None:
            lines.append(values)
            continue
        place = place if unread else len(lines)
        unread.append(number)
    if unread:
        numbers = ", ".join(map(str, unread[:_NAMED])) + (", ..." if len(unread) > _NAMED else "")
        text = f"{path.name}: {len(unread)} of its lines cannot be read and are passed over: {numbers}"
        lines.insert(place, {"kind": "warning", "step": lines[place - 1]["step"] if place else 0, "text": text})
    return lines


def read_bad_samples(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a list of bad samples, or none if it is missing.

    Raises:
        ConfigError: The file cannot be read, or a line that is whole does not fit.
    """
    return [values for _, values in _read(path, _BadSample) if values is not None]


def _read(path: Path, kind: Any) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (number, values) of the lines of a file; None for a line that is no JSON object.

    Args:
        path: The file.
        kind: The model of a line. A JSON object that does not fit it is an error.
    """
    try:
        with open_regular(path) as file:
            total = number = 0
            while line := file.readline(_MAX_LINE + 1):
                number, total = number + 1, total + len(line)
                if len(line) > _MAX_LINE or total > _MAX_BYTES:
                    raise ConfigError(f"{path}: line {number}: the line or the file is too long")
                try:
                    values = json.loads(line)
                except (ValueError, RecursionError):
                    values = None
                if isinstance(values, dict):
                    parse_record(line, kind, where=f"{path}: line {number}", raises=ConfigError)
                    yield number, values
                elif line.endswith(b"\n") and line.strip():  # not what a process writes, or has begun to write
                    yield number, None
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
