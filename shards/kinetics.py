"""kinetics: Kinetics-400, -600, -700 and -700-2020, by the published csv files or by PySlowFast's lists.

    rhofast shard K400 OUT/train --recipe kinetics --option split=train --split train
    rhofast shard K400 OUT/val   --recipe kinetics --option split=val   --split val
    rhofast shard train.csv OUT/train --recipe kinetics --option root=/videos --split train

Download: https://github.com/cvdfoundation/kinetics-dataset offers scripts that download the videos, the csv files and,
for Kinetics-400, replacements of corrupted training videos. Many videos have left YouTube, so every copy misses some of
the list; they are counted and listed as refused.
License: the annotations are CC BY 4.0, by Google. The videos belong to those who uploaded them to YouTube, under its
terms. Cite arXiv 1705.06950, 1808.01340, 1907.06987 or 2010.10864.

SOURCE is the folder of the data set, or one of its csv files:

    annotations/train.csv  val.csv  test.csv        or in SOURCE; also validate.csv, kinetics_train.csv, ...
    train/---QUuC4vJs_000084_000094.mp4             id, start and end; also in train_256/, videos_train/, videos/train/
    train/testifying/---QUuC4vJs_000084_000094.mp4  `air drumming` or `air_drumming`; also without the split's folder
    replacement/replacement_for_corrupted_k400/     used instead of the same videos in other folders

`root` sets the folder of the videos, `annotations` that of the csv files, and `replacement` that of the replacements.
The suffix of a video does not matter. Columns are found by name: youtube_id, time_start, time_end, and optionally label
and split. Classes are numbered by sorted name over the train csv beside the file, so that splits agree; a file without
labels needs none. If one csv file has all splits, give it as SOURCE and choose with `split`.

A list of `path label` lines without column names, as PySlowFast uses it, is read as by the recipe csv_list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import csv_list
from _lists import fields_of, lines
from _paths import VideoFolders, first_folder
from _walk import Kind, entries

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
    """Yield the videos of a csv file, in its order.

    Args:
        source: Folder of the data set, or a csv file.
        split: Which split to list; None: train for a folder, all rows for a file.
        root: Folder of the videos; None: searched in and beside `source`.
        annotations: Folder of the csv files; None: searched in `source`.
        replacement: Folder of replacements for corrupted videos; None: searched in `root`.

    Raises:
        ValueError: A csv file is missing or a line of it cannot be understood.
    """
    listing = find_listing(source, split, annotations)
    named = split_of(listing.stem)
    if split and named not in (split, None):
        raise ValueError(f"{listing}: the file name says {named}, but split={split} is requested")
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
            raise ValueError(f"{listing}:{line}: class {label!r} is not in the train csv")
        key = key_of_row(listing, line, row)
        yield VideoRecord(
            key=key,
            path=videos.find(key, row_split, label),
            label=None if label is None else numbers[label],
            label_name=label,
            where=f"{listing}:{line}",
        )


def classes(
    source: Path,
    *,
    split: Literal["train", "val", "test"] | None = None,
    annotations: Path | None = None,
    **_: object,
) -> list[str]:
    """Return the names of all classes, by number; empty if there are none. The options are those of records."""
    listing = find_listing(source, split, annotations)
    return label_names(listing) if is_published(listing) else csv_list.classes(listing)


def listed_split(
    source: Path,
    *,
    split: Literal["train", "val", "test"] | None = None,
    annotations: Path | None = None,
    **_: object,
) -> str | None:
    """Return the split that records lists; None for a file of all rows. The options are those of records."""
    return split or split_of(find_listing(source, split, annotations).stem)


def published(
    source: Path,
    *,
    split: Literal["train", "val", "test"] | None = None,
    annotations: Path | None = None,
    **_: object,
) -> int | None:
    """Return how many videos the published csv file of a split has.

    Args:
        source: As for records.
        split: As for records.
        annotations: As for records.

    Returns:
        The number; None for PySlowFast's lists and for all data sets but Kinetics-400.
    """
    listing = find_listing(source, split, annotations)
    if not is_published(listing):
        return None
    return PUBLISHED.get(len(label_names(listing)), {}).get(split or split_of(listing.stem) or "")


def split_of(stem: str) -> str | None:
    """Return the split that a file name contains, or None."""
    found = {SPLITS[token.lower()] for token in TOKEN.findall(stem)}
    return found.pop() if len(found) == 1 else None


def find_listing(source: Path, split: str | None, annotations: Path | None) -> Path:
    """Return the csv file of a split.

    Args:
        source: Folder of the data set, or a csv file, which is returned itself.
        split: The split; None: train.
        annotations: Folder of the csv files; None: searched in `source`.

    Raises:
        ValueError: There is no such file, or more than one.
    """
    if source.is_file():
        return source
    split = split or "train"
    folders = [annotations] if annotations else [source / "annotations", source]
    for folder in folders:
        found = sorted(folder.glob("*.csv")) if folder.is_dir() else []
        found = [path for path in found if split_of(path.stem) == split and not path.name.startswith(".")]
        exact = [path for path in found if path.stem in ALIASES[split]]
        if len(exact or found) > 1:
            raise ValueError(
                f"{folder}: {', '.join(path.name for path in exact or found)} match; give one of them as SOURCE"
            )
        if found:
            return (exact or found)[0]
    raise ValueError(f"no {' or '.join(f'{name}.csv' for name in ALIASES[split])} in {', '.join(map(str, folders))}")


def is_published(listing: Path) -> bool:
    """Return whether the first line has the published column names, and not a video."""
    return any(COLUMNS[0] in text.lower() for _, text in islice(lines(listing), 1))


def rows(listing: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, fields by column name) for each row."""
    names: list[str] = []
    for line, text in lines(listing):
        try:
            fields = fields_of(text, ",")
        except ValueError as error:
            raise ValueError(f"{listing}:{line}: {error}") from None
        if not names:
            names = list(map(str.lower, fields))
            if absent := [name for name in COLUMNS if name not in names]:
                raise ValueError(f"{listing}:{line}: no column {', '.join(absent)} in {', '.join(names)}")
            if len(set(names)) != len(names):
                raise ValueError(f"{listing}:{line}: two columns of one name in {', '.join(names)}")
        elif len(fields) != len(names):
            raise ValueError(f"{listing}:{line}: {len(fields)} fields in {len(names)} columns")
        else:
            yield line, dict(zip(names, fields, strict=True))


