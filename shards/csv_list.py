"""csv_list: a text file with one video per line, optionally with a label: `path label`, as PySlowFast writes it.

    rhofast shard train.csv OUT --option root=/videos
    rhofast shard train.csv OUT --option classes=names.txt
    rhofast shard table.csv OUT --option path_column=file --option label_column=action
    rhofast shard segments.csv OUT            with the first line: key,path,label,start,end

SOURCE is the text file, in UTF-8, or in UTF-16 with a byte order mark. Relative paths are relative to `root`, or to the
folder of the file. Addresses such as s3://bucket/x.mp4 are used unchanged. Skipped are empty lines and comments, which
begin with "# " (without the space, # is part of a name).

Fields are separated by commas, tabs, semicolons, bars or spaces, whichever makes sense of most lines; `separator` sets
it. A field that contains the separator is quoted. If spaces separate the fields, a path with a suffix may contain
spaces, but a label may not.

The first line may have the names of the columns; `header` says whether it has. Without one, a line is a path and a
label. With one, columns are recognized by what is in them and by usual names (path, file_name, video; label, class,
target, category), and one column may have the number and another the name of a class. Columns that only describe a
video (frames, duration, fps) are ignored; a single column of another name is the label if its values repeat. Those that
choose a split or frames (split, start_frame), and those whose meaning is not known, are an error (recipe `records`
takes fields of your own). `path_column` and `label_column` (a name, a number from 1, or none) choose; if both are
given, all other columns but those of keys and times are ignored that are not chosen, too.

A column named key, or `key_column`, has the keys of the samples: unique, of 1 to 80 ASCII letters, digits, "_" and
"-". By default keys are made of path and times.

Columns named start and end (start_time, time_end, begin, stop, ...) have the times of segments: seconds in the video,
or hours:minutes:seconds; an empty one is the beginning or the end of the video. `start_column` and `end_column` choose
them. A line is then a sample of its own, whose key has a digest of its times.

Labels are whole numbers >= 0 (1.0 is one), or names, which are numbered in sorted order. A list that has both is an
error; with `labels=names` numbers are taken as names too, sorted as text. `unlabeled` is the label that means none,
such as -1. `classes` is a file with the name of each class, one per line from class 0 on, or a JSON file with numbers
by name. It gives numbers their names, and names their numbers; without it, numbers are names of themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Literal

from _columns import Layout, Row, find_layout, rows
from _lists import CLASSES_BYTES, names_by_number, numbered_lines, problem, read_json
from _paths import segment_key
from _roles import is_number

from rhofast.data.types import VideoRecord

MAX_NAMES = 1_000_000
REMEMBERED = 100_000  # labels whose meaning is not found out again
Labels = Literal["numbers", "names"]


def records(
    source: Path,
    *,
    root: Path | None = None,
    separator: Literal["comma", "tab", "semicolon", "pipe", "space", "none"] | None = None,
    header: bool | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    key_column: str | None = None,
    start_column: str | None = None,
    end_column: str | None = None,
    labels: Labels | None = None,
    unlabeled: str | None = None,
    classes: Path | None = None,
) -> Iterator[VideoRecord]:
    """Yield the videos of the list, in its order.

    Args:
        source: The list.
        root: Folder of relative paths; None: the folder of the list.
        separator: What separates the fields; None: found.
        header: Whether the first line has the names of the columns; None: found.
        path_column: Column of the paths; None: found.
        label_column: Column of the labels, or `none`; None: found.
        key_column: Column of the keys, or `none`; None: found.
        start_column: Column of the times at which segments begin, or `none`; None: found.
        end_column: Column of the times at which segments end, or `none`; None: found.
        labels: What labels are; None: found.
        unlabeled: The label that means none; None: a list has labels in all lines or in none.
        classes: File with the names of the classes; None: numbers have no names, names are numbered in sorted order.

    Raises:
        ValueError: A line cannot be understood.
    """
    layout = find_layout(
        source,
        separator=separator,
        header=header,
        path_column=path_column,
        label_column=label_column,
        key_column=key_column,
        start_column=start_column,
        end_column=end_column,
    )
    folder = source.parent if root is None else root
    numbering = find_numbering(source, layout, labels, unlabeled, classes)
    for row in rows(source, layout):
        label, name = numbering.label_of(row)
        address = "://" in row.path
        odd = not address and ("./" in row.path or "//" in row.path)  # may be written in a plainer way
        plain = PurePosixPath(row.path).as_posix() if odd else row.path
        yield VideoRecord(
            key=segment_key(plain, row.start, row.end) if row.key is None else row.key,
            path=row.path if address else folder / row.path,  # type: ignore[arg-type]
            label=label,
            label_name=name,
            start=row.start,
            end=row.end,
            where=f"{source}:{row.line}",
        )


def classes(source: Path, *, classes: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number, if a file gives them; otherwise only the list itself knows them."""
    return [] if classes is None else class_names(classes)


