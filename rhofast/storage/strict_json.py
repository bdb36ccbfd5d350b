"""Read JSON that somebody else may have written: one strict way, bounded in time and memory.

A file must be a regular file of limited size; its JSON must be UTF-8 of limited depth and length, without NaN,
Infinity, repeated keys or lone surrogates; and its values must fit a pydantic model. Whatever does not fit is one line
that names the file and the field.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from rhofast.display.text import plain_words
from rhofast.errors import RhofastError
from rhofast.storage.files import is_local, open_regular

T = TypeVar("T")

MAX_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20
MAX_LINES_BYTES = 1 << 30
MAX_DEPTH = 32
MAX_VALUES = 2_000_000  # Python needs up to about 250 bytes per value

_MAX_NUMBER = {int: 2**64, float: math.inf}
_PIECE_BYTES = 1 << 20
_SHOWN = 60  # characters of a value or a field in a message


class _MisfitError(Exception):
    """What is wrong with a text, without the name of its file."""


def read_record(
    path: Path, kind: type[T], *, raises: type[RhofastError], max_bytes: int = MAX_BYTES, hint: str | None = None
) -> T:
    """Read a JSON file as a value of a model.

    Args:
        path: The file, on this machine or in an object store.
        kind: A pydantic model, or a type that pydantic validates, such as `dict[str, int]`. It is validated strictly:
            a text is no number.
        raises: Class of the errors.
        max_bytes: Largest size of the file, in bytes.
        hint: Remedy that the errors name.

    Returns:
        The value.

    Raises:
        RhofastError: An error of class `raises`: the file does not exist, cannot be read, is too large or not a
            regular file, or its content does not fit.
    """
    content = read_bounded(path, raises=raises, max_bytes=max_bytes, hint=hint)
    return parse_record(content, kind, where=path, raises=raises, hint=hint)


def parse_record(
    content: bytes, kind: type[T], *, where: str | Path, raises: type[RhofastError], hint: str | None = None
) -> T:
    """Parse a JSON text as a value of a model.

    Args:
        content: The text, in UTF-8. The caller limits its size.
        kind: A pydantic model, or a type that pydantic validates. It is validated strictly.
        where: What the text is called in errors: a file, or a place in it.
        raises: Class of the errors.
        hint: Remedy that the errors name.

    Returns:
        The value.

    Raises:
        RhofastError: An error of class `raises`: the content does not fit.
    """
    try:
        return _parse(content, kind)
    except _MisfitError as error:
        raise raises(f"{where}: {error}", hint=hint) from None


def read_lines(
    path: Path,
    kind: type[T],
    *,
    raises: type[RhofastError],
    max_bytes: int = MAX_LINES_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    torn_end: bool = False,
    hint: str | None = None,
) -> Iterator[T]:
    """Read a file of JSON lines, one value per line; empty lines are ignored.

    Args:
        path: The file, on this machine or in an object store.
        kind: A pydantic model, or a type that pydantic validates. It is validated strictly.
        raises: Class of the errors, which name the line by its number.
        max_bytes: Largest size of the file, in bytes.
        max_line_bytes: Largest size of a line, in bytes.
        torn_end: Whether a last line without a line break may be cut short: it is ignored then if it does not parse.
        hint: Remedy that the errors name.

    Yields:
        The values, in the order of their lines.

    Raises:
        RhofastError: An error of class `raises`, as of `read_record`.
    """
    found = read_numbered_lines(
        path, kind, raises=raises, max_bytes=max_bytes, max_line_bytes=max_line_bytes, torn_end=torn_end, hint=hint
    )
    for _, value in found:
        yield value


def read_numbered_lines(
    path: Path,
    kind: type[T],
    *,
    raises: type[RhofastError],
    max_bytes: int | None = MAX_LINES_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    torn_end: bool = False,
    hint: str | None = None,
) -> Iterator[tuple[int, T]]:
    """Read a file of JSON lines as `read_lines` does, with the number of each line.

    Args:
        path: As for `read_lines`.
        kind: As for `read_lines`.
        raises: As for `read_lines`.
        max_bytes: Largest size of the file, in bytes; None: any, for files of which nothing but one line is kept.
        max_line_bytes: As for `read_lines`.
        torn_end: As for `read_lines`.
        hint: As for `read_lines`.

    Yields:
        (number of the line from 1, value), in their order.

    Raises:
        RhofastError: An error of class `raises`, as of `read_record`.
    """
    name, total = str(path), 0
    with _open(path, raises, hint) as file:
        number = 0
        while line := _read(file.readline, max_line_bytes + 1, name, raises, hint):
            number, total = number + 1, total + len(line)
            if len(line) > max_line_bytes:
                raise raises(f"{name}: line {number} is longer than {max_line_bytes} bytes", hint=hint)
            if max_bytes is not None and total > max_bytes:
                raise raises(f"{name}: larger than {max_bytes} bytes", hint=hint)
            if not line.strip():
                continue
            try:
                yield number, _parse(line, kind)
            except _MisfitError as error:
                if torn_end and not line.endswith(b"\n"):
                    return
                raise raises(f"{name}: line {number}: {error}", hint=hint) from None


def read_bounded(path: Path, *, raises: type[RhofastError], max_bytes: int, hint: str | None = None) -> bytes:
    """Read a whole file of limited size.

    Args:
        path: The file, on this machine or in an object store.
        raises: Class of the errors.
        max_bytes: Largest size of the file, in bytes.
        hint: Remedy that the errors name.

    Returns:
        Its content.

    Raises:
        RhofastError: An error of class `raises`: the file does not exist, cannot be read, is too large or not a
            regular file.
    """
    name = str(path)
    pieces, total = list[bytes](), 0
    with _open(path, raises, hint) as file:
        while piece := _read(file.read, _PIECE_BYTES, name, raises, hint):
            pieces.append(piece)
            total += len(piece)
            if total > max_bytes:
                raise raises(f"{name}: larger than {max_bytes} bytes", hint=hint)
    return b"".join(pieces)


def _open(path: Path, raises: type[RhofastError], hint: str | None) -> Any:
    try:
        return open_regular(path) if is_local(path) else path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise raises(f"{path}: {_reason(error)}", hint=hint) from None


def _read(read: Any, limit: int, name: str, raises: type[RhofastError], hint: str | None) -> bytes:
    try:
        return bytes(read(limit))
    except OSError as error:
        raise raises(f"{name}: {_reason(error)}", hint=hint) from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return getattr(error, "strerror", None) or str(error)


def _parse(content: bytes, kind: type[T]) -> T:
    """Return the value of a JSON text; raise _MisfitError."""
    content = content.removeprefix(codecs.BOM_UTF8)  # as programs on Windows write it
    try:
        text = content.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise _MisfitError(f"not UTF-8 at byte {error.start}") from None
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise _MisfitError(f"has more than {MAX_VALUES} values")
    try:
        values = json.loads(text)
        if (
            _check_values(values) != content.count(b":") or b"\\u003" in content
        ):  # maybe; or a colon is written as \u003a
            json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise _MisfitError(f"nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise _MisfitError(f"not JSON at {line}column {error.colno}: {error.msg}") from None
    except ValueError:  # Python limits the digits of a number
        raise _MisfitError("a number has thousands of digits") from None
    try:
        value: T = _adapter(cast(Hashable, kind)).validate_json(content, strict=True)
    except ValidationError as error:
        raise _MisfitError(_explain(error, values)) from None
    return value


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise _MisfitError for a key that it has twice, since readers differ in which one counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _MisfitError(f"key {_shown(key)} occurs twice")
            seen.add(key)
    return values


def _check_values(root: Any) -> int:
    """Check that all values can be stored, shown and counted with. Does not recurse.

    Returns:
        The number of colons in a JSON text of these values. A text with a key that occurs twice has more of them.

    Raises:
        _MisfitError: A number is not finite or has more than 64 bits, or a text has a lone surrogate.
    """
    level: list[tuple[Any, Any]] = [(None, [root])]  # (chain of keys from the inside out, list or object)
    colons = 0
    for _ in range(MAX_DEPTH + 1):
        following: list[tuple[Any, Any]] = []
        for place, holder in level:
            if type(holder) is dict:
                items = holder.items()
                colons += len(holder)
                for key in holder:
                    colons += key.count(":")
                    if not (key.isascii() or _is_text(key)):
                        raise _MisfitError(f"{_field(_keys(place))}: a key is not text: {_shown(key)}")
            else:
                items = enumerate(holder)  # type: ignore[assignment]
            for key, value in items:
                kind = type(value)
                if kind is str:
                    colons += value.count(":")
                    if not (value.isascii() or _is_text(value)):
                        raise _MisfitError(f"{_field(_keys((place, key)))}: not text: {_shown(value)}")
                elif kind is int or kind is float:
                    if not -_MAX_NUMBER[kind] < value < _MAX_NUMBER[kind]:  # also NaN
                        raise _MisfitError(f"{_field(_keys((place, key)))}: not a finite number, or too large")
                elif kind is dict or kind is list:
                    following.append(((place, key), value))
        if not following:
            return colons
        level = following
    raise _MisfitError(f"{_field(_keys(level[0][0]))}: nested more than {MAX_DEPTH} levels deep")


def _is_text(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keys(place: Any) -> list[Any]:
    keys: list[Any] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return keys[-2::-1]  # the outermost is the place of the root in the list around it


def _explain(error: ValidationError, values: Any) -> str:
    """Return pydantic's first error about some values as one line."""
    errors = error.errors(include_url=False)
    # A misspelled required key is also reported as missing. The misspelling says more, so it comes first.
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    keys: list[Any] = []
    for part in first["loc"]:
        if isinstance(values, dict | list) and not str(part).startswith("function-"):  # else a type that was tried
            keys.append(part)
            values = (values if isinstance(values, dict) else dict(enumerate(values))).get(part)
    field = _field(keys)
    if first["type"] == "extra_forbidden":
        return f"unknown key {field}"
    if first["type"] == "missing":
        return f"key {field} is missing"
    return f"{field}={_shown(first['input'])}: {plain_words(first['msg'])}"


def _field(keys: list[Any]) -> str:
    """Return the name of a field: `shards.3.bytes`."""
    return ".".join(str(key) if isinstance(key, int) else _plain(str(key)) for key in keys) or "the whole"


def _plain(key: str) -> str:
    return key if key.isidentifier() and key.isascii() and len(key) <= _SHOWN else _shown(key)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "{...}" if isinstance(value, dict) else "[...]"
    text = ascii(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