def label_names(listing: Path) -> list[str]:
    """Return the sorted classes of the train csv: this file, the one beside it, or the train rows of this file.

    The list is empty if no row has a label.
    """
    if split_of(listing.stem) == "train":
        return sorted({row["label"] for _, row in rows(listing) if row.get("label")})
    beside = listing.with_name(TOKEN.sub("train", listing.name))
    if beside != listing and beside.is_file() and is_published(beside):
        return label_names(beside)
    labeled = {(row["label"], SPLITS.get(row.get("split", "").lower())) for _, row in rows(listing) if row.get("label")}
    names = {label for label, split in labeled if split == "train"}
    if labeled and not names:
        raise ValueError(f"{listing}: class numbers need the train csv, but there is no {beside.name} beside this file")
    return sorted(names)


def key_of_row(listing: Path, line: int, row: Row) -> str:
    """Return the published name of a clip.

    Args:
        listing: The csv file, for errors.
        line: The line number, for errors.
        row: The row; its times are whole seconds, which some files write as 10.0.

    Raises:
        ValueError: The id or a time is invalid.
    """
    video = row["youtube_id"]
    try:
        start, end = (int(float(row[name])) for name in COLUMNS[1:])
    except (ValueError, OverflowError):
        raise ValueError(
            f"{listing}:{line}: times {row['time_start']!r} to {row['time_end']!r} are not numbers of seconds"
        ) from None
    if not re.fullmatch(r"[A-Za-z0-9_-]+", video):
        raise ValueError(f"{listing}:{line}: {video!r} is not a YouTube id")
    return f"{video}_{start:06d}_{end:06d}"


class _Videos:
    """Finds the videos of a copy in any of the usual layouts."""

    def __init__(self, root: Path, replacement: Path | None, labels: list[str]) -> None:
        self._root = root
        replaced = root / "replacement"
        self._replacement = replacement or first_folder([replaced / "replacement_for_corrupted_k400", replaced])
        self._labels = {_plain(label) for label in labels}
        self._finder = VideoFolders()
        self._folders: dict[str | None, list[tuple[Path, dict[str, list[Path]]]]] = {}

    def find(self, stem: str, split: str | None, label: str | None) -> Path:
        """Return the path of a video, or the path where it should be.

        Args:
            stem: Name of the clip, without suffix.
            split: Split of the clip, if known.
            label: Class of the clip, if known.
        """
        if found := self._finder.find(self._replacement, stem):
            return found
        if split not in self._folders:
            self._folders[split] = [(folder, self._class_folders(folder)) for folder in self._split_folders(split)]
        places = []
        for folder, classes in self._folders[split]:
            places += classes.get(_plain(label), ()) if label is not None else ()
            places.append(folder)
        return next(filter(None, (self._finder.find(place, stem) for place in places)), places[0] / f"{stem}.mp4")

    def _split_folders(self, split: str | None) -> list[Path]:
        bases = [self._root, self._root / "videos"]
        names = [name for alias in ALIASES.get(split or "", ()) for name in (alias, f"{alias}_256", f"videos_{alias}")]
        found = [base / name for base in bases for name in names if (base / name).is_dir()]
        return found or [base for base in bases if base.is_dir()] or [self._root]

    def _class_folders(self, folder: Path) -> dict[str, list[Path]]:
        """Return class folders by the letters and digits of their names; copies differ in all other characters."""
        folders: dict[str, list[Path]] = {}
        for entry in entries(folder) if folder.is_dir() else ():
            name = _plain(entry.path.name)
            if name in self._labels and entry.kind in (Kind.FOLDER, Kind.LINKED_FOLDER):
                folders.setdefault(name, []).append(entry.path)
        return folders


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
