"""Tars in WebDataset's form: what lies in them, and which members make a sample. Not a recipe.

    tar --headers alone--> members --successive ones of one key--> samples

A tar is never read as a whole: bodies are skipped, but for the small fields of a sample that are asked for. Memory
holds one sample's names and fields, whatever the size of the tar.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from _lists import problem

from rhofast.storage.address import redacted
from rhofast.storage.span_file import open_anywhere

MAX_FIELD = 1 << 20  # bytes of a field
_MAX_HEADER = 1 << 20  # bytes of a long name or of the records of an extended header
_MAX_PADDING = 4 << 20  # bytes of zeros behind the end mark
_BLOCK = 512
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_BASE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # WebDataset's rule: the key ends at the first dot
_META = re.compile(r"__[^/]*__($|/)")
_REPACK = "pack the tar again, with what its links lead to: tar --dereference --hard-dereference -cf ..."


@dataclass(frozen=True)
class Member:
    """A regular file in a tar.

    Attributes:
        name: Its name.
        offset: Position of its first byte in the tar.
        size: Its size in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass
class TarSample:
    """Successive members with one key.

    Attributes:
        tar: The tar.
        key: What their names have in common, up to the first dot behind the last slash.
        members: The members by what follows that dot, in lower case.
        fields: The content of those that were asked for.
    """

    tar: Path
    key: str
    members: dict[str, Member] = field(default_factory=dict)
    fields: dict[str, bytes] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Where the sample stands, for messages."""
        return f"{redacted(str(self.tar))}: {self.key}"


class CutError(ValueError):
    """A tar ends before its end mark."""


def samples(tar: Path, wanted: Callable[[str], bool]) -> Iterator[TarSample]:
    """Yield the samples of a tar, as WebDataset groups them: successive members of one key.

    Members without a dot in their names, and those below names such as `__meta__`, belong to none.

    Args:
        tar: The tar, on this machine or behind an address.
        wanted: Whether the content of the member with this suffix is to be read.

    Raises:
        ValueError: The tar is damaged, compressed or none, a sample has a suffix twice, or a member is a link or
            sparse.
        CutError: The tar ends early. The samples before were yielded, but for the last one.
        OSError: It cannot be read.
    """
    sample: TarSample | None = None
    with open_anywhere(tar) as file:
        for member in _members(tar, file):
            match = _BASE.fullmatch(member.name)
            if match is None or _META.match(member.name):
                continue
            key, suffix = match[1], match[2].lower()
            if sample is not None and sample.key != key:
                yield sample
                sample = None
            sample = sample or TarSample(tar, key)
            if suffix in sample.members:
                raise problem(f"{sample.where}: two members .{suffix} in succession", "give each sample its own name")
            sample.members[suffix] = member
            if wanted(suffix):
                sample.fields[suffix] = _content(tar, file, member)
    if sample is not None:
        yield sample


def _content(tar: Path, file: BinaryIO, member: Member) -> bytes:
    if member.size > MAX_FIELD:
        raise problem(
            f"{redacted(str(tar))}: {member.name}: {member.size:,} bytes, of at most {MAX_FIELD:,} for a field",
            "choose other fields: --option fields=NAMES (or none)",
        )
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise _cut(tar, f"within {member.name!r}")
    return content


def _members(tar: Path, file: BinaryIO) -> Iterator[Member]:
    """Yield the regular members of an open tar; raises as `samples`."""
    shown, last = redacted(str(tar)), "nothing"
    _check_kind(shown, file)
    try:
        archive = tarfile.open(fileobj=_Bounded(file), mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except tarfile.ReadError as error:
        raise problem(f"{shown}: not a tar: {error}", "name tars only") from None
    while True:
        try:
            found = archive.next()
        except tarfile.TarError as error:
            if "unexpected end" in str(error):
                raise _cut(tar, f"within {last!r}") from None
            raise problem(f"{shown}: damaged behind {last!r}: {error}", "restore the tar") from None
        if found is None:
            break
        archive.members.clear()  # tarfile keeps them all
        last = found.name
        if found.size < 0:
            raise problem(f"{shown}: {last}: a size of {found.size} bytes", "restore the tar")
        if found.issym() or found.islnk():
            if _BASE.fullmatch(last):
                raise problem(f"{shown}: {last}: a link to {found.linkname!r}, not a file", _REPACK)
        elif found.issparse():
            raise problem(
                f"{shown}: {last}: sparse, so its bytes are not in one piece", "pack the tar without --sparse"
            )
        elif found.isreg():
            yield Member(last, found.offset_data, found.size)
    _check_end(tar, file, archive.offset, last)


def _check_kind(shown: str, file: BinaryIO) -> None:
    """Raise ValueError unless a file may be a tar that is not compressed."""
    head = file.read(_BLOCK)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise problem(
                f"{shown}: compressed with {name}, so its members cannot be read one by one",
                "store the tar without compression; videos are compressed already",
            )
    if not head:
        raise problem(f"{shown}: empty", "restore the tar")
    file.seek(0)


def _check_end(tar: Path, file: BinaryIO, end: int, last: str) -> None:
    """Raise ValueError unless there is an end mark, and nothing but zeros behind it."""
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise _cut(tar, f"behind {last!r}, without an end mark" if not mark else f"in the header behind {last!r}")
    shown = redacted(str(tar))
    if any(mark):
        raise problem(f"{shown}: damaged: what follows {last!r} is not the header of a member", "restore the tar")
    rest = file.seek(0, 2) - end
    file.seek(end)
    if rest > _MAX_PADDING or any(any(file.read(1 << 16)) for _ in range(0, rest, 1 << 16)):
        raise problem(
            f"{shown}: {rest:,} bytes follow the end mark behind {last!r}: several tars in one file?",
            "join tars with tar --concatenate, or keep them apart",
        )


def _cut(tar: Path, where: str) -> CutError:
    error = CutError(f"{redacted(str(tar))}: cut short: it ends {where}")
    error.add_note("fetch it again, or take the samples before: --option cut=keep")
    return error


class _Bounded:
    """A file of which tarfile reads headers, none of them large: a stranger's tar must not fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)
