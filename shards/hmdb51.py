"""hmdb51: HMDB51, 6,766 videos of 51 actions, by its published lists of three folds.

    rhofast shard HMDB51 OUT/train --recipe hmdb51 --option split=train --option fold=1 --split train
    rhofast shard HMDB51 OUT/test  --recipe hmdb51 --option split=test  --option fold=1 --split test

To get it: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/ has hmdb51_org.rar (2 GB, one
archive a class inside) and test_train_splits.rar. Terms: CC BY 4.0 by that page; the clips are cut from films and from
videos of the web. Cite Kuehne et al., ICCV 2011.

SOURCE is the folder that both were unpacked to:

    hmdb51_org/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi    or videos/..., or the class folders right here
    testTrainMulti_7030_splits/brush_hair_test_split1.txt  ...         or annotations/..., or right here or beside

`root` (videos) and `annotations` (lists) say otherwise. In a list, 1 is train, 2 is test, and 0 is in neither. The
classes of the lists are numbered by sorted name, since none are published. A video's suffix does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Literal

from _paths import VideoFolders, first_folder, key_of, numbered_lines

from rhofast.data.types import VideoRecord

Split = Literal["train", "test"]

MARKS = {"0": None, "1": "train", "2": "test"}
PUBLISHED = {"train": 3_570, "test": 1_530}  # of each fold: 70 and 30 a class


def records(
    source: Path, *, split: Split = "train", fold: int = 1, root: Path | None = None, annotations: Path | None = None
) -> Iterator[VideoRecord]:
    """The videos of one fold, class by class. Raises ValueError, naming the line, where a list cannot be understood."""
    if fold not in (1, 2, 3):
        raise ValueError(f"fold={fold}: choose 1, 2 or 3")
    ending = f"_test_split{fold}.txt"
    lists = class_lists([annotations] if annotations else places(source), ending)
    videos = root or first_folder([source / "hmdb51_org", source / "videos", source])
    finder = VideoFolders()
    for label, listing in enumerate(lists):
        label_name = listing.name.removesuffix(ending)
        for line, text in numbered_lines(listing):
            name, mark = (*text.rsplit(maxsplit=1), "")[:2]
            if mark not in MARKS:
                raise ValueError(f"{listing}:{line}: expected `NAME.avi` and 0, 1 or 2, got {text!r}")
            if MARKS[mark] == split:
                folder = videos / label_name
                yield VideoRecord(
                    key=key_of(f"{label_name}/{PurePath(name).stem}.avi"),
                    path=finder.find(folder, PurePath(name).stem) or folder / name,
                    label=label,
                    label_name=label_name,
                )


def published(source: Path, *, split: Split = "train", **_: object) -> int:
    """How many videos the published lists have; the folds are of one size."""
    return PUBLISHED[split]


def places(source: Path) -> list[Path]:
    """Where the lists may be."""
    name = "testTrainMulti_7030_splits"
    return [source / name, source / "test_train_splits" / name, source / "annotations", source, source.parent / name]


def class_lists(folders: list[Path], ending: str) -> list[Path]:
    """The lists of all classes, sorted by class."""
    for folder in folders:
        found = [path for path in folder.glob(f"*{ending}") if not path.name.startswith(".")] if folder.is_dir() else []
        if found:
            return sorted(found, key=lambda path: path.name.removesuffix(ending))
    raise ValueError(f"no CLASS{ending} in {', '.join(map(str, folders))}")
