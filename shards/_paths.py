"""Helpers of several recipes: keys from paths, and finding files and videos. Not a recipe.

Paths are used through pathlib's own methods only, so that they may lie in an object store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from _walk import Kind, entries

from rhofast.storage.address import identity, redacted


def digest_of(path: str, size: int = 6) -> str:
    """Return a digest of a path, in hexadecimal.

    Args:
        path: The path.
        size: Bytes of the digest; 6 are enough for a million paths, 10 for any number.
    """
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()


def key_of(path: str, size: int = 6) -> str:
    """Return a short ASCII key: the readable characters of the file's name, and a digest that keeps it unique.

    The key of a signed address stays the same when the address is signed again.

    Args:
        path: The path or address.
        size: Bytes of the digest, as for digest_of.
    """
    digest = digest_of(identity(path), size)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(redacted(path)).stem).strip("_-")[:40]
    return f"{readable}_{digest}" if readable else digest


def segment_key(path: str, start: float | None, end: float | None) -> str:
    """Return the key of a segment of a video: that of the video if it is the whole of it.

    Args:
        path: The path or address.
        start: Seconds at which the segment begins; None for the beginning of the video.
        end: Seconds at which it ends; None for the end of the video.
    """
    key = key_of(path)
    if start is None and end is None:
        return key
    times = "-".join("" if time is None else f"{float(time):.6f}" for time in (start, end))
    return f"{key}_{digest_of(times, 8)}"  # of millions of segments of one file, no two have one key


def first_folder(folders: Iterable[Path]) -> Path:
    """Return the first folder that exists, or else the last one."""
    for folder in folders:
        if folder.is_dir():
            break
    return folder


def first_file(folders: Iterable[Path], names: Iterable[str]) -> Path:
    """Return the first `folder / name` that exists.

    Args:
        folders: Folders, in the order in which they are searched.
        names: File names, in the order in which they are tried in each folder.

    Raises:
        ValueError: There is none.
    """
    folders, names = list(folders), list(names)
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path
    raise ValueError(f"no {' or '.join(names)} in {', '.join(map(str, folders))}")


class VideoFolders:
    """Finds videos by their names without suffix, since copies of a data set differ in the suffix.

    Each folder is listed once and its names are kept. This avoids several disk accesses for each of hundreds of
    thousands of videos.
    """

    def __init__(self, *, ignore_case: bool = False) -> None:
        self._ignore_case = ignore_case
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, stem: str) -> Path | None:
        """Return the video in a folder, or None.

        Args:
            folder: The folder.
            stem: Name of the video without suffix. Of several videos with this name, the first by suffix is returned.
        """
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        name = self._names[folder].get(self._normalize(stem))
        return None if name is None else folder / name

    def _list(self, folder: Path) -> dict[str, str]:
        names: dict[str, str] = {}
        for entry in entries(folder) if folder.is_dir() else ():
            if entry.kind is Kind.VIDEO:
                stem = self._normalize(entry.path.stem)
                names.setdefault(stem, entry.path.name)
        return names

    def _normalize(self, stem: str) -> str:
        return stem.casefold() if self._ignore_case else stem
