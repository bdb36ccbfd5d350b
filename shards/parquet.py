"""parquet: tables with a column of paths, or with the videos themselves in a column of bytes.

    rhofast shard table.parquet OUT --option label_column=action --option classes=names.txt
    rhofast shard s3://bucket/data OUT --recipe parquet --option bytes_column=video.bytes --option fields=caption

SOURCE is a parquet file, a folder of such files, a name with braces or with * and ?, or a text file with one of these
per line; on a disk, in an object store or on a web server that answers requests for ranges. Rows are samples, in their
order.

A column of bytes holds whole videos; `bytes_column` names it (`struct.field` inside a struct, such as `video.bytes` of
Hugging Face's `Video` feature). Otherwise `path_column` names the column of paths, relative to `root` or to the folder
of the file, or addresses. Both are found if there is only one that can be meant.

`label_column` (found by its usual names; `none` for none) has numbers, or with `classes` names; the names that Hugging
Face's `ClassLabel` stores in the file are used without it. `unlabeled` is the label that means none, such as -1.
`key_column` has keys; a column of texts or whole numbers named key is found; with `none`, they are made of the path, or
of the name of the file and the number of the row. `start_column` and `end_column` have seconds in the video; columns of
numbers named start and end (start_time, end_sec, ...) are found; `none` for none. `fields` names the columns that are
stored as your own fields (`extra`), separated by commas, or `all` for all others that are not bytes. Columns that would
choose a split or frames (split, start_frame) must be used or be named in `ignore`; other columns are not read.

To list the samples, bytes are not read, and other columns are read by pages. A video in a column of bytes is read by
pages, too, from the beginning of its row group on, and jobs read rows in their order: one pass over each row group.
Memory holds the largest page of the column, which pyarrow and others keep at 1 MiB, or one video if it is larger, and
up to 1 MiB of a dictionary; it does not depend on the size of a row group or a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from _files import find_files
from _labels import Classes
from _lists import problem
from _paths import key_of, segment_key
from _roles import BY_NAME, LABELS, PATHS, SELECTING, Role, check_no_duration, plain

from rhofast.data.inside import ParquetCell
from rhofast.data.types import VideoRecord
from rhofast.storage.address import redacted
from rhofast.storage.parquet_rows import ParquetRows, is_binary, type_of


@dataclass(frozen=True)
class Columns:
    """Which column of a file has what; None: none has it.

    Attributes:
        bytes: The videos themselves.
        path: Their paths, or, beside a column of bytes, their names.
        label: The labels.
        key: The keys.
        start: Beginnings of segments, in seconds.
        end: Ends of segments.
        fields: Fields of the user's own.
    """

    bytes: str | None
    path: str | None
    label: str | None
    key: str | None
    start: str | None
    end: str | None
    fields: tuple[str, ...]

    def read(self) -> list[str]:
        """Return the columns that are read to list the samples."""
        named = [self.path, self.label, self.key, self.start, self.end, *self.fields]
        return list(dict.fromkeys(column for column in named if column is not None))


def records(
    source: Path,
    *,
    path_column: str | None = None,
    bytes_column: str | None = None,
    label_column: str | None = None,
    key_column: str | None = None,
    start_column: str | None = None,
    end_column: str | None = None,
    fields: str = "none",
    ignore: str = "",
    unlabeled: str | None = None,
    root: Path | None = None,
    classes: Path | None = None,
) -> Iterator[VideoRecord]:
    """Yield the videos of the rows, in their order.

    Args:
        source: The files.
        path_column: Column of paths; None: found.
        bytes_column: Column of bytes; None: found.
        label_column: Column of labels, or `none`; None: found.
        key_column: Column of keys, or `none`; None: found.
        start_column: Column of beginnings of segments, or `none`; None: found.
        end_column: Column of ends of segments, or `none`; None: found.
        fields: Columns of fields of the user's own, `all` or `none`.
        ignore: Columns that are left out although their names say that they choose something.
        unlabeled: The label that means none, such as -1; a label that is null means none always.
        root: Folder of relative paths; None: the folder of each file.
        classes: File with the names of the classes; None: those that are stored in the file, if any.

    Raises:
        ValueError: A file is damaged or none, or a column is missing, ambiguous or of another type.
    """
    asked = Columns(
        bytes_column, path_column, label_column, key_column, start_column, end_column, tuple(_names(fields))
    )
    stored: list[str] | None = None
    for file in find_files(source, ".parquet"):
        shown, rows = redacted(str(file)), _open(file)
        try:
            columns = _find_columns(shown, rows.schema, asked, set(_names(ignore)))
            names = [] if classes is not None else _stored_names(rows.schema, columns.label)
            if stored is not None and names != stored:
                raise problem(f"{shown}: other names of classes than in the files before", "give them: classes=FILE")
            stored, known = names, Classes(classes, names, unlabeled)
            base = key_of(_relative(source, file))
            for number, row in enumerate(_rows(shown, rows, columns.read())):
                yield _record(file, f"{shown}: row {number}", number, row, columns, known, root, base)
        finally:
            rows.close()


def classes(source: Path, *, label_column: str | None = None, classes: Path | None = None, **options: Any) -> list[str]:
    """Return the names of all classes, by number, if a file gives them or the tables have them."""
    if classes is not None:
        return Classes(classes).names
    file = next(find_files(source, ".parquet"))
    rows = _open(file)
    try:
        label = label_column or _find_label(redacted(str(file)), rows.schema)
        return _stored_names(rows.schema, label)
    finally:
        rows.close()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip() and text != "none"]


def _relative(source: Path, file: Path) -> str:
    return file.relative_to(source).as_posix() if file.is_relative_to(source) and file != source else file.name


def _open(file: Path) -> ParquetRows:
    try:
        return ParquetRows(file)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise _damaged(redacted(str(file)), error) from None


def _rows(shown: str, rows: ParquetRows, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows as objects; without any column they are empty."""
    if not columns:
        for _ in range(rows.num_rows):
            yield {}
        return
    found = rows.rows(columns)
    while True:
        try:
            row = next(found, None)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise _damaged(shown, error) from None
        if row is None:
            return
        yield row


