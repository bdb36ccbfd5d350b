"""Finding and calling recipes: plain files that list the videos of a data set.

A recipe is a Python file with `records(source: Path, *, option=default, ...) -> Iterator[VideoRecord]`. It is named by
its path, or by its name among those that come with rhofast (`shards/` of a checkout). shards/README.md tells how to
write one.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

import rhofast
from rhofast.data.types import VideoRecord
from rhofast.errors import ConfigError, IngestError

_PACKAGE = Path(rhofast.__file__).parent
_FOLDERS = (_PACKAGE.parent / "shards", _PACKAGE / "recipes")  # a checkout's, an installed wheel's
_LISTED = 100_000  # records that are listed before work begins, so that progress has an end
_LISTS = {".csv", ".txt", ".tsv", ".lst", ".list"}


def recipe_names() -> list[str]:
    """The recipes that come with rhofast."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.py")})


def find_records(source: Path, recipe: str | None, options: Sequence[str]) -> Iterator[VideoRecord]:
    """The records of `source` by a recipe: given by name or path, or else chosen by what the source is (a folder, a
    list). options: `name=value`, checked against the recipe's own.

    Raises ConfigError for an unknown recipe or option, IngestError where the source cannot be listed.
    """
    if recipe is None:
        if not source.exists():
            raise IngestError(f"{source}: no such file or folder", hint="give a folder of videos, or a list of them")
        if source.is_file() and source.suffix.lower() not in _LISTS:
            raise IngestError(
                f"{source}: neither a folder nor a list ({', '.join(sorted(_LISTS))})",
                hint="name a recipe with --recipe",
            )
        recipe = "folder" if source.is_dir() else "csv_list"
    module = _load(recipe)
    call = validate_call(config=ConfigDict(extra="forbid"))(module.records)
    try:
        return _named_errors(iter(call(source, **_parse_options(options))), source)
    except ValidationError as error:
        raise _explain(recipe, module, error) from None


def listed(
    records: Iterator[VideoRecord], on_count: Callable[[int], None] | None = None
) -> tuple[Iterator[VideoRecord], int | None]:
    """The same records, and how many they are; None where they are too many to be listed first."""
    head = []
    for record in islice(records, _LISTED):
        head.append(record)
        if on_count is not None and len(head) % 32 == 0:
            on_count(len(head))
    return chain(head, records), len(head) if len(head) < _LISTED else None


def _load(recipe: str) -> ModuleType:
    paths = [Path(recipe)] if recipe.endswith(".py") else [folder / f"{recipe}.py" for folder in _FOLDERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        hint = f"known: {', '.join(recipe_names())}; or give a .py file"
        raise ConfigError(f"recipe {recipe!r} is not known", hint=hint)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as for a script, so that the recipe's own worker processes find it too
        sys.path.insert(0, folder)
    module = importlib.import_module(path.stem)
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise ConfigError(f"{path}: another module is called {path.stem!r} too", hint="rename the recipe")
    if not callable(getattr(module, "records", None)):
        raise ConfigError(f"{path}: a recipe needs a function `records(source, *, ...)`")
    return module


def _parse_options(options: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--option {option!r}: not of the form name=value")
        pairs[key.strip()] = value
    return pairs


def _explain(recipe: str, module: ModuleType, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    known = [parameter for parameter in inspect.signature(module.records).parameters if parameter != "source"]
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(f"recipe {recipe}: no option {name!r}", hint=f"known: {', '.join(known) or 'none'}")
    return ConfigError(f"recipe {recipe}: {name}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _named_errors(records: Iterator[Any], source: Path) -> Iterator[VideoRecord]:
    """A recipe says what is wrong with a ValueError or OSError, since it knows nothing of this package's errors."""
    try:
        yield from records
    except ValueError as error:
        raise IngestError(str(error)) from None
    except OSError as error:
        raise IngestError(f"{error.filename or source}: {error.strerror or error}") from None
