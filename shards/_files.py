"""Files that hold many videos, tars or tables: which ones a source names. Not a recipe."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _lists import numbered_lines, problem

from rhofast.storage.address import is_address, redacted
from rhofast.storage.store_path import as_path

LISTS = {".txt", ".lst", ".list"}
_MOST = 1_000_000  # names that one pair of braces may stand for
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def find_files(source: Path, suffix: str) -> Iterator[Path]:
    """Yield the files of one kind that a source names.

    Args:
        source: A file, a folder that holds files at any depth, a text file with one of these per line, or a name with
            braces (`{000000..000012}`, `{a,b}`) or a pattern (`*`, `?`).
        suffix: The suffix of the files in a folder.

    Raises:
        ValueError: There is none.
    """
    count = 0
    if source.suffix.lower() in LISTS and source.is_file():
        for number, line in numbered_lines(source):
            if line.startswith("#"):
                continue
            here = line if is_address(line) or Path(line).is_absolute() else str(source.parent / line)
            for file in _expanded(here, f"{source}:{number}", suffix):
                count += 1
                yield file
    else:
        for file in _expanded(str(source), str(source), suffix):
            count += 1
            yield file
    if not count:
        raise problem(f"{source}: no {suffix} file is named here", "name files, their folder, or a list of them")


def _expanded(text: str, where: str, suffix: str) -> Iterator[Path]:
    """Yield the files that one name stands for."""
    for name in braces(text, where):
        path = as_path(name, where, signed=True)
        signed = is_address(name) and name.startswith("http") and "?" in name
        if signed:
            yield path
        elif re.search(r"[*?]", name):
            found = _matches(path, name)
            if not found:
                raise problem(f"{where}: no file matches {redacted(name)}", "correct the pattern")
            yield from found
        elif path.suffix.lower() == suffix or not path.is_dir():
            yield path
        else:
            yield from in_folder(path, {suffix})


def braces(text: str, where: str) -> Iterator[str]:
    """Yield the names that a name with braces stands for, as the shell and WebDataset expand it.

    Args:
        text: The name.
        where: Where it stands, for the error.

    Raises:
        ValueError: It stands for more names than anybody has.
    """
    for begin, mark in enumerate(text):
        if mark == "{" and (end := _closing(text, begin)) and (choices := _choices(text[begin + 1 : end], where)):
            for choice in choices:
                for inner in braces(choice, where):
                    for rest in braces(text[end + 1 :], where):
                        yield text[:begin] + inner + rest
            return
    yield text


def _closing(text: str, begin: int) -> int:
    """Return the place of the brace that closes the one at `begin`; 0 if there is none."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place
    return 0


def _choices(inner: str, where: str) -> list[str]:
    """Return what the text between two braces stands for; nothing if the braces are part of the name."""
    match = _RANGE.fullmatch(inner)
    if match is None:
        depth, choices = 0, [""]
        for mark in inner:
            depth += {"{": 1, "}": -1}.get(mark, 0)
            if mark == "," and not depth:
                choices.append("")
            else:
                choices[-1] += mark
        return choices if len(choices) > 1 else []
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3] or 1)) or 1
    if abs(last - first) // step >= _MOST:
        raise problem(f"{where}: {{{inner}}} stands for more than {_MOST:,} names", "correct the numbers")
    width = max(map(len, match.group(1, 2))) if re.search(r"(^|-)0\d|\.-?0\d", inner) else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _matches(path: Path, name: str) -> list[Path]:
    if isinstance(path, Path):
        return [Path(found) for found in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - of any form
    root: Any = path
    while root.name and re.search(r"[*?]", str(root)):
        root = root.parent
    return sorted(root.glob(path.relative_to(root).as_posix()))


def in_folder(folder: Path, suffixes: set[str]) -> list[Path]:
    """Return the files with some suffixes in a folder, at any depth, sorted; raises ValueError if there are none."""
    found = sorted(each for suffix in suffixes for each in folder.rglob(f"*{suffix}") if not each.name.startswith("."))
    if not found:
        raise problem(f"{folder}: the folder has no {' or '.join(sorted(suffixes))} file", "name another folder")
    return found