def _damaged(shown: str, error: Exception) -> ValueError:
    text = str(error).partition("\n")[0][:200]
    return problem(f"{shown}: not a whole parquet file: {text}", "restore the file, or name parquet files only")


# ---- which column is which ----


def _find_columns(shown: str, schema: pa.Schema, asked: Columns, ignored: set[str]) -> Columns:
    """Return which column of a file has what."""
    content, path = asked.bytes, asked.path
    if content is None and path is None:
        content, path = _find_videos(shown, schema)
    elif content is not None and path is None and content.endswith(".bytes"):
        beside = f"{content.removesuffix('.bytes')}.path"
        path = beside if type_of(schema, beside) is not None else None
    label = _find_label(shown, schema) if asked.label is None else None if asked.label == "none" else asked.label
    key = _find_by_name(shown, schema, "key", asked.key)
    start, end = _find_by_name(shown, schema, "start", asked.start), _find_by_name(shown, schema, "end", asked.end)
    if start is not None and end is None and asked.end is None:
        check_no_duration(shown, schema.names)
    used = {content, path, label, key, start, end}
    outer = {(name if name in schema.names else name.partition(".")[0]) for name in used if name is not None}
    rest = [name for name in schema.names if name not in outer]
    fields = tuple(rest if asked.fields == ("all",) else asked.fields)
    if asked.fields == ("all",):
        fields = tuple(name for name in rest if not _has_bytes(schema.field(name).type) and name not in ignored)
    for name in [*filter(None, used), *fields, *ignored]:
        if type_of(schema, name) is None:
            raise problem(f"{shown}: there is no column {name!r}, only {', '.join(schema.names)}", "name one of them")
    if content is not None and not is_binary(type_of(schema, content)):
        raise problem(
            f"{shown}: column {content!r} holds {type_of(schema, content)}, not bytes", "choose another bytes_column"
        )
    for name in fields:
        if _has_bytes(type_of(schema, name)):
            raise problem(f"{shown}: column {name!r} holds bytes, which are no field", "leave it out of fields")
    unwanted = {name for role in BY_NAME if getattr(asked, role) == "none" for name in BY_NAME[role]}
    for name in rest:
        if plain(name) in {*SELECTING} - unwanted and name not in {*ignored, *fields}:
            raise problem(
                f"{shown}: column {name!r} seems to choose a part of a video, or a split",
                f"use it (key_column, start_column, end_column, fields), or leave it out: --option ignore={name}",
            )
    return Columns(content, path, label, key, start, end, fields)


