"""kinetics: Kinetics-400, -600, -700 and -700-2020, by the published csv files, or by PySlowFast's lists of them.

    rhofast shard K400 OUT/train --recipe kinetics --option split=train --split train
    rhofast shard K400 OUT/val   --recipe kinetics --option split=val   --split val
    rhofast shard train.csv OUT/train --recipe kinetics --option root=/videos --split train

To get it: https://github.com/cvdfoundation/kinetics-dataset has scripts that download videos, csv files and, for
Kinetics-400, replacements of corrupted training videos. Many videos have left YouTube, so any copy misses some of the
list: they are counted and listed as refused. Terms: the annotations are CC BY 4.0, by Google; the videos belong to
those who uploaded them to YouTube, under its terms. Cite arXiv 1705.06950, 1808.01340, 1907.06987 or 2010.10864.

SOURCE is the data set's folder, or a csv file of it:

    annotations/train.csv  val.csv  test.csv        or right here; also validate.csv, kinetics_train.csv, ...
    train/---QUuC4vJs_000084_000094.mp4             id, start and end; folder also train_256, videos_train, videos/train
    train/testifying/---QUuC4vJs_000084_000094.mp4  `air drumming` or `air_drumming`; also without the split's folder
    replacement/replacement_for_corrupted_k400/...  taken instead of what the other folders have

`root` (videos), `annotations` (csv files) and `replacement` say otherwise. Columns are known by their names:
youtube_id, time_start, time_end, and maybe label and split. A video's suffix does not matter. Classes are numbered by
sorted name over the train csv beside, so that splits agree; a file without labels needs none. A csv with all splits in
it is given as SOURCE, with `split` to choose from it.

A list of `path label` lines without column names, as PySlowFast takes it, is read as the recipe csv_list does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from csv import Error as CsvError
from csv import reader as csv_reader
from pathlib import Path
from typing import Literal

import csv_list
from _paths import VideoFolders, first_folder

from rhofast.data.types import VideoRecord

ALIASES = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
SPLITS = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
TOKEN = re.compile(r"(?<![a-z])(train|validate|validation|val|test)(?![a-z])", re.IGNORECASE)
COLUMNS = ("youtube_id", "time_start", "time_end")
PUBLISHED = {400: {"train": 246_534, "val": 19_906, "test": 39_805}}  # by number of classes

Row = dict[str, str]


def records(
    source: Path,
    *,
    split: Literal["train", "val", "test"] | None = None,
    root: Path | None = None,
    annotations: Path | None = None,
    replacement: Path | None = None,
) -> Iterator[VideoRecord]:
    """The videos of the csv, in its order; of a folder, the train split unless another is named. Raises ValueError,
    naming the line, where it cannot be understood."""
    listing = find_listing(source, split, annotations)
    named = split_of(listing.stem)
    if split and named not in (split, None):
        raise ValueError(f"{listing}: is called {named}, and split={split} was asked for")
    if not is_published(listing):
        yield from csv_list.records(listing, root=root)
        return
    names = label_names(listing)
    numbers = {name: number for number, name in enumerate(names)}
    above = listing.parent.parent if listing.parent.name == "annotations" else listing.parent
    videos = _Videos(root or (source if source.is_dir() else above), replacement, names)
    for line, row in rows(listing):
        row_split = SPLITS.get(row.get("split", "").lower(), named)
        if split and row_split != split:
            continue
        label = row.get("label") or None
        if label is not None and label not in numbers:
            raise ValueError(f"{listing}:{line}: the train csv has no class {label!r}")
        key = key_of_row(listing, line, row)
        yield VideoRecord(
            key=key,
            path=videos.find(key, row_split, label),
            label=None if label is None else numbers[label],
            label_name=label,
        )


def published(
    source: Path,
    *,
    split: Literal["train", "val", "test"] | None = None,
    annotations: Path | None = None,
    **_: object,
) -> int | None:
    """How many videos the published csv of the split has; None for PySlowFast's lists, and for all but Kinetics-400."""
    listing = find_listing(source, split, annotations)
    if not is_published(listing):
        return None
    return PUBLISHED.get(len(label_names(listing)), {}).get(split or split_of(listing.stem) or "")


def split_of(stem: str) -> str | None:
    """The split that a file's name tells, if it tells one."""
    found = {SPLITS[token.lower()] for token in TOKEN.findall(stem)}
    return found.pop() if len(found) == 1 else None


