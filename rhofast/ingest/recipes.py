"""Find, describe and run recipes: Python files that list the videos of a data set.

A recipe is a Python file with a function `records(source: Path, *, option=default, ...) -> Iterator[VideoRecord]` and
optionally, with the same options, `classes(source, *, ...) -> list[str]`, `published(source, *, ...) -> int | None` and
`listed_split(source, *, ...) -> str | None`. It is chosen by its path, or by name if it comes with rhofast (the folder
`shards/` of a checkout; files whose names begin with `_` are helpers). shards/README.md explains how to write one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, validate_call

import rhofast
from rhofast.data.types import PassedOver, VideoRecord
from rhofast.display.text import plain_words
from rhofast.errors import ConfigError, IngestError
from rhofast.storage.address import redacted
from rhofast.storage.files import is_local
from rhofast.storage.network import network_errors, words
from rhofast.storage.store_path import StorePath, as_path, check_store
from rhofast.storage.user_code import import_file

_PACKAGE = Path(rhofast.__file__).parent
_FOLDERS = (_PACKAGE.parent / "shards", _PACKAGE / "recipes")  # of a checkout, of an installed wheel
TAKE_FOLDERS = {".tar": "webdataset_tars", ".parquet": "parquet", ".jsonl": "records", ".ndjson": "records"}
"""The recipes, by suffix of a file, that also take a folder of such files."""

_BY_SUFFIX = {**dict.fromkeys((".csv", ".txt", ".tsv", ".lst", ".list"), "csv_list"), **TAKE_FOLDERS}
_WITH_PATTERNS = {"parquet", "webdataset_tars"}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with rhofast."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("[!_]*.py")})


def describe_recipe(name: str) -> str:
    """Return a recipe's docstring and its options with types and defaults.

    Args:
        name: Name or path of the recipe.

    Raises:
        ConfigError: There is no such recipe.
    """
    module = _load(name)
    kinds = get_type_hints(module.records)
    options = [
        f"  {option.name:<12} {_kind_name(kinds.get(option.name, str)):<20} default: {_default_name(option.default)}"
        for option in inspect.signature(module.records).parameters.values()
        if option.name != "source"
    ]
    head = "Options (--option NAME=VALUE):" if options else "This recipe has no options."
    return "\n".join([inspect.getdoc(module) or f"{name}: this recipe has no description", "", head, *options])


def find_records(
    source: Path,
    recipe: str | None,
    options: Sequence[str],
    *,
    on_passed_over: Callable[[PassedOver], None] | None = None,
) -> Iterator[VideoRecord]:
    """List the videos of a source.

    Args:
        source: The folder, list or other source that the recipe reads.
        recipe: Name or path of a recipe. None: `folder` for a folder, and what the suffix of a file says.
        options: Options of the recipe, as `name=value`.
        on_passed_over: Called with each thing that the recipe finds and does not list.

    Returns:
        An iterator over the records. It raises IngestError if the source cannot be understood.

    Raises:
        ConfigError: The recipe or an option is unknown, or a value is invalid.
        IngestError: There is no such source, or no recipe is known for it.
    """
    if not is_local(source) and not _is_pattern(source):
        check_store(cast(StorePath, source))
    recipe = recipe or _recipe_for(source)
    module = _load(recipe)
    try:
        found = iter(_checked(module.records, source)(**_parse_options(options)))
    except ValidationError as error:
        raise _explain(recipe, module, error) from None
    return _only_records(found, source, on_passed_over)


def find_classes(source: Path, recipe: str | None, options: Sequence[str]) -> list[str]:
    """Return the names of all classes of a data set, also of those without a video in this split.

    Args:
        source: As for find_records.
        recipe: As for find_records.
        options: As for find_records, where they are checked.

    Returns:
        The names, by class number; empty if the recipe does not know them.

    Raises:
        IngestError: The source cannot be understood.
    """
    recipe = recipe or _recipe_for(source)
    module = _load(recipe)
    if not hasattr(module, "classes"):
        return []
    try:
        with _named_errors(source):
            return list(_checked(module.classes, source)(**_parse_options(options)))
    except ValidationError as error:
        raise _explain(recipe, module, error) from None


def published_count(source: Path, recipe: str | None, options: Sequence[str]) -> int | None:
    """Return how many videos the data set had when it was published.

    Args:
        source: As for find_records.
        recipe: As for find_records.
        options: As for find_records.

    Returns:
        The number of videos; None if the recipe does not know it or cannot read the source.
    """
    module = _load(recipe or _recipe_for(source))
    if not hasattr(module, "published"):
        return None
    try:
        count: int | None = _checked(module.published, source)(**_parse_options(options))
    except network_errors(ValueError):
        return None
    return count


def listed_split(source: Path, recipe: str | None, options: Sequence[str]) -> str:
    """Return the name of the split that a recipe lists, for a set whose maker does not name it.

    Args:
        source: As for find_records.
        recipe: As for find_records.
        options: As for find_records, where they are checked.

    Returns:
        What the recipe's function `listed_split` says. If it has none: its option `split`, as given or by default.
        "all" where neither names a split.
    """
    module, given = _load(recipe or _recipe_for(source)), _parse_options(options)
    if hasattr(module, "listed_split"):
        try:
            named: str | None = _checked(module.listed_split, source)(**given)
            return named or "all"
        except network_errors(ValueError):  # find_records says what is wrong
            return "all"
    option = inspect.signature(module.records).parameters.get("split")
    found = given.get("split", None if option is None else option.default)
    return found if isinstance(found, str) and found else "all"


def _recipe_for(source: Path) -> str:
    """Return the recipe for a folder or a file by its suffix; raises IngestError for any other source."""
    by_suffix = _BY_SUFFIX.get(source.suffix.lower())
    # What a web server has under a name is not asked for: it might send the whole of it.
    if by_suffix in _WITH_PATTERNS and (_is_pattern(source) or not is_local(source)):
        return str(by_suffix)
    if source.exists() and not source.is_file() and not source.is_dir():
        raise IngestError(f"{source}: not a regular file or folder", hint="write the list to a file")
    if not source.exists():
        raise IngestError(f"{source}: no such file or folder", hint="give a folder of videos, or a list of them")
    if source.is_dir():
        return "folder"
    if by_suffix is None:
        raise IngestError(
            f"{source}: not a folder or a list ({', '.join(sorted(_BY_SUFFIX))})",
            hint="choose a recipe with --recipe NAME",
        )
    return by_suffix


def _is_pattern(source: Path) -> bool:
    """Return whether a source may stand for several files: it has braces or a wildcard in its name."""
    return any(mark in source.name for mark in "{*?")


def _load(recipe: str) -> ModuleType:
    paths = [Path(recipe)] if recipe.endswith(".py") else [folder / f"{recipe}.py" for folder in _FOLDERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        hint = f"known recipes: {', '.join(recipe_names())}; or give the path of a .py file"
        raise ConfigError(f"recipe {recipe!r} is not known", hint=hint)
    module = import_file(path, f"recipe {recipe}")
    if not callable(getattr(module, "records", None)):
        raise ConfigError(f"{path}: the recipe has no function `records(source, *, ...)`")
    return module


def _checked(function: Callable[..., Any], source: Path) -> Callable[..., Any]:
    """Return a recipe's function, bound to the source, that checks its options against their types.

    The source is not checked: an address in an object store behaves like a path but has another type.
    """
    return validate_call(config=ConfigDict(extra="forbid"))(partial(function, source))


def _parse_options(options: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--option={option}: not of the form NAME=VALUE")
        pairs[key.strip()] = value
    return pairs


def _kind_name(kind: Any) -> str:
    """Describe a type by its values: `train | test`, `path`, `int`; None is left out, since the default shows it."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if kinds := [choice for choice in get_args(kind) if choice is not type(None)]:
        return " | ".join(map(_kind_name, kinds))
    return kind.__name__.lower() if isinstance(kind, type) else str(kind)


