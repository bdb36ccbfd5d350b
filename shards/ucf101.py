"""ucf101: UCF101, 13,320 videos of 101 actions, by its published lists of three folds.

    rhofast shard UCF101 OUT/train --recipe ucf101 --option split=train --option fold=1 --split train
    rhofast shard UCF101 OUT/test  --recipe ucf101 --option split=test  --option fold=1 --split test

Download: https://www.crcv.ucf.edu/data/UCF101.php offers UCF101.rar (6.5 GB) and
UCF101TrainTestSplits-RecognitionTask.zip.
License: none comes with the data set. The videos were collected from YouTube, and their rights stay with their makers.
They are used for research. Cite arXiv 1212.0402.

SOURCE is the folder into which both were unpacked:

    UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi    or in videos/, or class folders in SOURCE
    ucfTrainTestlist/classInd.txt  trainlist01.txt  ...    or in annotations/, in SOURCE or beside SOURCE

`root` sets the folder of the videos, `annotations` that of the lists. Upper and lower case and the suffix of a video do
not matter. Class n of classInd.txt, which counts from 1, is label n - 1. Test lists have no labels, so the folder gives
the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Literal

from _lists import numbered_lines
from _paths import VideoFolders, first_file, first_folder

from rhofast.data.types import VideoRecord

Split = Literal["train", "test"]

PUBLISHED = {"train": (9_537, 9_586, 9_624), "test": (3_783, 3_734, 3_696)}


def records(
    source: Path, *, split: Split = "train", fold: int = 1, root: Path | None = None, annotations: Path | None = None
) -> Iterator[VideoRecord]:
    """Yield the videos of one list, in its order.

    Args:
        source: Folder of the data set.
        split: Which split to list.
        fold: Number of the fold: 1, 2 or 3.
        root: Folder of the videos; None: searched in `source`.
        annotations: Folder of the lists; None: searched in and beside `source`.

    Raises:
        ValueError: A list is missing or a line of it cannot be understood.
    """
    if fold not in (1, 2, 3):
        raise ValueError(f"fold={fold} must be 1, 2 or 3")
    listing = find_listing(source, split, fold, annotations)
    names = class_names(listing.parent / "classInd.txt")
    labels = {name.casefold(): label for label, name in enumerate(names)}
    videos = root or first_folder([source / "UCF-101", source / "UCF101", source / "videos", source])
    folders = {path.name.casefold(): path for path in videos.iterdir()} if videos.is_dir() else {}
    finder = VideoFolders(ignore_case=True)
    for line, text in numbered_lines(listing):
        path, *number = text.split()
        place, name = PurePath(path).parent.name, PurePath(path).name
        label = labels.get(place.casefold())
        if label is None:
            raise ValueError(f"{listing}:{line}: class {place!r} is not in classInd.txt")
        if number and number != [str(label + 1)]:
            raise ValueError(f"{listing}:{line}: expected {path} {label + 1} as in classInd.txt, got {text!r}")
        folder = folders.get(place.casefold(), videos / place)
        stem = PurePath(name).stem
        yield VideoRecord(
            key=stem,
            path=finder.find(folder, stem) or folder / name,
            label=label,
            label_name=names[label],
            where=f"{listing}:{line}",
        )


def classes(
    source: Path, *, split: Split = "train", fold: int = 1, annotations: Path | None = None, **_: object
) -> list[str]:
    """Return the names of all classes, by number. The options are those of records."""
    return class_names(find_listing(source, split, fold, annotations).parent / "classInd.txt")


def published(source: Path, *, split: Split = "train", fold: int = 1, **_: object) -> int:
    """Return how many videos the published list has."""
    return PUBLISHED[split][fold - 1]


def find_listing(source: Path, split: Split, fold: int, annotations: Path | None) -> Path:
    """Return the list of a split; the arguments are as for records."""
    beside = [source / "ucfTrainTestlist", source / "annotations", source, source.parent / "ucfTrainTestlist"]
    return first_file([annotations] if annotations else beside, [f"{split}list{fold:02d}.txt"])


def class_names(path: Path) -> list[str]:
    """Return the names in classInd.txt, whose lines are `1 ApplyEyeMakeup` and so on."""
    names: list[str] = []
    for line, text in numbered_lines(path):
        number, _, name = text.partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise ValueError(f"{path}:{line}: expected `{len(names) + 1} CLASS`, got {text!r}")
        if name.strip().casefold() in map(str.casefold, names):
            raise ValueError(f"{path}:{line}: class {name.strip()!r} occurs twice")
        names.append(name.strip())
    return names
