"""Which column of a list is which: paths, labels, names of labels. Not a recipe.

file --find_layout--> Layout --rows--> Row: the fields of each entry by their roles
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from _lists import SEPARATORS, VIDEO_IN_TEXT, ends_in_video, entry_lines, fields_of, problem

Role = Literal["path", "label", "label_name"]

_NUMBER_FIRST = re.compile(r"\d+(\.0*)?\s+\S", re.ASCII)
SURVEYED = 200  # entries by which separator and columns are found; the others are checked against them


def _words(*rows: str) -> list[str]:
    return " ".join(rows).split()


# Names of columns, of letters and digits alone, the likeliest first
PATHS = _words(
    "path filepath videopath file filename videofile videofilename videoname video clippath clipname clip relpath",
    "relativepath fullpath uri url src source location name youtubeid videoid clipid id",
)
LABELS = _words(
    "label labels labelid labelindex labelidx class classid classindex classidx classlabel target targets category",
    "categoryid action actionid actionlabel activity activityid groundtruth gt y",
)
LABEL_NAMES = _words("labelname labeltext classname categoryname actionname activityname")
SELECTING = _words(  # would make other samples of a video, or none: they cannot be left out of account
    "split subset set fold usage start end starttime endtime timestart timeend begin stop startframe endframe",
    "startsec endsec tstart tend",
)
IGNORED = {  # describe a video, or number the lines
    *("index", "idx", "number", "duration", "seconds", "length", "frames", "numframes", "nframes", "framecount"),
    *("totalframes", "fps", "framerate", "width", "height", "resolution", "size", "bytes", "filesize", "md5", "sha256"),
}


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
    """

    line: int
    path: str
    label: str | None = None
    label_name: str | None = None


def find_layout(
    path: Path,
    *,
    separator: str | None = None,
    header: bool | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
) -> Layout:
    """Find out how a list is written, from its first entries.

    Args:
        path: The list.
        separator: A key of SEPARATORS; None: the one that makes sense of most entries.
        header: Whether the first entry has the names of the columns; None: found by what is in it and below it.
        path_column: Name or number (from 1) of the column of paths; None: found.
        label_column: Name or number of the column of labels, or `none`; None: found.

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
    choose = _Columns(where, table[0] if named else None, table[1:] if named else table)
    columns, width = choose.columns(path_column, label_column)
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
        yield Row(line, values["path"], values.get("label") or None, values.get("label_name") or None)


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


def is_number(field: str | list[str]) -> bool:
    """Return whether a field, or the only field of a list, is a number."""
    if not isinstance(field, str):
        return len(field) == 1 and is_number(field[0])
    return re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", field, re.ASCII) is not None


def most(values: Iterable[bool]) -> bool:
    """Return whether more than half of the values are true."""
    counted = list(values)
    return 2 * sum(counted) > len(counted)


def plain(name: str) -> str:
    """Return the letters and digits of a column's name, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


class _Columns:
    """Finds out which column is which."""

    def __init__(self, where: str, header: list[str] | None, sample: list[list[str]]) -> None:
        self._where, self._header, self._sample = where, header, sample
        self._names = [plain(name) for name in header or ()]
        self._width = len(header or (sample[0] if sample else ()))

    def columns(self, path: str | None, label: str | None) -> tuple[dict[Role, int], int | None]:
        """Return the number of each column by its role, and the number of columns (None: a label may be absent)."""
        chosen_path = None if path is None else self._chosen("path_column", path)
        chosen_label = None if label in (None, "none") else self._chosen("label_column", str(label))
        found: dict[Role, int] = {}
        if self._header is None and path is None and label is None:
            return {"path": 0, "label": 1}, None
        if self._header is None:
            others = [column for column in range(self._width) if column not in (chosen_path, chosen_label)]
            found["path"] = others.pop(0) if chosen_path is None and others else chosen_path or 0
            if label != "none" and (chosen_label is not None or others):
                found["label"] = others.pop(0) if chosen_label is None else chosen_label
        else:
            found["path"] = self._path(chosen_label) if chosen_path is None else chosen_path
            others = self._others(found["path"])
            if chosen_label is not None:
                found["label"] = chosen_label
                others = [column for column in others if column != chosen_label]
            elif label is None:
                found.update(self._labels(others))
                others = [column for column in others if column not in found.values()]
        if others and (path is None or label is None):
            shown = ", ".join(self._header[column] if self._header else str(column + 1) for column in others)
            raise self._problem(f"it is not known what these columns mean: {shown}")
        return found, self._width

    def _chosen(self, option: str, column: str) -> int:
        if column.isascii() and column.isdigit() and 1 <= int(column) <= self._width:
            return int(column) - 1
        if column in (self._header or ()):
            return (self._header or []).index(column)
        if plain(column) in self._names:
            return self._names.index(plain(column))
        known = ", ".join(self._header or map(str, range(1, self._width + 1)))
        raise ValueError(f"{self._where}: {option}={column}: there is no such column, only {known}")

    def _path(self, label: int | None) -> int:
        free = [column for column in range(self._width) if column != label]
        video = [column for column in free if self._most(column, ends_in_video)]
        if len(video) == 1:
            return video[0]
        for name in PATHS:
            if name in self._names and self._names.index(name) in (video or free):
                return self._names.index(name)
        raise self._problem(f"no column is known to hold paths: {', '.join(self._header or ())}")

    def _others(self, path: int) -> list[int]:
        """Return the columns but for that of paths, names of the same videos, and what only describes them."""
        index = self._names[0] == "" or self._names[0].startswith("unnamed")  # as pandas writes it
        free = [column for column in range(int(index), self._width) if column != path]
        return [column for column in free if self._names[column] not in {*IGNORED, *PATHS}]

    def _labels(self, others: list[int]) -> dict[Role, int]:
        candidates = [column for column in others if self._names[column] in {*LABELS, *LABEL_NAMES}]
        candidates = candidates or [column for column in others if self._names[column] not in SELECTING]
        if not candidates:
            return {}
        if len(candidates) == 1:
            return {"label": candidates[0]}
        numbers = [column for column in candidates if self._most(column, is_number)]
        if len(candidates) == 2 and len(numbers) == 1:
            return {"label": numbers[0], "label_name": next(column for column in candidates if column not in numbers)}
        raise self._problem(
            f"several columns may be the label: {', '.join((self._header or [])[c] for c in candidates)}"
        )

    def _most(self, column: int, holds: Callable[[str], bool]) -> bool:
        return most(holds(fields[column]) for fields in self._sample if column < len(fields))

    def _problem(self, message: str) -> ValueError:
        return problem(
            f"{self._where}: {message}",
            "choose with --option path_column=NAME and --option label_column=NAME (or none); numbers from 1 do as well",
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
            f"quote what belongs together, or choose: --option path_column=1 --option label_column={len(fields)}",
        )
    remedy = (
        "choose a separator (--option separator=comma, tab, semicolon, pipe, space or none) or the columns (--option "
        "path_column=2 --option label_column=1)"
    )
    if any(map(ends_in_video, fields[1:])):
        raise problem(f"{where}: the path is not the first of the fields, or not the only one: {shown}", remedy)
    if not layout.chosen and not ends_in_video(path) and VIDEO_IN_TEXT.search(path):
        raise problem(f"{where}: text behind the path: {shown}", remedy)
