"""csv_list: a text file with one video per line, optionally with a label: `path label`, as PySlowFast writes it.

    rhofast shard train.csv OUT --option root=/videos

SOURCE is the text file. Relative paths are relative to `root`, or to the folder of the file. Addresses such as
s3://bucket/x.mp4 are used unchanged. A path may be quoted. A label is a number or a name; names are numbered in sorted
order.

The separator is found as follows: the comma, tab or space behind the suffix of the path (`.mp4`), or else the first
comma or tab, or else the last space. So paths may contain all of these characters. `separator` (comma, tab or space)
sets it.

Skipped are empty lines, lines that begin with "# " (without the space, # is part of a name), and a first line with
column names such as `path,label`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from _paths import key_of, numbered_lines

from rhofast.data.types import VideoRecord

HEADS = {"path", "file", "filename", "video"}
SEPARATORS = {"comma": ",", "tab": "\t", "space": " "}


def records(source: Path, *, root: Path | None = None, separator: str | None = None) -> Iterator[VideoRecord]:
    """Yield the videos of the list, in its order.

    Args:
        source: The list.
        root: Folder of relative paths; None: the folder of the list.
        separator: `comma`, `tab` or `space`; None: found for each line.

    Raises:
        ValueError: A line cannot be understood.
    """
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator={separator} must be one of {', '.join(SEPARATORS)}")
    folder = source.parent if root is None else root
    names = label_names(source, separator)
    numbers = {name: number for number, name in enumerate(names)}
    for line, path, label in entries(source, separator):
        if label is None and names:
            raise ValueError(f"{source}:{line}: this line has no label, but others have one")
        yield VideoRecord(
            key=key_of(path),
            path=path if "://" in path else folder / path,
            label=None if label is None else numbers[label] if names else int(label),
            label_name=label if names else None,
        )


def label_names(source: Path, separator: str | None) -> list[str]:
    """Return the sorted class names; an empty list if all labels are numbers or there are none.

    Args:
        source: The list, which is read once; only the names are kept.
        separator: As for records.
    """
    names, numeric = set(), True
    for line, _, label in entries(source, separator):
        if label is not None:
            numeric = numeric and re.fullmatch(r"\d+", label) is not None
            names.add(label)
            if len(names) > 1_000_000:
                raise ValueError(
                    f"{source}:{line}: more than a million labels; set the separator (comma, tab or space)"
                )
    return [] if numeric else sorted(names)


def entries(source: Path, separator: str | None) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line number, path, label or None) for each entry of the list."""
    for number, line in numbered_lines(source):
        if line == "#" or line.startswith("# "):
            continue
        fields = split(line, separator)
        if number == 1 and is_header(fields):
            continue
        if len(fields) > 2 or not fields[0] or re.fullmatch(r"-\d+", fields[-1]):
            raise ValueError(f"{source}:{number}: expected `path label` with a label >= 0, got {line!r}")
        yield number, fields[0], fields[1] if len(fields) == 2 else None


def is_header(fields: list[str]) -> bool:
    """Return whether the fields are column names, path first; raises ValueError if the label comes first."""
    names = [field.lower() for field in fields]
    if names[0] == "label" and len(names) > 1:
        raise ValueError(f"columns {', '.join(fields)}: expected the path first and the label second")
    return names[0] in HEADS and names[1:] in (["label"], ["class"], [])


def split(line: str, separator: str | None) -> list[str]:
    """Return the unquoted fields of a line; `separator` is as for records."""
    if separator:
        mark = SEPARATORS[separator]
    else:
        behind_suffix = re.findall(r'\.[A-Za-z]\w{1,4}"?\s*([,\t ])', line)
        mark = behind_suffix[-1] if behind_suffix else next((mark for mark in ",\t" if mark in line), " ")
    if mark == " " and not line.startswith('"'):
        parts = re.fullmatch(r"(.*\.[A-Za-z]\w{1,4}) +([^./]+)", line) or re.fullmatch(r"(.*\S) +([^ ./]+)", line)
        return [parts[1], parts[2]] if parts else [line]
    return [field.strip() for field in next(csv.reader([line], delimiter=mark, skipinitialspace=True)) if field.strip()]
