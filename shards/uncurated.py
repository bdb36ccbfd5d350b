"""uncurated: a lake of videos without labels, in one folder or in folders nested to any depth.

    rhofast shard LAKE OUT --recipe uncurated
    rhofast shard LAKE OUT --recipe uncurated --min-duration 10 --max-duration 16

What folders are called does not matter, other files (subtitles, descriptions) and all that is hidden are passed over,
and linked folders are followed. Folders are walked one at a time in sorted order, so that the list of millions of
videos needs no more memory than the names in the folders from here up.

The second line takes only videos of 10 to 16 seconds, as the short subset of uncurated videos of arXiv 2104.14558 does
(its whole set goes up to 600 seconds). How long a video is stands in the video, which a recipe does not open: the tool
refuses the others, and counts them as too_short and too_long.

Such a set is your own; so are the duties: the rights and the privacy of those who made and are in the videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from _paths import is_video_name, key_of

from rhofast.data.types import VideoRecord


def records(source: Path) -> Iterator[VideoRecord]:
    """The videos under `source`: folder by folder, each sorted by name. Raises ValueError where it is no folder."""
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    for path in walk(source):
        yield VideoRecord(key=key_of(path.relative_to(source).as_posix(), size=10), path=path)


def walk(folder: Path) -> Iterator[Path]:
    """The videos under a folder. A link back to a folder that holds it is not followed."""
    for name in sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        path = folder / name
        if path.is_dir():
            if not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
                yield from walk(path)
        elif is_video_name(name):
            yield path
