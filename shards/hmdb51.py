"""hmdb51: HMDB51, 6,766 videos of 51 actions, by its published lists of three folds.

    rhofast shard HMDB51 OUT/train --recipe hmdb51 --option split=train --option fold=1 --split train
    rhofast shard HMDB51 OUT/test  --recipe hmdb51 --option split=test  --option fold=1 --split test

Download: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/ offers hmdb51_org.rar (2 GB,
with one archive per class inside) and test_train_splits.rar.
License: CC BY 4.0 according to that page; the clips are cut from films and web videos. Cite Kuehne et al., ICCV 2011.

SOURCE is the folder into which both were unpacked:

    hmdb51_org/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi    or in videos/, or class folders in SOURCE
    testTrainMulti_7030_splits/brush_hair_test_split1.txt              or in annotations/, in SOURCE or beside SOURCE

`root` sets the folder of the videos, `annotations` that of the lists. The suffix of a video does not matter. In a list,
1 means train, 2 means test, and 0 means neither. Classes are numbered by sorted name, since no numbers are published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Literal

from _lists import numbered_lines
from _paths import VideoFolders, first_folder, key_of

from rhofast.data.types import VideoRecord

Split = Literal["train", "test"]

MARKS = {"0": None, "1": "train", "2": "test"}
PUBLISHED = {"train": 3_570, "test": 1_530}  # in each fold: 70 and 30 per class


def records(
    source: Path, *, split: Split = "train", fold: int = 1, root: Path | None = None, annotations: Path | None = None
) -> Iterator[VideoRecord]:
    """Yield the videos of one split of a fold, class by class.

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
    lists = class_lists(source, fold, annotations)
    videos = root or first_folder([source / "hmdb51_org", source / "videos", source])
    finder = VideoFolders()
    for label, (label_name, listing) in enumerate(lists.items()):
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
                    where=f"{listing}:{line}",
                )


def classes(source: Path, *, fold: int = 1, annotations: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number. The options are those of records."""
    return list(class_lists(source, fold, annotations))


def published(source: Path, *, split: Split = "train", **_: object) -> int:
    """Return how many videos the published lists of a split have; the folds have the same size."""
    return PUBLISHED[split]


def places(source: Path) -> list[Path]:
    """Return the folders in which the lists may be."""
    name = "testTrainMulti_7030_splits"
    return [source / name, source / "test_train_splits" / name, source / "annotations", source, source.parent / name]


def class_lists(source: Path, fold: int, annotations: Path | None) -> dict[str, Path]:
    """Return the lists of a fold by class, sorted: those in the first folder that has any.

    The arguments are as for records; raises ValueError if there are no lists.
    """
    ending = f"_test_split{fold}.txt"
    folders = [annotations] if annotations else places(source)
    for folder in folders:
        found = [path for path in folder.glob(f"*{ending}") if not path.name.startswith(".")] if folder.is_dir() else []
        if found:
            return dict(sorted((path.name.removesuffix(ending), path) for path in found))
    raise ValueError(f"no CLASS{ending} in {', '.join(map(str, folders))}")
