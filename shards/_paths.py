"""What several recipes need: names of videos, keys from paths, lists of lines, and looking for files. Not a recipe.

Paths are used through pathlib's own methods alone, so that they may lie in an object store too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

VIDEO_SUFFIXES = {
    f".{name}"
    for names in ("3gp asf avi flv gif", "m2ts m4v mkv mov mp4 mpeg mpg mts mxf", "ogv ts vob webm wmv")
    for name in names.split()
}


def is_video_name(name: str) -> bool:
    """By the suffix; what is in it is looked at later. Hidden files are none."""
    return PurePath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def digest_of(path: str, size: int = 6) -> str:
    """`size` bytes in hexadecimal. Six suit a million paths, ten more than there are."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()


def key_of(path: str, size: int = 6) -> str:
    """A short ASCII key: what is readable of the file's name, and a digest of the whole path that keeps it unique."""
    digest = digest_of(path, size)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(path).stem).strip("_-")[:40]
    return f"{readable}_{digest}" if readable else digest


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without space around it) of each line of a text file that is not empty."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, text in enumerate(file, start=1):
            if line := text.strip():
                yield number, line


def first_folder(folders: Iterable[Path]) -> Path:
    """The first that exists, or else the last."""
    for folder in folders:
        if folder.is_dir():
            break
    return folder


def first_file(folders: Iterable[Path], names: Iterable[str]) -> Path:
    """The first `folder / name` that exists. Raises ValueError, saying where it looked."""
    folders, names = list(folders), list(names)
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path
    raise ValueError(f"no {' or '.join(names)} in {', '.join(map(str, folders))}")


class VideoFolders:
    """Finds videos by name without suffix, since copies of a data set differ in it. Each folder is listed once and its
    names are kept: one listing instead of several looks at the disk for each of hundreds of thousands of videos."""

    def __init__(self, *, ignore_case: bool = False) -> None:
        self._ignore_case = ignore_case
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, stem: str) -> Path | None:
        """The video in `folder`, or None. Of several that differ in suffix alone, the first by name."""
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        name = self._names[folder].get(self._same(stem))
        return None if name is None else folder / name

    def _list(self, folder: Path) -> dict[str, str]:
        names: dict[str, str] = {}
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_video_name(path.name):
                stem = self._same(path.stem)
                names[stem] = min(path.name, names.get(stem, path.name))
        return names

    def _same(self, stem: str) -> str:
        return stem.casefold() if self._ignore_case else stem
