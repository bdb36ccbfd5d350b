"""Finding, describing and calling recipes: plain files that list the videos of a data set.

A recipe is a Python file with `records(source: Path, *, option=default, ...) -> Iterator[VideoRecord]`, and maybe
`published(source, *, the same options) -> int | None`. It is named by its path, or by its name among those that come
with rhofast (`shards/` of a checkout; a file whose name begins with `_` is a helper of theirs). shards/README.md tells
how to write one.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, validate_call

import rhofast
from rhofast.data.types import VideoRecord
from rhofast.errors import ConfigError, IngestError
from rhofast.storage.files import as_path

_PACKAGE = Path(rhofast.__file__).parent
_FOLDERS = (_PACKAGE.parent / "shards", _PACKAGE / "recipes")  # a checkout's, an installed wheel's
_LISTS = {".csv", ".txt", ".tsv", ".lst", ".list"}


def recipe_names() -> list[str]:
    """The recipes that come with rhofast."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("[!_]*.py")})


def describe_recipe(name: str) -> str:
    """What a recipe says of itself at its top, and its options with their types and defaults; given by name or path.

    Raises ConfigError for an unknown recipe.
    """
    module = _load(name)
    kinds = get_type_hints(module.records)
    options = [
        f"  {option.name:<12} {_kind_name(kinds.get(option.name, str)):<20} default: {_default_name(option.default)}"
        for option in inspect.signature(module.records).parameters.values()
        if option.name != "source"
    ]
    head = "Options (--option NAME=VALUE):" if options else "It has no options."
    return "\n".join([inspect.getdoc(module) or f"{name}: says nothing of itself", "", head, *options])


def find_records(source: Path, recipe: str | None, options: Sequence[str]) -> Iterator[VideoRecord]:
    """The records of `source` by a recipe: given by name or path, or else chosen by what the source is (a folder, a
    list). options: `name=value`, checked against the recipe's own.

    Raises ConfigError for an unknown recipe or option, IngestError where the source cannot be listed.
    """
    recipe = recipe or _recipe_for(source)
    module = _load(recipe)
    try:
        return _named_errors(iter(_checked(module.records, source)(**_parse_options(options))), source)
    except ValidationError as error:
        raise _explain(recipe, module, error) from None


def published_count(source: Path, recipe: str | None, options: Sequence[str]) -> int | None:
    """How many videos the data set has as it was published, by the recipe that find_records takes for the same
    arguments; None where that recipe does not know, or cannot read the source (which find_records tells)."""
    module = _load(recipe or _recipe_for(source))
    if not hasattr(module, "published"):
        return None
    try:
        count: int | None = _checked(module.published, source)(**_parse_options(options))
    except (ValueError, OSError):
        return None
    return count


def _recipe_for(source: Path) -> str:
    """The recipe for what the source is: a folder or a list. Raises IngestError for anything else."""
    if not source.exists():
        raise IngestError(f"{source}: no such file or folder", hint="give a folder of videos, or a list of them")
    if source.is_file() and source.suffix.lower() not in _LISTS:
        raise IngestError(
            f"{source}: neither a folder nor a list ({', '.join(sorted(_LISTS))})",
            hint="name a recipe with --recipe",
        )
    return "folder" if source.is_dir() else "csv_list"


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


def _checked(function: Callable[..., Any], source: Path) -> Callable[..., Any]:
    """A recipe's function of the source, whose options are checked against their types. The source is not: one in an
    object store is a path in all but type."""
    return validate_call(config=ConfigDict(extra="forbid"))(partial(function, source))


def _parse_options(options: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--option {option!r}: not of the form name=value")
        pairs[key.strip()] = value
    return pairs


def _kind_name(kind: Any) -> str:
    """A type as one writes its values: `train | test`, `path`, `int`. Whether None is allowed, the default tells."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if parts := [part for part in get_args(kind) if part is not type(None)]:
        return " | ".join(map(_kind_name, parts))
    return kind.__name__.lower() if isinstance(kind, type) else str(kind)


def _default_name(default: Any) -> str:
    return "required" if default is inspect.Parameter.empty else "none" if default is None else str(default)


def _explain(recipe: str, module: ModuleType, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    known = [parameter for parameter in inspect.signature(module.records).parameters if parameter != "source"]
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(f"recipe {recipe}: no option {name!r}", hint=f"known: {', '.join(known) or 'none'}")
    return ConfigError(f"recipe {recipe}: {name}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _named_errors(records: Iterator[Any], source: Path) -> Iterator[VideoRecord]:
    """A recipe knows nothing of this package: what is wrong it says with a ValueError or OSError, and an address in an
    object store it gives as text."""
    try:
        for record in records:
            yield replace(record, path=as_path(record.path)) if isinstance(record.path, str) else record
    except ValueError as error:
        raise IngestError(str(error)) from None
    except OSError as error:
        raise IngestError(f"{error.filename or source}: {error.strerror or error}") from None
