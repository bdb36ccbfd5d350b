"""uncurated: any number of videos without labels, in one folder or in folders nested to any depth.

    rhofast shard FOLDER OUT --recipe uncurated
    rhofast shard FOLDER OUT --recipe uncurated --min-duration 10 --max-duration 16

SOURCE is the folder. Names of folders do not matter. Linked folders are followed once, and a link to nothing is listed
and counts as missing. Other files (subtitles, descriptions) and hidden files and folders are passed over and counted. A
folder that cannot be read is an error. Folders are walked one at a time in sorted order, so the list of millions of
videos needs only the memory for the names in the current folder and those above it.

The second command accepts only videos of 10 to 16 seconds, like the short subset of uncurated videos in arXiv
2104.14558 (the whole set of the paper goes up to 600 seconds). The recipe does not open videos, so it does not know
their duration: the other videos are refused while shards are made, and counted as too_short and too_long.

License: the data set is yours, and so is the responsibility for the rights and the privacy of the people who made the
videos or are in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from _paths import key_of
from _walk import Walk

from rhofast.data.types import PassedOver, VideoRecord


def records(source: Path) -> Iterator[VideoRecord | PassedOver]:
    """Yield the videos under a folder, folder by folder, sorted by name; raises ValueError if it is not a folder."""
    if not source.is_dir():
        raise ValueError(f"{source}: not a folder")
    for found in Walk(source).videos(source):
        if isinstance(found, PassedOver):
            yield found
        else:
            yield VideoRecord(key=key_of(found.relative_to(source).as_posix(), size=10), path=found)
