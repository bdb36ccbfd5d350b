r"""Names as a shard set stores them: lossless UTF-8, whatever bytes the names of the source are.

File systems and lists hold names that are not UTF-8, such as the Latin-1 `caf\xe9`. JSON, Arrow and Parquet hold UTF-8
alone. So each byte that is not UTF-8 is stored as `%` and two hexadecimal digits (`caf%E9`), and so is a `%` that two
hexadecimal digits follow (`50%25` as `50%2525`); every other name stays as it is. `original_name` undoes it.
"""

import os
import re
from pathlib import PurePath

from rhofast.data.types import VideoRecord
from rhofast.storage.address import is_address, redacted

_ESCAPE = re.compile("[\udc80-\udcff]|%(?=[0-9A-Fa-f]{2})")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")


def stored_name(name: str) -> str:
    """Return a name of a class, a file or a set as it is stored.

    Args:
        name: Any name; bytes that are not UTF-8 are lone surrogates, as in Python's names of files.

    Returns:
        The name in UTF-8; different names have different results.

    Raises:
        ValueError: The name has a surrogate that stands for no byte.
    """
    stored = _ESCAPE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", name)
    stored.encode("utf-8")
    return stored


def original_name(stored: str) -> str:
    """Return the name of which `stored_name` made this one, as `os.fsdecode` gives it."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(stored)))


def stored_path(path: str) -> str:
    """Return the path or the address of a source as it is stored; an address has escapes of its own and stays.

    Raises:
        ValueError: The path has a surrogate that stands for no byte.
    """
    return path if is_address(path) and path.isascii() else stored_name(path)


def shown_source(record: VideoRecord) -> str:
    """Return what a record's video is called in messages: `clip.mp4`, or `archive.tar: clip.mp4` inside a file."""
    path = redacted(str(record.path))
    return path if record.inside is None else f"{path}: {redacted(record.inside.name)}"


def source_name(record: VideoRecord) -> PurePath:
    """Return the name of a record's video alone, without its folder, fit to be shown."""
    return PurePath(PurePath(redacted(str(record.path)) if record.inside is None else record.inside.name).name)
