"""The one walk over folders, for all recipes: which files are videos, which links are followed. Not a recipe.

    folder --entries--> names and kinds, sorted --videos--> paths of videos, and what is passed over

A link to a folder is followed once: not if the walk lists that folder anyway, not if it did so through another link,
and not if it contains the link. A link to nothing is listed where it is, so that it counts as missing. Hidden files
and folders are passed over, and so are those of the system (recycle bins, thumbnails). A folder that cannot be read is
an OSError, because a data set without it would be another one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path, PurePath

from rhofast.data.types import PassedOver

VIDEO_SUFFIXES = {
    f".{name}"
    for names in (
        "3g2 3gp 3gp2 3gpp 3gpp2 amv asf av1 avi bik bk2 cdxl cine dav dif divx dv dvr-ms evo f4v flc fli flv gif gxf",
        "ifv insv ism ismv ivf ivr k3g kux lrv lxf m2p m2t m2ts m4v mj2 mjp2 mk3d mkv mlv mod moflex mov mp4 mp4v mpe",
        "mpeg mpg mps mpv mqv mts mtv mxf mxg nsv nut nuv ogm ogv ogx pmp psp pva qt r3d rm rmvb roq rpl skm smk swf",
        "thp tod tp trp ts ty usm viv vob vro webm wm wmv wtv xesc xmv xvid y4m",
        "264 265 266 avc avs2 avs3 cavs drc evc h261 h263 h264 h265 h266 h26l hevc ipu m1v m2v mjpeg mjpg",  # streams
        "mp2v mpv2 obu rcv vc1 vvc",
    )
    for name in names.split()
}

_SYSTEM = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recycle",
    "__macosx",
    "lost+found",
    "recycler",
    "system volume information",
}
_NO_TARGET = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class Kind(Enum):
    """What an entry of a folder is."""

    VIDEO = auto()
    FOLDER = auto()
    LINKED_FOLDER = auto()
    MISSING = auto()
    HIDDEN = auto()
    OTHER_FILE = auto()
    SPECIAL = auto()


REASONS = {Kind.HIDDEN: "hidden", Kind.OTHER_FILE: "other files", Kind.SPECIAL: "devices, pipes or sockets"}


@dataclass(frozen=True)
class Entry:
    """One name in a folder.

    Attributes:
        path: Path of the entry.
        kind: What it is. MISSING: a link to nothing that may have been a video or a folder of videos.
    """

    path: Path
    kind: Kind


def is_video_name(name: str) -> bool:
    """Return whether a file name has the suffix of a video; hidden files do not count."""
    return PurePath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or one that an operating system or a storage appliance reserves."""
    return name.startswith(".") or name.lower() in _SYSTEM


def entries(folder: Path) -> list[Entry]:
    """Return what is in a folder, sorted by name.

    Args:
        folder: The folder, on this machine or in an object store.

    Raises:
        OSError: The folder or the target of a link in it cannot be read.
    """
    if isinstance(folder, Path):
        if not os.access(folder, os.X_OK):  # its names may be readable even so, but not its files
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        with os.scandir(folder) as found:
            kinds = {entry.name: _local_kind(entry) for entry in found}
    else:
        kinds = {path.name: _remote_kind(path) for path in folder.iterdir()}
    return [Entry(folder / name, kind) for name, kind in sorted(kinds.items())]


def _local_kind(entry: os.DirEntry[str]) -> Kind:
    if is_hidden(entry.name):
        return Kind.HIDDEN
    if not entry.is_symlink():
        if entry.is_dir(follow_symlinks=False):
            return Kind.FOLDER
        return _file_kind(entry.name) if entry.is_file(follow_symlinks=False) else Kind.SPECIAL
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno not in _NO_TARGET:
            raise
        return Kind.MISSING if is_video_name(entry.name) or not PurePath(entry.name).suffix else Kind.OTHER_FILE
    if stat.S_ISDIR(mode):
        return Kind.LINKED_FOLDER
    return _file_kind(entry.name) if stat.S_ISREG(mode) else Kind.SPECIAL


def _remote_kind(path: Path) -> Kind:
    if is_hidden(path.name):
        return Kind.HIDDEN
    return Kind.FOLDER if path.is_dir() else _file_kind(path.name)


def _file_kind(name: str) -> Kind:
    return Kind.VIDEO if is_video_name(name) else Kind.OTHER_FILE


class Walk:
    """A walk over the tree below one folder, in one or several parts; it remembers which linked folders it entered."""

    def __init__(self, root: Path) -> None:
        """Prepare a walk.

        Args:
            root: The folder of the tree.
        """
        self._root = root.resolve() if isinstance(root, Path) else root
        self._entered: set[tuple[int, int]] = set()

    def videos(self, folder: Path, *, linked: bool = False) -> Iterator[Path | PassedOver]:
        """Yield the videos below a folder of the tree, depth first and sorted by name, and what is passed over.

        Only the names in the current folder and in those above it are in memory.

        Args:
            folder: The folder.
            linked: Whether the walk came to it through a link (see `enters`).

        Raises:
            OSError: A folder cannot be read.
        """
        above = [(iter(entries(folder)), linked)]
        while above:
            found, linked = above[-1]
            entry = next(found, None)
            if entry is None:
                above.pop()
            elif entry.kind in (Kind.VIDEO, Kind.MISSING):
                yield entry.path
            elif entry.kind in REASONS:
                yield PassedOver(path=entry.path, reason=REASONS[entry.kind])
            elif self.enters(entry, linked=linked):
                above.append((iter(entries(entry.path)), linked or entry.kind is Kind.LINKED_FOLDER))
            else:
                yield PassedOver(path=entry.path, reason="folders listed elsewhere")

    def enters(self, entry: Entry, *, linked: bool = False) -> bool:
        """Return whether the walk enters a folder, and remember a folder that is entered through a link.

        Args:
            entry: The folder, or a link to one.
            linked: Whether the walk came to it through a link.
        """
        if entry.kind is Kind.FOLDER and not linked:
            return True
        target = entry.path.resolve()
        if target.is_relative_to(self._root) and not any(map(is_hidden, target.relative_to(self._root).parts)):
            return False  # the walk comes there anyway
        if entry.path.parent.resolve().is_relative_to(target):
            return False
        status = target.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._entered:
            return False
        self._entered.add(identity)
        return True