@dataclass
class Numbering:
    """How the labels of a list become class numbers.

    Attributes:
        source: The list.
        unlabeled: The label that means none; None: there is no such label.
        as_names: Whether all labels are names, whatever they look like.
        mark: The separator of the list.
        numbers: Number of each name; empty if labels are numbers.
        names: Name of each number; empty if numbers have no names, or a column has them.
    """

    source: Path
    unlabeled: str | None
    as_names: bool
    mark: str
    numbers: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    _parsed: dict[str, int | None] = field(default_factory=dict)

    def text_of(self, row: Row) -> str | None:
        """Return the label of an entry as it is written, or None."""
        if row.label is None or self.unlabeled is None:
            return row.label
        both = is_number(row.label) and is_number(self.unlabeled)
        same = Decimal(row.label) == Decimal(self.unlabeled) if both else row.label == self.unlabeled
        return None if same else row.label

    def number_of(self, row: Row, label: str) -> int | None:
        """Return the number that a label is; None if it is a name. Raises ValueError if it is neither."""
        if self.as_names:
            return None
        if label not in self._parsed:
            if len(self._parsed) >= REMEMBERED:
                self._parsed.clear()
            self._parsed[label] = self._parse(row, label)
        return self._parsed[label]

    def _parse(self, row: Row, label: str) -> int | None:
        where, remedy = f"{self.source}:{row.line}: label {label[:80]!r}", "take labels as names: --option labels=names"
        numbers = re.fullmatch(r"[\d\s,;|/]+", label) and len(re.findall(r"\d+", label)) > 1
        listed = label[0] in "[({" and label[-1] in "])}" and "," in label
        several = numbers or listed or re.search(r"[;|]", label)
        if several or (self.mark == " " and "," in label):
            raise problem(f"{where} looks like several labels, but a video has one", remedy)
        if not is_number(label):
            if label.lower() == "nan":
                raise problem(f"{where} is not a number", f"say that it means none: --option unlabeled={label}")
            return None
        value = Decimal(label)
        if abs(value.adjusted()) > 18 or value != value.to_integral_value():
            raise problem(f"{where} is not a class number", remedy)
        if value < 0:
            raise problem(f"{where} is below 0", f"say that it means none: --option unlabeled={label}; or {remedy}")
        return int(value)

    def label_of(self, row: Row) -> tuple[int | None, str | None]:
        """Return the class number of an entry and the name of the class; raises ValueError if there is none such."""
        label = self.text_of(row)
        if label is None:
            return None, None
        number = self.number_of(row, label)
        if number is None:
            if label not in self.numbers:
                raise ValueError(f"{self.source}:{row.line}: class {label[:80]!r} is not in the file of classes")
            return self.numbers[label], label
        if self.names and number >= len(self.names):
            raise ValueError(f"{self.source}:{row.line}: label {number}, but there are {len(self.names)} classes")
        return number, self.names[number] if self.names else row.label_name


class Tally:
    """Counts entries of two kinds, of which a list may have one only."""

    def __init__(self) -> None:
        self._count: dict[bool, int] = {True: 0, False: 0}
        self._first: dict[bool, Row] = {}

    def add(self, kind: bool, row: Row) -> None:
        """Count an entry."""
        self._count[kind] += 1
        self._first.setdefault(kind, row)

    def rarer(self) -> tuple[Row, bool] | None:
        """Return the first entry of the rarer kind and the kind; None if all are of one kind."""
        if len(self._first) < 2:
            return None
        kind = self._count[True] < self._count[False]
        return self._first[kind], kind


def find_numbering(
    source: Path, layout: Layout, labels: Labels | None, unlabeled: str | None, names_file: Path | None
) -> Numbering:
    """Read all labels of a list, and find out how they become numbers.

    Args:
        source: The list.
        layout: How it is written.
        labels: What labels are; None: found.
        unlabeled: The label that means none.
        names_file: File with the names of the classes, or None.

    Raises:
        ValueError: A label cannot be understood, or is of another kind than the others.
    """
    numbering = Numbering(source, unlabeled, labels == "names", layout.mark)
    labeled, numeric, names = Tally(), Tally(), set[str]()
    for row in rows(source, layout):
        label = numbering.text_of(row)
        labeled.add(label is not None, row)
        if label is None:
            continue
        number = numbering.number_of(row, label)
        numeric.add(number is not None, row)
        if number is None:
            if labels == "numbers":
                raise ValueError(f"{source}:{row.line}: label {label[:80]!r} is not a number")
            names.add(label)
            if len(names) > MAX_NAMES:
                raise ValueError(f"{source}:{row.line}: more than {MAX_NAMES:,} different labels")
    if unlabeled is None and (odd := labeled.rarer()):
        row, has_label = odd
        what = "has a label, but most others have none" if has_label else "has no label, but others have one"
        raise problem(f"{source}:{row.line}: this line {what}", "accept lines without a label: --option unlabeled=")
    if odd := numeric.rarer():
        row, is_numeric = odd
        what = "is a number, but others are names" if is_numeric else "is a name, but others are numbers"
        raise problem(
            f"{source}:{row.line}: label {str(row.label)[:80]!r} {what}",
            "correct the line, or take all labels as names: --option labels=names",
        )
    if names_file is not None:
        numbering.names = class_names(names_file)
        names = set(numbering.names)
    ordered = numbering.names or sorted(names)
    numbering.numbers = {name: number for number, name in enumerate(ordered)}
    return numbering


def class_names(path: Path) -> list[str]:
    """Return class names by number, from a text file with one name per line or a JSON file.

    Lines may begin with the number, from 0 on. A JSON file has a list of names, or numbers by name.

    Raises:
        ValueError: A name or number occurs twice, or a number is missing.
    """
    if path.suffix.lower() == ".json":
        return names_by_number(path, read_json(path, most=CLASSES_BYTES, unique=True))
    names = [text for _, text in numbered_lines(path)]
    parts = [match for name in names if (match := re.fullmatch(r"(\d+)[\s,]+(.+)", name, re.ASCII))]
    if len(parts) == len(names) <= MAX_NAMES:
        return names_by_number(path, {part[2]: part[1] for part in parts})
    return names_by_number(path, names)
