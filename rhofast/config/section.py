"""What every section of a configuration is made of: strict, frozen models, common field types, and error texts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rhofast.errors import ConfigError


class Section(BaseModel):
    """A frozen group of options in which an unknown key or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


AnySection = TypeVar("AnySection", bound=Section)

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
PathField = Annotated[Path, Field(strict=False)]


def parse_section(kind: type[AnySection], values: Mapping[str, Any], where: str) -> AnySection:
    """`values` as a `kind`. Raises ConfigError naming the first offending key as `where.key`, with the nearest known
    key as the hint. A method or a backbone checks its own options with this."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def _explain(kind: type[Section], error: ValidationError, where: str) -> ConfigError:
    errors = error.errors()  # a misspelled key that is needed is missing, too: that it is misspelled says more
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
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
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not key:
        return ConfigError(f"{where}: {message}")
    if first["type"] == "value_error":  # says by itself what was wrong with which value
        return ConfigError(f"{where}: {key}: {message}")
    return ConfigError(f"{where}: {key} = {first['input']!r}: {message}")


def _keys_at(kind: type[Section], location: list[str]) -> list[str]:
    model: type[BaseModel] = kind
    for part in location:
        if part.isdigit():  # of a list: its items have the section's keys
            continue
        annotation = model.model_fields[part].annotation
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
