"""charades: Charades, 9,848 videos of people at home, each with several of 157 actions and their times.

    rhofast shard CHARADES OUT/train --recipe charades --option split=train --split train
    rhofast shard CHARADES OUT/test  --recipe charades --option split=test  --split test

Download: https://prior.allenai.org/projects/charades offers the annotations (Charades.zip) and the videos, in their own
size (Charades_v1.zip) or scaled to 480p (Charades_v1_480.zip), which is enough for a short side of 256.
License: for academic research, not for commercial use; the text is in the archive. Cite arXiv 1604.01753.

SOURCE is the folder into which both were unpacked:

    Charades/Charades_v1_train.csv  Charades_v1_test.csv  Charades_v1_classes.txt    or in annotations/ or SOURCE
    Charades_v1_480/001YG.mp4  ...              or in Charades_v1/, videos/ or SOURCE

`root` sets the folder of the videos, `annotations` that of the csv files. The suffix of a video does not matter.

A video gets its actions as labels with times, in seconds. Those of one class that overlap are joined; what lies beyond
the end of the video is cut off or left out when it is stored, since a third of the annotations end a little late. An
action that ends before it begins is passed over, and counted. The other columns (script, descriptions, objects, scene,
...) are stored as fields of the sample, as the csv file has them. Videos without any action are part of the data set.

To sample clips as PySlowFast does, which reads pictures at 24 per second, set `clips.fps=24`, as
configs/eval/charades.toml does; nothing is stored at another rate.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from _lists import lines, numbered_lines, problem
from _paths import VideoFolders, first_file, first_folder

from rhofast.data.types import PassedOver, VideoRecord

Split = Literal["train", "test"]
Action = tuple[int, float, float]  # class number, start and end in seconds

PUBLISHED = {"train": 7_985, "test": 1_863}
VIDEOS = ("Charades_v1_480", "Charades_v1", "videos")
CLASSES = "Charades_v1_classes.txt"
NEEDED = ("id", "actions")
BACKWARD = "actions that end before they begin"

ACTION = re.compile(r"c(\d{3})\s+(\S+)\s+(\S+)")
CLASS_LINE = re.compile(r"c(\d{3})\s+(\S.*)")


def records(
    source: Path, *, split: Split = "train", root: Path | None = None, annotations: Path | None = None
) -> Iterator[VideoRecord | PassedOver]:
    """Yield the videos of one split, in the order of its csv file.

    Args:
        source: Folder of the data set.
        split: Which split to list.
        root: Folder of the videos; None: searched in `source`.
        annotations: Folder of the csv files; None: searched in `source`.

    Raises:
        ValueError: A file is missing or a line of it cannot be understood.
    """
    listing = find_listing(source, split, annotations)
    names = read_classes(listing.parent)
    videos = root or first_folder([*(source / name for name in VIDEOS), source])
    finder = VideoFolders()
    for line, row in rows(listing):
        key, where = row.pop("id"), f"{listing}:{line}"
        path = finder.find(videos, key) or videos / f"{key}.mp4"
        actions = parse_actions(row.pop("actions"), where, len(names))
        for _, start, end in actions:
            if end <= start:
                yield PassedOver(path=path, reason=BACKWARD)
        yield VideoRecord(key=key, path=path, labels=joined(actions), extra=row, where=where)


def classes(source: Path, *, split: Split = "train", annotations: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number. The options are those of records."""
    return read_classes(find_listing(source, split, annotations).parent)


def published(source: Path, *, split: Split = "train", **_: object) -> int:
    """Return how many videos the published split has."""
    return PUBLISHED[split]


def find_listing(source: Path, split: Split, annotations: Path | None) -> Path:
    """Return the csv file of a split; the arguments are as for records."""
    folders = [annotations] if annotations else [source / "Charades", source / "annotations", source]
    return first_file(folders, [f"Charades_v1_{split}.csv"])


def read_classes(folder: Path) -> list[str]:
    """Return the names of the classes by number, from lines such as `c008 Opening a door`.

    Raises:
        ValueError: A line is none of these, or a number is missing or occurs twice.
    """
    path = folder / CLASSES
    names: list[str] = []
    for line, text in numbered_lines(path):
        match = CLASS_LINE.fullmatch(text)
        if match is None or int(match[1]) != len(names):
            raise ValueError(f"{path}:{line}: expected `c{len(names):03d} name of the class`, got {text[:80]!r}")
        names.append(match[2])
    return names


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number from 1, values by column) for each video of a csv file.

    Raises:
        ValueError: A column is missing, or a line has more or fewer values than there are columns.
    """
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for at, text in lines(path):  # noqa: B007 - the number is needed below
            yield text

    reader = csv.reader(texts(), strict=True)
    try:
        header = next(reader, [])
        missing = [name for name in NEEDED if name not in header]
        if missing or len(set(header)) < len(header):
            what = f"no column {missing[0]!r}" if missing else "a column occurs twice"
            raise problem(f"{path}: {what} in the first line", "use the csv file as it was published")
        for values in reader:
            if len(values) != len(header):
                raise ValueError(f"{path}:{at}: {len(values)} values; the first line names {len(header)} columns")
            yield at, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{at}: quotes do not match: {error}") from None


def parse_actions(text: str, where: str, num_classes: int) -> list[Action]:
    """Return the actions of a video, such as `c092 11.90 21.20;c147 0.00 12.60`; the text may be empty.

    Args:
        text: The text.
        where: Place of the line, for errors.
        num_classes: Number of classes.

    Raises:
        ValueError: An action is not of this form, of no known class, or at no time.
    """
    actions: list[Action] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        match = ACTION.fullmatch(part)
        try:
            number, start, end = (int(match[1]), float(match[2]), float(match[3])) if match else (0, math.nan, 0.0)
        except ValueError:
            start = math.nan
        if not (math.isfinite(start) and math.isfinite(end) and start >= 0 and end >= 0):
            raise ValueError(f"{where}: expected an action such as `c092 11.90 21.20`, got {part[:80]!r}")
        if number >= num_classes:
            raise ValueError(f"{where}: class c{number:03d} is not in {CLASSES}, which has {num_classes}")
        actions.append((number, start, end))
    return actions


def joined(actions: list[Action]) -> list[Action]:
    """Return actions of which no two of one class overlap or touch, in the order of time, without backward ones."""
    found: list[Action] = []
    for number, start, end in sorted(actions):
        if end <= start:
            continue
        if found and found[-1][0] == number and start <= found[-1][2]:
            found[-1] = (number, found[-1][1], max(end, found[-1][2]))
        else:
            found.append((number, start, end))
    return sorted(found, key=lambda action: (action[1], action[0]))
