"""Files that are whole or not there, on this machine or in an object store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import unquote, urlsplit

from rhofast.errors import ConfigError, DependencyError


def as_path(text: str) -> Path:
    """A path from what a user typed: of this machine (`file://` too), or a UPath, which behaves like one, for the
    address of an object store (`s3://bucket/folder`). Raises ConfigError for an address that nothing can open,
    DependencyError where a package for it is missing."""
    scheme, mark, _ = text.partition("://")
    if not mark:
        return Path(text)
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    try:
        from upath import UPath
    except ImportError:
        raise DependencyError(f"{text}: universal_pathlib is not installed", hint="pip install 'rhofast[s3]'") from None
    try:
        path = UPath(text)
        _ = path.fs
    except ValueError as error:
        raise ConfigError(f"{text}: {error}", hint="known: file://, s3:// and what else fsspec opens") from None
    except ImportError as error:
        raise DependencyError(f"{text}: {error}") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Whether a path is of this machine."""
    return isinstance(path, Path)


def check_writable(path: Path) -> None:
    """See that a file can be written there, before anything is computed. Raises ConfigError."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder, not a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: nothing can be written in {path.parent}")


def publish(aside: Path, target: Path) -> None:
    """Move a finished local file to its name, there or in an object store, whole or not at all. Raises OSError."""
    if is_local(target):
        flush(aside)
        aside.replace(target)
    else:
        remote = cast(Any, target)
        remote.fs.put_file(str(aside), remote.path)
        aside.unlink()


def fetch(source: Path, aside: Path) -> Path:
    """A local file with the content of `source`: itself, or a copy at `aside`. Raises OSError."""
    if is_local(source):
        return source
    with source.open("rb") as remote, aside.open("wb") as local:
        shutil.copyfileobj(remote, local, 1 << 22)
    return aside


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file: afterwards it is the old one, or the whole new one, also after a power cut. Raises OSError;
    nothing half-written is left then."""
    with writing_atomically(path) as file:
        file.write(text)


@contextmanager
def writing_atomically(path: Path) -> Iterator[TextIO]:
    """As `write_atomically`, for a text that comes in pieces; after an exception the file is the old one."""
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / "text"
            with aside.open("w", encoding="utf-8") as file:
                yield file
            publish(aside, path)
        return
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        yield file
    flush(path.parent)


@contextmanager
def replacing(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """A hidden file beside a local `path`, to be written as a whole: afterwards it takes the place of `path`, after an
    exception it is gone. suffix: at the end of its name, for writers that go by it. Raises OSError."""
    aside = path.with_name(f".{path.name}.tmp{suffix}")
    try:
        yield aside
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
