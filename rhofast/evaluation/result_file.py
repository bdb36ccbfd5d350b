"""Read the result of an evaluation (results/*.json), which may come with the run folder of a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rhofast.checkpoint.run_folder import KINDS
from rhofast.errors import ConfigError
from rhofast.storage.strict_json import read_record

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Scores(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    measures: dict[str, _Share] = Field(min_length=1)
    samples: Annotated[int, Field(ge=1, lt=1 << 53)]
    confusion: list[list[_Count]] | None = None
    chance: dict[str, _Share] = {}


class _Shards(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    split: str = ""
    samples: _Count | None = None
    of: _Count | None = None


class _Published(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    measure: str
    value: _Share
    of: str = ""


class _Result(BaseModel):
    """What is read of a result; it holds more."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    kind: str
    origin: str = ""
    step: _Count | None = None
    classes: list[str] = Field(min_length=1)
    trained: _Scores
    untrained: _Scores | None = None
    shards: dict[str, _Shards] = {}
    settings: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    published: list[_Published] = []

    @model_validator(mode="after")
    def _check_kind(self) -> _Result:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind[:100]!r} must be one of {', '.join(KINDS)}")
        return self

    @model_validator(mode="after")
    def _check_confusion(self) -> _Result:
        count = len(self.classes)
        for name, scores in (("trained", self.trained), ("untrained", self.untrained)):
            rows = None if scores is None else scores.confusion
            if rows is not None and [len(row) for row in rows] != [count] * count:
                raise ValueError(f"{name}.confusion must have {count} rows of {count} counts, one per class")
        return self


def read_result(path: Path) -> dict[str, Any] | None:
    """Return the result in a file, or None if there is no file.

    Raises:
        ConfigError: The file is not the result of an evaluation.
    """
    if not path.exists():
        return None
    return read_record(path, _Result, raises=ConfigError).model_dump(exclude_unset=True)
