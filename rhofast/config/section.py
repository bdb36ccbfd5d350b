"""The base class of all option groups: strict, frozen models, common field types, and the texts of their errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from rhofast.display.text import plain_words
from rhofast.errors import ConfigError
from rhofast.storage.address import is_address, redacted


class Section(BaseModel):
    """A frozen group of options in which an unknown key or a value of the wrong type is an error.

    The string literal below an option is its description: `Section.model_fields[name].description`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


AnySection = TypeVar("AnySection", bound=Section)

Probability = Annotated[float, Field(ge=0, le=1)]
# Limits far beyond every use, and far within what clocks, files and float64 arithmetic can hold; never infinite.
Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, lt=1 << 63)]
# A config may come with a run of somebody else: what costs memory or threads at once has an upper limit.
Size = Annotated[int, Field(ge=8, le=4096)]  # side of a square of pixels
Workers = Annotated[int, Field(ge=1, le=1024)]  # threads, or entries of a queue
Range = Annotated[tuple[Finite, Finite], Field(strict=False)]
Triple = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]
_COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


def _refuse_address(value: Any) -> Any:
    """Refuse an address where a path is needed: as a path it would name a folder `https:` here, password included."""
    text = str(value)
    if (isinstance(value, str) and is_address(text)) or (isinstance(value, Path) and _COLLAPSED.match(text)):
        raise PydanticCustomError("address", "must be a path on this machine, not an address")
    return value


PathField = Annotated[Path, BeforeValidator(_refuse_address), Field(strict=False)]


def parse_section(kind: type[AnySection], values: Mapping[str, Any], where: str) -> AnySection:
    """Check plain values and return them as an instance of `kind`.

    Methods, backbones and codecs check their own options with this function.

    Args:
        kind: the class of the options.
        values: the options by name, as read from TOML or JSON.
        where: what the error message starts with: a file, or the place of the options in a config ("method").

    Returns:
        The options, with defaults where `values` has no key.

    Raises:
        ConfigError: for the first key that is unknown, missing or has a bad value. An unknown key comes with the
            nearest known key as the hint.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def _explain(kind: type[Section], error: ValidationError, where: str) -> ConfigError:
    """Turn pydantic's error into one line."""
    errors = error.errors()
    # A misspelled required key is also reported as missing. The misspelling says more, so it comes first.
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        siblings = _keys_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], siblings, n=1)
        known = f"known keys: {', '.join(sorted(siblings))}" if siblings else "it has no options"
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else known
        return ConfigError(f"{where}: unknown key {key!r}", hint=hint)
    if first["type"] == "missing":
        return ConfigError(f"{where}: key {key!r} is missing")
    if first["type"] == "value_error":  # raised by one of our validators, whose message names the options at fault
        message = first["msg"].removeprefix("Value error, ")
        return ConfigError(message if message.startswith(f"{where}.") else f"{where}: {message}")
    message = plain_words(first["msg"])
    return ConfigError(f"{where}: {key}={redacted(repr(first['input']))}: {message}" if key else f"{where}: {message}")


def _keys_at(kind: type[Section], location: list[str]) -> list[str]:
    """Return the known keys of the section at `location`."""
    model: type[BaseModel] = kind
    for part in location:
        if part.isdigit():  # the number of an item in a list, whose items are sections
            continue
        annotation = model.model_fields[part].annotation
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
