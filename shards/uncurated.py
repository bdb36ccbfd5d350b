"""uncurated: any number of videos without labels, in one folder or in folders nested to any depth.

    rhofast shard FOLDER OUT --recipe uncurated
    rhofast shard FOLDER OUT --recipe uncurated --min-duration 10 --max-duration 16

SOURCE is the folder. Names of folders do not matter. Other files (subtitles, descriptions) and hidden files and folders
are skipped, and linked folders are followed. Folders are walked one at a time in sorted order, so the list of millions
of videos needs only the memory for the names in the current folder and those above it.

The second command accepts only videos of 10 to 16 seconds, like the short subset of uncurated videos in arXiv
2104.14558 (the whole set of the paper goes up to 600 seconds). The recipe does not open videos, so it does not know
their duration: the other videos are refused while shards are made, and counted as too_short and too_long.

License: the data set is yours, and so is the responsibility for the rights and the privacy of the people who made the
videos or are in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from _paths import is_video_name, key_of

from rhofast.data.types import VideoRecord


def records(source: Path) -> Iterator[VideoRecord]:
    """Yield the videos under a folder, folder by folder, sorted by name; raises ValueError if it is not a folder."""
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    for path in walk(source):
        yield VideoRecord(key=key_of(path.relative_to(source).as_posix(), size=10), path=path)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the videos under a folder; a link to a folder that contains it is not followed."""
    for name in sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        path = folder / name
        if path.is_dir():
            if not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
                yield from walk(path)
        elif is_video_name(name):
            yield path
