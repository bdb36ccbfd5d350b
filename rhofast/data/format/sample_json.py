"""The content of a KEY.json: what is said of a sample besides what the index has. A stranger may have written it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rhofast.errors import ShardFormatError
from rhofast.storage.strict_json import parse_record


class SampleJson(BaseModel):
    """What is read of a KEY.json; the index has the rest.

    Attributes:
        label_name: Name of the sample's class; None without one.
        start: Beginning of the segment in the source, in seconds; None for the source's beginning.
        end: End of the segment in the source, in seconds; None for the source's end.
        source: File name of the source; empty where it is not known.
        extra: The user's own fields; empty without any.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    label_name: str | None = None
    start: float | None = None
    end: float | None = None
    source: str = ""
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("extra", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


def parse_sample_json(content: bytes) -> SampleJson:
    """Parse the content of a KEY.json.

    Args:
        content: Its bytes.

    Raises:
        ShardFormatError: It is not a JSON object of this kind.
    """
    return parse_record(content, SampleJson, where="KEY.json", raises=ShardFormatError)
