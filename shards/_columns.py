"""Which column of a list is which: paths, labels, names of labels, keys, times of segments. Not a recipe.

file --find_layout--> Layout --rows--> Row: the fields of each entry by their roles
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from _lists import SEPARATORS, VIDEO_IN_TEXT, ends_in_video, entry_lines, fields_of, problem
from _roles import IGNORED, LABEL_NAMES, LABELS, PATHS, SELECTING, TIMES, Columns, Role, is_number, most, plain

_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)", re.ASCII)  # hours, minutes and seconds
_NUMBER_FIRST = re.compile(r"\d+(\.0*)?\s+\S", re.ASCII)
SURVEYED = 200  # entries by which separator and columns are found; the others are checked against them


@dataclass(frozen=True)
class Layout:
    """How the fields of a file are separated, and what they are.

    Attributes:
        mark: The separator.
        header: Number of the line with the names of the columns; None without one.
        names: The names of the columns; empty without a header.
        columns: Number of each column by its role, from 0.
        width: Number of columns; None: a label may be absent.
        chosen: Whether the user chose the separator.
    """

    mark: str
    header: int | None
    names: list[str]
    columns: dict[Role, int]
    width: int | None
    chosen: bool


@dataclass(frozen=True)
class Row:
    """One entry.

    Attributes:
        line: Number of its line, from 1.
        path: The path or address.
        label: The label as it is written; None without one.
        label_name: The name beside a label that is a number; None without one.
        key: The key of the sample; None if no column has keys.
        start: Beginning of the segment in seconds; None for that of the video.
        end: End of the segment in seconds; None for that of the video.
    """

    line: int
    path: str
    label: str | None = None
    label_name: str | None = None
    key: str | None = None
    start: float | None = None
    end: float | None = None


def find_layout(
    path: Path,
    *,
    separator: str | None = None,
    header: bool | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    key_column: str | None = None,
    start_column: str | None = None,
    end_column: str | None = None,
) -> Layout:
    """Find out how a list is written, from its first entries.

    Args:
        path: The list.
        separator: A key of SEPARATORS; None: the one that makes sense of most entries.
        header: Whether the first entry has the names of the columns; None: found by what is in it and below it.
        path_column: Name or number (from 1) of the column of paths; None: found.
        label_column: Name or number of the column of labels, or `none`; None: found.
        key_column: Name or number of the column of keys, or `none`; None: found.
        start_column: Name or number of the column of the times at which segments begin, or `none`; None: found.
        end_column: The same for their ends.

    Raises:
        ValueError: The list has no entries, or can be read in more than one way.
    """
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator={separator} must be one of {', '.join(SEPARATORS)}")
    sample = list(islice(entry_lines(path), SURVEYED + 1))
    if not sample:
        raise ValueError(f"{path}: no entries")
    if re.match(r"\s*([{\[]\s*\"|[{\[]\s*$|\[\s*[{\[])", sample[0][1]):
        raise problem(f"{path}:{sample[0][0]}: JSON is not a list of lines", "write one line per video: path,label")
    mark = SEPARATORS[separator] if separator else likeliest_mark([text for _, text in sample])
    table = [_split(path, line, text, mark) for line, text in sample]
    where = f"{path}:{sample[0][0]}"
    if separator is None and all(len(fields) == 1 and _NUMBER_FIRST.match(fields[0]) for fields in table):
        raise problem(
            f"{where}: every line begins with a number; it may be a label, or part of the name: {sample[0][1]!r}",
            "write the path first and the label behind it, or say that it is part of the name: --option separator=none",
        )
    named = is_header(where, table[0], table[1:]) if header is None else header
    choose = Columns(where, table[0] if named else None, table[1:] if named else table)
    known: dict[Role, str | None] = {"key": key_column, "start": start_column, "end": end_column}
    columns, width = choose.columns(path_column, label_column, known)
    return Layout(
        mark=mark,
        header=sample[0][0] if named else None,
        names=table[0] if named else [],
        columns=columns,
        width=width,
        chosen=separator is not None,
    )


def rows(path: Path, layout: Layout) -> Iterator[Row]:
    """Yield the entries of a list.

    Raises:
        ValueError: A line does not fit the layout.
    """
    for line, text in entry_lines(path):
        if line == layout.header:
            continue
        fields = _split(path, line, text, layout.mark)
        if fields == layout.names:
            raise ValueError(f"{path}:{line}: the names of the columns again: {text.strip()[:100]!r}")
        while len(fields) > (layout.width or 2) and not fields[-1]:
            fields.pop()
        _check_fields(f"{path}:{line}", text, fields, layout)
        values = {role: fields[column] for role, column in layout.columns.items() if column < len(fields)}
        if values.get("key") == "":
            remedy = "give every line a key, or have keys made: --option key_column=none"
            raise problem(f"{path}:{line}: no key", remedy)
        start, end = (_seconds(f"{path}:{line}", role, values.get(role)) for role in TIMES)
        label, label_name = values.get("label") or None, values.get("label_name") or None
        yield Row(line, values["path"], label, label_name, values.get("key"), start, end)


def _seconds(where: str, role: Role, text: str | None) -> float | None:
    """Return a time in seconds; raises ValueError if it is none."""
    if not text:
        return None
    if is_number(text):
        return float(text)
    if clock := _CLOCK.fullmatch(text):
        return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
    raise problem(
        f"{where}: {role}={text[:40]!r} is not a time",
        f"write seconds, or hours:minutes:seconds; if the column has no times of segments: --option {role}_column=none",
    )


def likeliest_mark(sample: Sequence[str]) -> str:
    """Return the separator that makes sense of most lines: fields, of which one is the whole path of a video."""

    def sense(text: str, mark: str) -> float:
        try:
            fields = fields_of(text, mark)
        except ValueError:  # to be named and not avoided, unless another separator makes sense of the line
            return 0.5 if mark != "" and mark in text and '"' in text else 0
        if mark == "":
            return ends_in_video(text) or len(text.split()) == 1
        return len(fields) > 1 and (not VIDEO_IN_TEXT.search(text) or any(map(ends_in_video, fields)))

    scores = {mark: sum(sense(text, mark) for text in sample) for mark in SEPARATORS.values()}
    return max(scores, key=lambda mark: scores[mark])  # the first of equal ones


def is_header(where: str, first: list[str], others: list[list[str]]) -> bool:
    """Return whether the first entry has the names of the columns.

    Args:
        where: Where it stands, for messages.
        first: Its fields.
        others: The fields of the entries below it.

    Raises:
        ValueError: This cannot be told.
    """
    names = list(map(plain, first))
    has_videos = most(any(map(ends_in_video, fields)) for fields in others)
    if any(ends_in_video(field) or "://" in field for field in first):
        return False
    numbers = any(is_number(field) for field in first)
    known = [name in {*PATHS, *LABELS, *LABEL_NAMES, *SELECTING, *IGNORED} for name in names]
    if not numbers and any(name in PATHS for name in names) and sum(known) > (len(names) > 1):
        return True
    if not has_videos or any(re.search(r"\w\.[A-Za-z]\w{1,4}$", field) for field in first):
        return False
    numeric = [place for place in range(len(first)) if most(is_number(fields[place : place + 1]) for fields in others)]
    if not numbers and (any(known) or numeric):
        return True
    raise problem(
        f"{where}: {', '.join(first)[:80]!r}: no video is named here, but in other lines",
        "say what the line is with --option header=true (names of the columns) or --option header=false",
    )


def _split(path: Path, line: int, text: str, mark: str) -> list[str]:
    try:
        return fields_of(text, mark)
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {error}") from None


def _check_fields(where: str, text: str, fields: list[str], layout: Layout) -> None:
    """Raise ValueError unless a line has the fields of its layout."""
    shown = repr(text.strip()[:100])
    if layout.width is not None and len(fields) != layout.width:
        raise ValueError(f"{where}: {len(fields)} fields in {layout.width} columns: {shown}")
    path = fields[layout.columns["path"]]
    if not path:
        raise ValueError(f"{where}: no path: {shown}")
    if layout.width is not None:
        return
    if len(fields) > 2:
        raise problem(
            f"{where}: {len(fields)} fields, expected a path and a label: {shown}",
            "quote what belongs together; name the columns in a first line, such as path,label,start,end; or choose: "
            f"--option path_column=1 --option label_column={len(fields)}",
        )
    remedy = (
        "choose a separator (--option separator=comma, tab, semicolon, pipe, space or none) or the columns (--option "
        "path_column=2 --option label_column=1)"
    )
    if any(map(ends_in_video, fields[1:])):
        raise problem(f"{where}: the path is not the first of the fields, or not the only one: {shown}", remedy)
    if not layout.chosen and not ends_in_video(path) and VIDEO_IN_TEXT.search(path):
        raise problem(f"{where}: text behind the path: {shown}", remedy)