def _default_name(default: Any) -> str:
    return "required" if default is inspect.Parameter.empty else "none" if default is None else str(default)


def _explain(recipe: str, module: ModuleType, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    known = [parameter for parameter in inspect.signature(module.records).parameters if parameter != "source"]
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(
            f"recipe {recipe}: unknown option {name!r}", hint=f"known options: {', '.join(known) or 'none'}"
        )
    return ConfigError(f"recipe {recipe}: {name}={first['input']}: {plain_words(first['msg'])}")


def _only_records(
    found: Iterator[Any], source: Path, on_passed_over: Callable[[PassedOver], None] | None
) -> Iterator[VideoRecord]:
    """Yield a recipe's records with paths in place of addresses, which recipes give as text, and its errors by name."""
    with _named_errors(source):
        for one in found:
            if isinstance(one, PassedOver):
                if on_passed_over is not None:
                    on_passed_over(one)
            else:
                is_text = isinstance(getattr(one, "path", None), str)
                yield replace(one, path=as_path(one.path, one.where or "path", signed=True)) if is_text else one


@contextmanager
def _named_errors(source: Path) -> Iterator[None]:
    """Turn the errors of a recipe, which does not depend on this package, into IngestError; a note is the hint."""
    try:
        yield
    except ValidationError:  # an option's, explained elsewhere
        raise
    except ValueError as error:
        raise IngestError(redacted(str(error)), hint=" ".join(getattr(error, "__notes__", ())) or None) from None
    except network_errors() as error:
        where = getattr(error, "filename", None) or source
        raise IngestError(redacted(f"{where}: {words(error)}")) from None
