"""Paths behind addresses, for who lists videos and writes shards: what a Path offers, of a store.

    as_path("s3://bucket/videos") --> StorePath --open_store_file--> StoreFolder, name

Every request is made again as long as that may help (fetch.py). What fails then is an OSError that names the address.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from rhofast.errors import MachineError, StoreError
from rhofast.storage.address import check_address, is_address, is_remote, redacted
from rhofast.storage.fetch import FetchError, with_retries
from rhofast.storage.network import RetryPolicy
from rhofast.storage.request_error import Kind
from rhofast.storage.span_file import open_anywhere
from rhofast.storage.store import Entry

_READING = RetryPolicy(attempts=4, outage_s=120.0)
_CHECKING = RetryPolicy(attempts=3, timeout_s=15.0)
_WRITING = RetryPolicy(attempts=8, outage_s=600.0)  # of what was made with much work
_READ_AHEAD = 4 << 20  # bytes of a list that are requested at once


def as_path(text: str, option: str = "address", *, signed: bool = False) -> Path:
    """Return the path that a user named.

    Args:
        text: A path, a `file://` URL, or the address of something in a store (`s3://bucket/folder`).
        option: What errors name: the option, or the file and line, that holds the text.
        signed: Whether a web address may have a query; see `check_address`.

    Returns:
        A Path for a file of this machine, or a StorePath, which behaves like one.

    Raises:
        ConfigError: The address is malformed, holds a secret, or is of an unknown kind; see `check_address`.
    """
    text = check_address(text, option, signed=signed)
    if not is_address(text):
        return Path(text)
    if not is_remote(text):
        return Path(unquote(urlsplit(text).path))
    return cast(Path, StorePath(text))


@total_ordering
class StorePath:
    """A path behind an address. It has no state but its text, and so travels to other processes.

    Args:
        address: A checked address; see `check_address`.
        entry: What the store said of it, if it was just asked.
    """

    __slots__ = ("_address", "_entry", "_inside", "_root")

    def __init__(self, address: str, entry: Entry | None = None) -> None:
        scheme, _, rest = address.partition("://")
        if scheme in ("http", "https"):  # a query belongs to a file, not to what lies beside it
            rest = rest.partition("#")[0].partition("?")[0]
        host, _, inside = rest.partition("/")
        self._address, self._entry = address, entry
        self._root, self._inside = f"{scheme}://{host}", inside.strip("/") if inside != "/" else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._address,)

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self._address)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and self._address.rstrip("/") == other._address.rstrip("/")

    def __lt__(self, other: StorePath) -> bool:
        return (self._root, self._pure.parts) < (other._root, other._pure.parts)

    def __hash__(self) -> int:
        return hash(self._address.rstrip("/"))

    # ---- names ----

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self._inside)

    def _at(self, inside: str, entry: Entry | None = None) -> StorePath:
        return StorePath(f"{self._root}/{inside}" if inside else self._root, entry)

    @property
    def protocol(self) -> str:
        """The scheme of the address."""
        return self._root.partition("://")[0]

    @property
    def root(self) -> StorePath:
        """The bucket, or the host."""
        return StorePath(self._root)

    @property
    def name(self) -> str:
        """The last name; empty for a bucket or a host."""
        return self._inside.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last name, with its dot."""
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The names."""
        return (self._root, *self._pure.parts)

    @property
    def parent(self) -> StorePath:
        """The folder that it lies in."""
        return self._at(self._inside.rpartition("/")[0])

    def __truediv__(self, name: str | os.PathLike[str]) -> StorePath:
        return self._at("/".join(filter(None, (self._inside, os.fspath(name).strip("/")))))

    def joinpath(self, *names: str) -> StorePath:
        """Return the path of something in this folder."""
        path = self
        for name in names:
            path = path / name
        return path

    def with_name(self, name: str) -> StorePath:
        """Return the path of something else in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> StorePath:
        """Return the path of a file with another suffix."""
        return self.parent / f"{self.stem}{suffix}"

    def relative_to(self, folder: StorePath) -> PurePosixPath:
        """Return the names from a folder on; raise ValueError if this does not lie in it."""
        if self._root != folder._root:
            raise ValueError(f"{redacted(str(self))} does not lie in {redacted(str(folder))}")
        return self._pure.relative_to(folder._pure)

    def is_relative_to(self, folder: object) -> bool:
        """Return whether this lies in a folder, or is it."""
        return isinstance(folder, StorePath) and self._root == folder._root and self._pure.is_relative_to(folder._pure)

    def as_posix(self) -> str:
        """Return the address."""
        return self._address

    def resolve(self) -> StorePath:
        """Return this path: there are no links."""
        return self

    absolute = resolve

    # ---- what there is ----

    def entry(self, policy: RetryPolicy = _READING) -> Entry | None:
        """Return what there is under this address; None if there is nothing.

        Raises:
            OSError: The store does not say.
        """
        if self._entry is not None:
            return self._entry
        try:
            return with_retries(str(self), policy, lambda folder, name: folder.find(name))
        except FetchError as error:
            if error.missing:
                return None
            raise self._failure(error) from None

    def exists(self) -> bool:
        """Return whether there is anything under this address."""
        return self.entry() is not None

    def is_file(self) -> bool:
        """Return whether it is a file."""
        entry = self.entry()
        return entry is not None and not entry.is_folder

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        entry = self.entry()
        return entry is not None and entry.is_folder

    def stat(self) -> os.stat_result:
        """Return the size of a file; nothing else of the result is known.

        Raises:
            OSError: There is none, or the store does not say its size.
        """
        entry = self.entry()
        if entry is None or entry.is_folder or entry.size is None:
            number = errno.ENOENT if entry is None else errno.EISDIR if entry.is_folder else errno.EREMOTEIO
            raise OSError(number, os.strerror(number), redacted(str(self)))
        return os.stat_result((0, 0, 0, 0, 0, 0, entry.size, 0, 0, 0))

    def iterdir(self) -> Iterator[Path]:
        """Yield what lies in this folder, sorted by name; one request for a thousand of them, and none for each.

        Raises:
            OSError: It cannot be listed.
        """
        try:
            entries = with_retries(str(self), _READING, lambda folder, name: folder.entries(name))
        except FetchError as error:
            raise self._failure(error) from None
        within = f"{self._inside}/" if self._inside else ""
        for entry in entries:
            yield cast(Path, self._at(f"{within}{entry.name}", entry))

    def glob(self, pattern: str) -> Iterator[Path]:
        """Yield what matches a pattern of names, in which `**` stands for any folders, sorted."""
        first, _, rest = pattern.partition("/")
        if first == "**":
            if rest:
                yield from self.glob(rest)
            for found in self.iterdir():
                if found.is_dir():
                    yield from found.glob(pattern)
                elif not rest:
                    yield found
        elif not any(mark in first for mark in "*?["):
            if rest:
                yield from (self / first).glob(rest)
            elif (self / first).exists():
                yield cast(Path, self / first)
        else:
            for found in self.iterdir():
                if fnmatchcase(found.name, first):
                    if not rest:
                        yield found
                    elif found.is_dir():
                        yield from found.glob(rest)

    def rglob(self, pattern: str) -> Iterator[Path]:
        """Yield what matches a pattern of names, at any depth."""
        return self.glob(f"**/{pattern}")

    # ---- contents ----

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file for reading; arguments are those of `Path.open`.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"mode {mode!r}: files of a store are written as a whole")
        file = open_anywhere(cast(Path, self), read_ahead=_READ_AHEAD)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """Return the content of a file."""
        with self.open("rb") as file:
            return cast(bytes, file.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content of a text file."""
        with self.open("r", encoding=encoding, errors=errors) as file:
            return cast(str, file.read())

    def upload(self, file: Path) -> None:
        """Write a file of this machine to this address, as a whole or not at all.

        Raises:
            OSError: The store refuses it.
            MachineError: The store does not answer for ten minutes.
        """
        self._write(lambda folder, name: folder.put(name, file))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete a file; one that is not there is no error."""
        self._write(lambda folder, name: folder.delete(name))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Create the folder where a store has folders without files; never a bucket."""
        self._write(lambda folder, name: folder.create(name))

    def _write(self, use: Any) -> None:
        try:
            with_retries(str(self), _WRITING, use)
        except FetchError as error:
            if error.kind in (Kind.AWAY, Kind.BUSY, Kind.PASSING):
                raise MachineError(
                    f"{redacted(str(self))}: {error}", hint="what is finished is kept: run the same command again"
                ) from None
            raise self._failure(error) from None

    def _failure(self, error: FetchError) -> OSError:
        return OSError(errno.ENOENT if error.missing else errno.EREMOTEIO, str(error), redacted(str(self)))


def check_store(path: StorePath) -> bool:
    """Ask a store for a path, before anything else is asked of it.

    Returns:
        Whether there is anything, or the store does not tell who asks.

    Raises:
        StoreError: The store cannot be reached, or does not know who asks.
    """
    try:
        return with_retries(str(path), _CHECKING, lambda folder, name: folder.find(name)) is not None
    except FetchError as error:
        if error.missing:
            return False
        if error.kind is Kind.DENIED and str(error).startswith("403"):
            return True  # it may be written or read all the same
        raise StoreError(
            f"{redacted(str(path))}: {error}",
            hint="check the address, the endpoint and the credentials in the environment",
        ) from None