def find_listing(source: Path, split: str | None, annotations: Path | None) -> Path:
    """The csv of the split (train where None), or `source` itself where it is a file."""
    if source.is_file():
        return source
    split = split or "train"
    folders = [annotations] if annotations else [source / "annotations", source]
    for folder in folders:
        found = sorted(folder.glob("*.csv")) if folder.is_dir() else []
        found = [path for path in found if split_of(path.stem) == split and not path.name.startswith(".")]
        exact = [path for path in found if path.stem in ALIASES[split]]
        if len(exact or found) > 1:
            raise ValueError(f"{folder}: {', '.join(path.name for path in exact or found)}: give one of them as source")
        if found:
            return (exact or found)[0]
    raise ValueError(f"no {' or '.join(f'{name}.csv' for name in ALIASES[split])} in {', '.join(map(str, folders))}")


def is_published(listing: Path) -> bool:
    """Whether the first line names the published columns, and not a video."""
    with listing.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        return COLUMNS[0] in file.readline().lower()


def rows(listing: Path) -> Iterator[tuple[int, Row]]:
    """(line number, fields by name of column) of each row."""
    with listing.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv_reader(file, skipinitialspace=True)
        try:
            names = [name.strip().lower() for name in next(reader)]
            if absent := [name for name in COLUMNS if name not in names]:
                raise ValueError(f"{listing}:1: no column {', '.join(absent)} in {', '.join(names)}")
            for fields in filter(any, reader):
                if len(fields) != len(names):
                    raise ValueError(f"{listing}:{reader.line_num}: {len(fields)} fields in {len(names)} columns")
                yield reader.line_num, dict(zip(names, map(str.strip, fields), strict=True))
        except CsvError as error:
            raise ValueError(f"{listing}:{reader.line_num}: {error}") from None


def label_names(listing: Path) -> list[str]:
    """The sorted classes of the train csv: this file, the one beside it, or the train rows of this file. None are
    needed where nothing is labeled."""
    if split_of(listing.stem) == "train":
        return sorted({row["label"] for _, row in rows(listing) if row.get("label")})
    beside = listing.with_name(TOKEN.sub("train", listing.name))
    if beside != listing and beside.is_file() and is_published(beside):
        return label_names(beside)
    labeled = {(row["label"], SPLITS.get(row.get("split", "").lower())) for _, row in rows(listing) if row.get("label")}
    names = {label for label, split in labeled if split == "train"}
    if labeled and not names:
        raise ValueError(f"{listing}: classes are numbered by the train csv, and {beside.name} is not beside it")
    return sorted(names)


def key_of_row(listing: Path, line: int, row: Row) -> str:
    """The published name of a clip. Times are whole seconds, though some files write them as 10.0."""
    video = row["youtube_id"]
    try:
        start, end = (int(float(row[name])) for name in COLUMNS[1:])
    except (ValueError, OverflowError):
        raise ValueError(
            f"{listing}:{line}: times {row['time_start']!r} to {row['time_end']!r} are no seconds"
        ) from None
    if not re.fullmatch(r"[A-Za-z0-9_-]+", video):
        raise ValueError(f"{listing}:{line}: {video!r} is no YouTube id")
    return f"{video}_{start:06d}_{end:06d}"


class _Videos:
    """Where the videos of a copy are."""

    def __init__(self, root: Path, replacement: Path | None, labels: list[str]) -> None:
        self._root = root
        replaced = root / "replacement"
        self._replacement = replacement or first_folder([replaced / "replacement_for_corrupted_k400", replaced])
        self._labels = {_plain(label) for label in labels}
        self._finder = VideoFolders()
        self._folders: dict[str | None, list[tuple[Path, dict[str, Path]]]] = {}

    def find(self, stem: str, split: str | None, label: str | None) -> Path:
        """The video, or where it should be."""
        if found := self._finder.find(self._replacement, stem):
            return found
        if split not in self._folders:
            self._folders[split] = [(folder, self._class_folders(folder)) for folder in self._split_folders(split)]
        places = []
        for folder, classes in self._folders[split]:
            if label is not None and (of_class := classes.get(_plain(label))):
                places.append(of_class)
            places.append(folder)
        return next(filter(None, (self._finder.find(place, stem) for place in places)), places[0] / f"{stem}.mp4")

    def _split_folders(self, split: str | None) -> list[Path]:
        bases = [self._root, self._root / "videos"]
        names = [name for alias in ALIASES.get(split or "", ()) for name in (alias, f"{alias}_256", f"videos_{alias}")]
        found = [base / name for base in bases for name in names if (base / name).is_dir()]
        return found or [base for base in bases if base.is_dir()] or [self._root]

    def _class_folders(self, folder: Path) -> dict[str, Path]:
        """By the letters and digits of their names, since copies differ in all other characters."""
        found = folder.iterdir() if folder.is_dir() else ()
        return {_plain(path.name): path for path in found if _plain(path.name) in self._labels}


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
