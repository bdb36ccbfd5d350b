"""folder: videos in class folders (FOLDER/CLASS/.../x.mp4), or in one flat folder without labels.

    rhofast shard FOLDER OUT
    rhofast shard FOLDER OUT/train --option split=train --option holdout=0.2
    rhofast shard FOLDER OUT/test  --option split=test  --option holdout=0.2

SOURCE is the folder. Each folder directly in it is a class. Classes are numbered by sorted name over the whole tree, so
that both splits agree.

`split` is all, train or test. `holdout` is the share of each class that goes to the test split: at least one video if
the class has two, chosen by a hash of the path, so that the choice is stable when videos are added. `per_class` keeps
only the first videos of each class of the split.
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
    """Yield the videos under a folder, sorted by path.

    Args:
        source: The folder.
        split: Which videos to list.
        holdout: Share of each class that goes to the test split, in [0, 1).
        per_class: Videos per class of the split; None: all.

    Raises:
        ValueError: The source is not a folder or has no videos.
    """
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout} must be in [0, 1)")
    flat = sorted(path for path in source.iterdir() if is_video(path))
    classes = sorted(folder.name for folder in source.iterdir() if folder.is_dir() and any_video(folder))
    if not flat and not classes:
        raise ValueError(f"{source}: no videos ({', '.join(sorted(VIDEO_SUFFIXES))}) in this folder or its subfolders")
    if flat and classes:
        raise ValueError(
            f"{source}: videos both in class folders and directly in this folder (e.g. {flat[0].name}); move them"
        )
    groups = [(None, None, flat)] if flat else [(label, name, None) for label, name in enumerate(classes)]
    for label, name, videos in groups:
        found = videos if videos is not None else sorted(filter(is_video, (source / str(name)).rglob("*")))
        test = held_out(source, found, holdout)
        chosen = [path for path in found if split == "all" or (path in test) == (split == "test")]
        for path in chosen[:per_class]:
            yield VideoRecord(key=key_of(path.relative_to(source).as_posix()), path=path, label=label, label_name=name)


def is_video(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a video."""
    return is_video_name(path.name) and path.is_file()


def any_video(folder: Path) -> bool:
    """Return whether there is a video anywhere under a folder that is not hidden."""
    return not folder.name.startswith(".") and any(map(is_video, folder.rglob("*")))


def held_out(source: Path, videos: list[Path], share: float) -> set[Path]:
    """Return the test videos of one class: the share `share` of them, chosen by a hash of their path in `source`."""
    count = round(share * len(videos))
    if share > 0 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda path: digest_of(path.relative_to(source).as_posix()))[:count])
