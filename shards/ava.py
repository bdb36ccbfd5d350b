"""ava: AVA 2.2, minutes 15 to 30 of 299 movies with boxes and actions of persons, by its published csv files.

    rhofast shard AVA OUT/train --recipe ava --option split=train --split train --fps 30 --samples-per-shard 1
    rhofast shard AVA OUT/val   --recipe ava --option split=val   --split val   --fps 30 --samples-per-shard 1
    rhofast boxes OUT/val --truth ava_val_v2.2.csv --classes ava_action_list_v2.2_for_activitynet_2019.pbtxt

Download: https://research.google.com/ava/download.html offers the csv files, and
https://github.com/cvdfoundation/ava-dataset the movies; their list is ava_file_names_trainval_v2.1.txt.
License: the annotations are CC BY 4.0, by Google. The movies belong to their makers. Cite arXiv 1705.08421.

SOURCE is the folder of the data set, or one of its csv files:

    annotations/ava_train_v2.2.csv  ava_val_v2.2.csv        or in SOURCE; `annotations` sets another folder
    trainval/-5KQ66BBWC4.mkv                                or in videos/, videos/trainval/, or SOURCE; `root`: another

The suffix of a movie does not matter. A movie is listed once, in the order of the csv file, and stored from `start` to
`end`, by default the 901 seconds from which PySlowFast extracts its pictures. A second s of the annotations is then
frame 30 (s - 900) of the sample. The boxes are not stored here but beside the shards, by `rhofast boxes`: other boxes
need no other shards. Movies that are nowhere are counted as missing, and left out of the boxes. A sample has 27,030
frames, about 0.8 GB with the codec `jpeg`, so a shard holds one; with `h264` eight are better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from _lists import numbered_lines
from _paths import VideoFolders

from rhofast.data.types import VideoRecord

Split = Literal["train", "val"]

PUBLISHED = {"train": 235, "val": 64}
FOLDERS = ("trainval", "videos/trainval", "videos", ".")
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


def records(
    source: Path,
    *,
    split: Split = "train",
    root: Path | None = None,
    annotations: Path | None = None,
    start: float = 900.0,
    end: float = 1801.0,
) -> Iterator[VideoRecord]:
    """Yield the movies of a csv file, in the order of their first lines.

    Args:
        source: Folder of the data set, or a csv file.
        split: Which split to list; a csv file as SOURCE says it itself.
        root: Folder of the movies; None: searched in `source`.
        annotations: Folder of the csv files; None: searched in `source`.
        start: Second of each movie at which its sample begins.
        end: Second at which it ends.

    Raises:
        ValueError: The csv file is missing, or a line of it does not begin with the id of a video.
    """
    listing = find_listing(source, split, annotations)
    home = source if source.is_dir() else listing.parent
    above = home.parent if home.name == "annotations" else home
    folders = [root] if root else [above / name if name != "." else above for name in FOLDERS]
    finder, seen = VideoFolders(), set[str]()
    for line, text in numbered_lines(listing):
        name = text.partition(",")[0].strip()
        if name in seen:
            continue
        if not VIDEO_ID.fullmatch(name):
            raise ValueError(f"{listing}:{line}: {name[:80]!r} is not the id of a video")
        seen.add(name)
        found = (path for folder in folders if (path := finder.find(folder, name)) is not None)
        missing = next((folder for folder in folders if folder.is_dir()), folders[-1]) / f"{name}.mkv"
        yield VideoRecord(key=name, path=next(found, missing), start=start, end=end, where=f"{listing}:{line}")


def listed_split(source: Path, *, split: Split = "train", **_: object) -> str | None:
    """Return the split that records lists; None for a csv file whose name does not say it."""
    if source.is_file():
        return next((name for name in PUBLISHED if f"_{name}_" in source.name), None)
    return split


def published(source: Path, *, split: Split = "train", **_: object) -> int | None:
    """Return how many movies the published list of a split has; None for a csv file whose name does not say it."""
    name = listed_split(source, split=split)
    return None if name is None else PUBLISHED[name]


def find_listing(source: Path, split: Split, annotations: Path | None) -> Path:
    """Return the csv file of a split, of the newest version that is there; the arguments are as for records."""
    if source.is_file():
        return source
    folders = [annotations] if annotations else [source / "annotations", source]
    for folder in folders:
        found = sorted(folder.glob(f"ava_{split}_v*.csv")) if folder.is_dir() else []
        if found:
            return found[-1]
    raise ValueError(f"no ava_{split}_v2.2.csv in {', '.join(map(str, folders))}")
