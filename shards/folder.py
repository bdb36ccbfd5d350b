"""folder: videos in class folders (FOLDER/CLASS/.../x.mp4), or in one flat folder without labels.

    rhofast shard FOLDER OUT
    rhofast shard FOLDER OUT/train --option split=train --option holdout=0.2
    rhofast shard FOLDER OUT/test  --option split=test  --option holdout=0.2

A class is a folder of the first level; classes are numbered by sorted name over the whole tree, so that both splits
agree. `holdout` sends that share of each class (at least one video, if it has two) to the test split, chosen by a hash
of the path: stable when videos are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from _paths import VIDEO_SUFFIXES, digest_of, is_video_name, key_of

from rhofast.data.types import VideoRecord


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
        raise ValueError(f"{source}: no videos ({', '.join(sorted(VIDEO_SUFFIXES))}) in it or in its folders")
    if flat and classes:
        raise ValueError(f"{source}: videos both beside and inside class folders, e.g. {flat[0].name}; move them")
    groups = [(None, None, flat)] if flat else [(label, name, None) for label, name in enumerate(classes)]
    for label, name, videos in groups:
        found = videos if videos is not None else sorted(filter(is_video, (source / str(name)).rglob("*")))
        test = held_out(source, found, holdout)
        chosen = [path for path in found if split == "all" or (path in test) == (split == "test")]
        for path in chosen[:per_class]:
            yield VideoRecord(key=key_of(path.relative_to(source).as_posix()), path=path, label=label, label_name=name)


def is_video(path: Path) -> bool:
    return is_video_name(path.name) and path.is_file()


def any_video(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(map(is_video, folder.rglob("*")))


def held_out(source: Path, videos: list[Path], share: float) -> set[Path]:
    """The test videos of one class."""
    count = round(share * len(videos))
    if share > 0 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda path: digest_of(path.relative_to(source).as_posix()))[:count])
