"""folder: videos in class folders (FOLDER/CLASS/.../x.mp4), or in one flat folder without labels.

    rhofast shard FOLDER OUT
    rhofast shard FOLDER OUT/train --option split=train --option holdout=0.2
    rhofast shard FOLDER OUT/test  --option split=test  --option holdout=0.2

SOURCE is the folder. Each folder directly in it is a class if there is a video anywhere below it. Classes are numbered
by sorted name over the whole tree, so that both splits agree.

Linked folders are followed once, and a link to nothing is listed and counts as missing. Other files and hidden files
and folders are passed over and counted. A folder that cannot be read is an error.

`split` is all, train or test. `holdout` is the share of each class that goes to the test split: at least one video if
the class has two, chosen by a hash of the path, so that the choice is stable when videos are added. `per_class` keeps
only the first videos of each class of the split.

With split=all, only the names in the current folder and in those above it are in memory; with train or test, the paths
of the current class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from _paths import digest_of, key_of
from _walk import REASONS, Entry, Kind, Walk, entries, is_video_name

from rhofast.data.types import PassedOver, VideoRecord

FOLDERS = (Kind.FOLDER, Kind.LINKED_FOLDER)


def records(
    source: Path,
    *,
    split: Literal["all", "train", "test"] = "all",
    holdout: float = 0.0,
    per_class: int | None = None,
) -> Iterator[VideoRecord | PassedOver]:
    """Yield the videos under a folder, sorted by path, and what is passed over.

    Args:
        source: The folder.
        split: Which videos to list.
        holdout: Share of each class that goes to the test split, in [0, 1).
        per_class: Videos per class of the split; None: all.

    Raises:
        ValueError: The source is not a folder, or has videos in class folders and beside them.
        OSError: A folder cannot be read.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout} must be in [0, 1)")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class={per_class} must be at least 1")
    flat, folders = flat_and_folders(source)
    walk = Walk(source)
    yield from passed_over(source, walk, [*flat, *folders])
    groups = (
        [(None, None, flat)] if flat else [(label, entry.path.name, [entry]) for label, entry in enumerate(folders)]
    )
    for label, name, members in groups:
        found = chain.from_iterable(below(walk, member) for member in members)
        left = per_class
        for one in found if split == "all" else of_split(source, found, split, holdout):
            if isinstance(one, PassedOver):
                yield one
            elif left is None or left > 0:
                left = None if left is None else left - 1
                yield VideoRecord(
                    key=key_of(one.relative_to(source).as_posix()), path=one, label=label, label_name=name
                )


def classes(source: Path, **_: object) -> list[str]:
    """Return the names of all classes, by number."""
    return [entry.path.name for entry in flat_and_folders(source)[1]]


def flat_and_folders(source: Path) -> tuple[list[Entry], list[Entry]]:
    """Return the videos directly in a folder, and the class folders in it; at least one of the lists is empty.

    A link to nothing whose name has no suffix was a class folder, unless videos lie beside it.
    """
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    top = entries(source)
    flat = [entry for entry in top if entry.kind in (Kind.VIDEO, Kind.MISSING) and is_video_name(entry.path.name)]
    dead = [entry for entry in top if entry.kind is Kind.MISSING and not is_video_name(entry.path.name)]
    folders = [entry for entry in top if entry.kind in FOLDERS and has_video(source, entry)]
    if flat and folders:
        raise ValueError(
            f"{source}: videos both in class folders (e.g. {folders[0].path.name}) and directly in this folder (e.g. "
            f"{flat[0].path.name}); move them"
        )
    by_name = {entry.path.name: entry for entry in (flat or folders) + dead}
    ordered = [by_name[name] for name in sorted(by_name)]
    return (ordered, []) if flat else ([], ordered)


def has_video(source: Path, entry: Entry) -> bool:
    """Return whether there is a video anywhere below a folder in `source`."""
    return any(not isinstance(found, PassedOver) for found in below(Walk(source), entry))


def below(walk: Walk, entry: Entry) -> Iterator[Path | PassedOver]:
    """Yield the videos in one entry of the source, and what is passed over."""
    if entry.kind not in FOLDERS:
        yield entry.path
    elif walk.enters(entry):
        yield from walk.videos(entry.path, linked=entry.kind is Kind.LINKED_FOLDER)
    else:
        yield PassedOver(path=entry.path, reason="folders listed elsewhere")


def passed_over(source: Path, walk: Walk, listed: list[Entry]) -> Iterator[PassedOver]:
    """Yield what is passed over in the source, outside of what is listed."""
    names = {entry.path.name for entry in listed}
    for entry in entries(source):
        if entry.path.name in names:
            continue
        if entry.kind not in FOLDERS:
            yield PassedOver(path=entry.path, reason=REASONS[entry.kind])
        elif walk.enters(entry):
            yield PassedOver(path=entry.path, reason="folders without videos")
            yield from (found for found in walk.videos(entry.path) if isinstance(found, PassedOver))
        else:
            yield PassedOver(path=entry.path, reason="folders listed elsewhere")


def of_split(
    source: Path, found: Iterable[Path | PassedOver], split: Literal["train", "test"], holdout: float
) -> Iterator[Path | PassedOver]:
    """Yield what is passed over of one class, then its videos of one split."""
    videos: list[Path] = []
    for one in found:
        if isinstance(one, PassedOver):
            yield one
        else:
            videos.append(one)
    test = held_out(source, videos, holdout)
    yield from (path for path in videos if (path in test) == (split == "test"))


def held_out(source: Path, videos: list[Path], share: float) -> set[Path]:
    """Return the test videos of one class: the share `share` of them, chosen by a hash of their path in `source`."""
    count = round(share * len(videos))
    if share > 0 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    return set(sorted(videos, key=lambda path: digest_of(path.relative_to(source).as_posix()))[:count])
