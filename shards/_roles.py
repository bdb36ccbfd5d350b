"""The roles of columns: the names by which they are known, and what tells which column has which. Not a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

from _lists import ends_in_video, problem

Role = Literal["path", "label", "label_name", "key", "start", "end"]


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
TIMES: dict[Role, list[str]] = {
    "start": _words("start starttime timestart startsec startseconds tstart begin"),
    "end": _words("end endtime timeend endsec endseconds tend stop"),
}
BY_NAME: dict[Role, list[str]] = {"key": ["key"], **TIMES}  # known by their names alone
SELECTING = _words(  # would make other samples of a video, or none, or name them: they cannot be left out of account
    "key split subset set fold usage start end starttime endtime timestart timeend begin stop startframe endframe",
    "startsec endsec tstart tend",
)
DURATIONS = _words("duration durationsec durationseconds seconds length")  # of a video, or of a segment
IGNORED = {  # describe a video, or number the lines
    *DURATIONS,
    *("index", "idx", "number", "frames", "numframes", "nframes", "framecount"),
    *("totalframes", "fps", "framerate", "width", "height", "resolution", "size", "bytes", "filesize", "md5", "sha256"),
}
_FEW = 20  # entries of which each may be of another class


def is_number(field: str | list[str]) -> bool:
    """Return whether a field, or the only field of a list, is a number."""
    if not isinstance(field, str):
        return len(field) == 1 and is_number(field[0])
    return re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", field, re.ASCII) is not None


def check_no_duration(where: str, names: Iterable[str]) -> None:
    """Raise ValueError if columns that say when segments begin, and not when they end, may say how long they are."""
    for name in names:
        if plain(name) in DURATIONS:
            raise problem(
                f"{where}: column {name!r} may be the duration of the segments, whose end no column has",
                "write a column end instead, or, if they end with their videos, --option end_column=none",
            )


def most(values: Iterable[bool]) -> bool:
    """Return whether more than half of the values are true."""
    counted = list(values)
    return 2 * sum(counted) > len(counted)


def plain(name: str) -> str:
    """Return the letters and digits of a column's name, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


class Columns:
    """Finds out which column is which."""

    def __init__(self, where: str, header: list[str] | None, sample: list[list[str]]) -> None:
        self._where, self._header, self._sample = where, header, sample
        self._names = [plain(name) for name in header or ()]
        self._width = len(header or (sample[0] if sample else ()))

    def columns(
        self, path: str | None, label: str | None, named: dict[Role, str | None]
    ) -> tuple[dict[Role, int], int | None]:
        """Return the number of each column by its role, and the number of columns (None: a label may be absent).

        Args:
            path: The column of paths, as the user chose it; None: found.
            label: That of labels, or `none`.
            named: Those of the roles of BY_NAME, or `none`.
        """
        chosen_path = None if path is None else self._chosen("path_column", path)
        chosen_label = None if label in (None, "none") else self._chosen("label_column", str(label))
        found: dict[Role, int] = {
            role: self._chosen(f"{role}_column", name) for role, name in named.items() if name not in (None, "none")
        }
        if self._header is None and path is None and label is None and not found:
            return {"path": 0, "label": 1}, None
        taken = {chosen_path, chosen_label, *found.values()}
        if self._header is None:
            others = [column for column in range(self._width) if column not in taken]
            found["path"] = others.pop(0) if chosen_path is None and others else chosen_path or 0
            if label != "none" and (chosen_label is not None or others):
                found["label"] = others.pop(0) if chosen_label is None else chosen_label
        else:
            found["path"] = self._path(chosen_label) if chosen_path is None else chosen_path
            others = [column for column in self._others(found["path"]) if column not in taken]
            found.update(self._by_name(others, named))
            others = [column for column in others if column not in found.values()]
            if "start" in found and "end" not in found and named["end"] is None:
                check_no_duration(self._where, filter(None, self._header))
            if chosen_label is not None:
                found["label"] = chosen_label
            elif label is None:
                found.update(self._labels(others))
                others = [column for column in others if column not in found.values()]
        others = [column for column in others if not self._is_unwanted(column, named)]
        if others and (path is None or label is None):
            shown = ", ".join(self._header[column] or "''" if self._header else str(column + 1) for column in others)
            raise self._problem(f"it is not known what these columns mean: {shown}")
        return found, self._width

    def _by_name(self, others: list[int], named: dict[Role, str | None]) -> dict[Role, int]:
        """Return the columns that are known by their names, and were not chosen."""
        found: dict[Role, list[int]] = {
            role: [column for column in others if self._names[column] in BY_NAME[role]]
            for role, chosen in named.items()
            if chosen is None
        }
        return {role: columns[0] for role, columns in found.items() if len(columns) == 1}

    def _is_unwanted(self, column: int, named: dict[Role, str | None]) -> bool:
        return self._header is not None and any(
            chosen == "none" and self._names[column] in BY_NAME[role] for role, chosen in named.items()
        )

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
        free = [column for column in free if self._names[column] or not self._all_empty(column)]
        return [column for column in free if self._names[column] not in {*IGNORED, *PATHS}]

    def _labels(self, others: list[int]) -> dict[Role, int]:
        candidates = [column for column in others if self._names[column] in {*LABELS, *LABEL_NAMES}]
        candidates = candidates or [
            column for column in others if self._names[column] not in SELECTING and not self._all_differ(column)
        ]
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

    def _all_empty(self, column: int) -> bool:
        return not any(fields[column] for fields in self._sample if column < len(fields))

    def _all_differ(self, column: int) -> bool:
        """Return whether a column has another value in each of many entries, as captions and names have."""
        values = [fields[column] for fields in self._sample if column < len(fields)]
        return len(values) > _FEW and len(set(values)) == len(values)

    def _problem(self, message: str) -> ValueError:
        return problem(
            f"{self._where}: {message}",
            "choose with --option path_column=NAME and --option label_column=NAME (or none); numbers from 1 do as well",
        )
