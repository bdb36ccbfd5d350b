"""folder: videos in class folders (FOLDER/CLASS/.../x.mp4), or in one flat folder without labels.

    rhofast shard FOLDER OUT
    rhofast shard FOLDER OUT/train --option split=train --option holdout=0.2
    rhofast shard FOLDER OUT/test  --option split=test  --option holdout=0.2

A class is a folder of the first level; classes are numbered by sorted name over the whole tree, so that both splits
agree. `holdout` sends that share of each class (at least one video, if it has two) to the test split, chosen by a hash
of the path: stable when videos are added.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rhofast.data.types import VideoRecord

SUFFIXES = {
    f".{name}"
    for names in ("3gp asf avi flv gif", "m2ts m4v mkv mov mp4 mpeg mpg mts mxf", "ogv ts vob webm wmv")
    for name in names.split()
}


def records(
    source: Path,
    *,
    split: Literal["all", "train", "test"] = "all",
    holdout: float = 0.0,
    per_class: int | None = None,
) -> Iterator[VideoRecord]:
    """The videos under `source`, sorted by path; of the split, the first `per_class` of each class. Raises ValueError
    where it is not a folder or holds no video."""
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout} is not in [0, 1)")
    flat = sorted(path for path in source.iterdir() if is_video(path))
    classes = sorted(folder.name for folder in source.iterdir() if folder.is_dir() and any_video(folder))
    if not flat and not classes:
        raise ValueError(f"{source}: no videos ({', '.join(sorted(SUFFIXES))}) in it or in its folders")
    if flat and classes:
        raise ValueError(f"{source}: videos both beside and inside class folders, e.g. {flat[0].name}; move them")
    groups = [(None, None, flat)] if flat else [(label, name, None) for label, name in enumerate(classes)]
    for label, name, videos in groups:
        found = videos if videos is not None else sorted(filter(is_video, (source / str(name)).rglob("*")))
        test = held_out(source, found, holdout)
        chosen = [path for path in found if split == "all" or (path in test) == (split == "test")]
        for path in chosen[:per_class]:
            yield VideoRecord(key=key_of(path.relative_to(source)), path=path, label=label, label_name=name)


def is_video(path: Path) -> bool:
    """By its name; what is in it is looked at later. Hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def any_video(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(map(is_video, folder.rglob("*")))


def held_out(source: Path, videos: list[Path], share: float) -> set[Path]:
    """The test videos of one class."""
    count = round(share * len(videos))
    if share > 0 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda path: digest_of(path.relative_to(source)))[:count])


def digest_of(path: Path) -> str:
    return hashlib.blake2b(path.as_posix().encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


def key_of(path: Path) -> str:
    """A short ASCII key from a relative path: what is readable of its name, and a digest that keeps it unique."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem).strip("_-")[:40]
    return f"{readable}_{digest_of(path)}" if readable else digest_of(path)
