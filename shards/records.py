"""records: JSON lines, one video or one segment of a video per line, as any pipeline can write them.

    rhofast shard records.jsonl OUT
    rhofast shard records.jsonl OUT --option root=/videos --option classes=names.txt

SOURCE is a file of JSON lines (`.jsonl`, `.ndjson`) in UTF-8, or a folder of such files at any depth, which are read in
sorted order. A line is an object:

    {"path": "match.mp4", "start": 12.5, "end": 20.0, "label": "serve", "extra": {"court": 3}}

Only `path` is required. Relative paths are relative to `root`, or to the folder of the file; addresses such as
s3://bucket/x.mp4 are used unchanged. Other keys, all optional (null means absent):

    key         name of the sample, unique, of 1 to 80 ASCII letters, digits, "_" and "-"; default: made from path and
                times
    label       class number, or name of a class
    label_name  name of the class, if the label is a number
    start, end  seconds in the video between which the sample lies; default: its beginning and its end
    labels      list of further labels, each [class], [class, start, end], or {"label": class, "start": s, "end": s};
                times are seconds in the video, null or absent for the beginning and the end of the sample
    extra       object with your own fields, which are stored as they are (at most 64 KiB of JSON in UTF-8)

Any other key is an error that names the line. Labels are numbers from 0 on; with `classes` (a file with one name per
line from class 0 on, or a JSON file with numbers by name) they may be names, and numbers get their names. `unlabeled`
is the label that means none, such as -1. Memory does not grow with the number of lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from _files import in_folder
from _labels import Classes
from _lists import problem
from _paths import segment_key
from pydantic import BaseModel, ConfigDict

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.storage.strict_json import read_numbered_lines

SUFFIXES = {".jsonl", ".ndjson"}
_LABEL = 'write a label as [class], [class, start, end] or {"label": class, "start": seconds, "end": seconds}'


class Line(BaseModel):
    """One line of a file."""

    model_config = ConfigDict(extra="forbid")

    path: str
    key: str | None = None
    label: int | str | None = None
    label_name: str | None = None
    start: float | None = None
    end: float | None = None
    labels: list[Any] | None = None
    extra: dict[str, Any] | None = None


def records(
    source: Path, *, root: Path | None = None, classes: Path | None = None, unlabeled: str | None = None
) -> Iterator[VideoRecord]:
    """Yield the videos of all lines, in their order.

    Args:
        source: The file, or a folder of files.
        root: Folder of relative paths; None: the folder of each file.
        classes: File with the names of the classes; None: labels are numbers.
        unlabeled: The label that means none, such as -1; None: there is no such label.

    Raises:
        ValueError: There is no file, or a label is none.
        IngestError: A line cannot be understood.
    """
    known = Classes(classes, unlabeled=unlabeled)
    for file in files(source):
        folder = file.parent if root is None else root
        for number, line in read_numbered_lines(file, Line, raises=IngestError, max_bytes=None):
            yield _record(f"{file}:{number}", line, folder, known)


def classes(source: Path, *, classes: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number, if a file gives them."""
    return Classes(classes).names


def files(source: Path) -> list[Path]:
    """Return the files of a source in sorted order; raises ValueError if there are none."""
    return in_folder(source, SUFFIXES) if source.is_dir() else [source]


def _record(where: str, line: Line, folder: Path, known: Classes) -> VideoRecord:
    if not line.path:
        raise problem(f"{where}: path is empty", "name the video")
    address = "://" in line.path
    label, name = known.label(where, line.label)
    if line.label_name is not None:
        if name is not None and name != line.label_name:
            raise problem(f"{where}: label_name={line.label_name!r}, but class {label} is {name!r}", "correct the line")
        name = line.label_name
    if label is None and name is not None:
        raise problem(f"{where}: label_name={name!r} without a label", "give the number or the name as the label")
    return VideoRecord(
        key=segment_key(line.path if address else PurePosixPath(line.path).as_posix(), line.start, line.end)
        if line.key is None
        else line.key,
        path=line.path if address else folder / line.path,  # type: ignore[arg-type]
        label=label,
        label_name=name,
        start=line.start,
        end=line.end,
        labels=None if line.labels is None else [_timed(where, each, known) for each in line.labels],
        extra=line.extra,
        where=where,
    )


def _timed(where: str, given: Any, known: Classes) -> tuple[int, float | None, float | None]:
    """Return one of several labels; its times are checked with the whole record."""
    if isinstance(given, dict):
        if unknown := given.keys() - {"label", "start", "end"}:
            raise problem(f"{where}: a label has the unknown key {min(unknown)!r}", _LABEL)
        given = [given.get("label"), given.get("start"), given.get("end")]
    if not isinstance(given, list) or len(given) not in (1, 3):
        raise problem(f"{where}: {str(given)[:80]!r} is not a label", _LABEL)
    number, _ = known.label(where, given[0])
    if number is None:
        raise problem(f"{where}: one of the labels has no class", _LABEL)
    start, end = given[1:] or (None, None)
    return number, start, end