def _find_by_name(shown: str, schema: pa.Schema, role: Role, asked: str | None) -> str | None:
    """Return the column of keys, or of the times at which segments begin or end; None if there is none."""
    if asked is not None:
        return None if asked == "none" else asked
    tests = (_is_text if role == "key" else pa.types.is_floating, pa.types.is_integer)
    found = [
        name
        for name in schema.names
        if plain(name) in BY_NAME[role] and any(test(schema.field(name).type) for test in tests)
    ]
    if len(found) > 1:
        raise problem(
            f"{shown}: several columns may be the {role}: {', '.join(found)}",
            f"choose: --option {role}_column=NAME (or none)",
        )
    return found[0] if found else None


def _find_videos(shown: str, schema: pa.Schema) -> tuple[str | None, str | None]:
    """Return the column of bytes and that of paths or names, of which one or both are there."""
    contents = [name for name in schema.names if is_binary(schema.field(name).type)]
    contents += [f"{name}.bytes" for name in schema.names if is_binary(type_of(schema, f"{name}.bytes"))]
    texts = {plain(name): name for name in schema.names if _is_text(schema.field(name).type)}
    paths = [texts[name] for name in PATHS if name in texts]
    if len(contents) > 1 or (contents and not contents[0].endswith(".bytes") and paths):
        found = ", ".join([*contents, *paths])
        raise problem(
            f"{shown}: the videos may be in several columns: {found}",
            "choose: --option bytes_column=NAME or --option path_column=NAME",
        )
    if contents:
        beside = f"{contents[0].removesuffix('.bytes')}.path"
        return contents[0], beside if contents[0].endswith(".bytes") and type_of(schema, beside) is not None else None
    if not paths:
        raise problem(
            f"{shown}: no column is known to hold videos or paths: {', '.join(schema.names)}",
            "choose: --option bytes_column=NAME or --option path_column=NAME",
        )
    return None, paths[0]


def _find_label(shown: str, schema: pa.Schema) -> str | None:
    """Return the column of labels by its name; None if there is none."""
    found = [name for name in schema.names if plain(name) in LABELS]
    if len(found) > 1:
        raise problem(f"{shown}: several columns may be the label: {', '.join(found)}", "choose: label_column=NAME")
    return found[0] if found else None


def _stored_names(schema: pa.Schema, label: str | None) -> list[str]:
    """Return the names of classes that Hugging Face's libraries have written into a file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _has_bytes(kind: pa.DataType | None) -> bool:
    if kind is None or is_binary(kind):
        return kind is not None
    return any(_has_bytes(kind.field(place).type) for place in range(kind.num_fields))


# ---- one row ----


def _record(
    file: Path,
    where: str,
    number: int,
    row: dict[str, Any],
    columns: Columns,
    known: Classes,
    root: Path | None,
    base: str,
) -> VideoRecord:
    path, start, end = (_value(row, column) for column in (columns.path, columns.start, columns.end))
    if columns.bytes is None and (not isinstance(path, str) or not path):
        raise problem(f"{where}: {columns.path}={repr(path)[:80]} is not a path", "correct the row")
    label, name = known.label(where, _value(row, columns.label))
    key = _value(row, columns.key)
    if columns.key is not None and (key is None or isinstance(key, float)):
        raise problem(f"{where}: {columns.key}={key} is not a key", "give every row a key")
    inside, place = None, file
    if columns.bytes is not None:
        inside = ParquetCell(column=columns.bytes, row=number, name=path or f"row {number}")
        default = f"{base}_{number:08d}"
    else:
        place = path if "://" in path else (file.parent if root is None else root) / path
        default = segment_key(path, *(time if isinstance(time, int | float) else None for time in (start, end)))
    return VideoRecord(
        key=default if key is None else str(key),
        path=place,
        inside=inside,
        label=label,
        label_name=name,
        start=start,
        end=end,
        extra={field: _value(row, field) for field in columns.fields} or None,
        where=where,
    )


def _value(row: dict[str, Any], column: str | None) -> Any:
    """Return the value of a column, or of a field of a struct, in a row."""
    if column is None or column in row:
        return None if column is None else row[column]
    outer, _, inner = column.rpartition(".")
    return (row[outer] or {}).get(inner)
