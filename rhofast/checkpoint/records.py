"""The JSON files of a checkpoint, as strict models: manifest.json and state.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Step = Annotated[int, Field(ge=0, lt=1 << 53)]
_Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Plain = bool | int | float | str | None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileRecord(_Record):
    """What a manifest says about one file.

    Attributes:
        bytes: Its length.
        sha256: The SHA-256 of its content, hexadecimal.
    """

    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Record):
    """The content of manifest.json: one record per file."""

    method: FileRecord = Field(alias="method.safetensors")
    optimizer: FileRecord = Field(alias="optimizer.safetensors")
    state: FileRecord = Field(alias="state.json")

    @property
    def files(self) -> dict[str, FileRecord]:
        """The records by file name."""
        return {
            "method.safetensors": self.method,
            "optimizer.safetensors": self.optimizer,
            "state.json": self.state,
        }


class Version(BaseModel):
    """The version of a state.json, whatever else is in it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    version: int


class OptimizerRecord(_Record):
    """The plain values of an optimizer.

    Attributes:
        values: For the number of a parameter, the values of its state by name.
        groups: The parameter groups; `params` of each are the numbers of its parameters.
    """

    values: dict[_Number, dict[str, _Plain]]
    groups: list[dict[str, _Plain | list[int] | list[float]]]


class State(_Record):
    """The content of state.json.

    Attributes:
        version: Version of the format.
        step: Optimizer steps done.
        loader: State of the loader, which checks it itself.
        optimizer: The optimizer's plain values.
        scaler: State of the loss scaler, or None.
        config: The run's configuration, which is parsed as every configuration is.
        code: The SHA-256 of the files that define `backbone` and `method`, where these are code of the user's own.
    """

    version: int
    step: _Step
    loader: dict[str, _Plain]
    optimizer: OptimizerRecord
    scaler: dict[str, int | float] | None
    config: dict[str, Any]
    code: dict[Literal["backbone", "method"], Sha256] = {}
