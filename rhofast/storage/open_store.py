"""Choose the library that opens a store.

    open_store_folder("s3://bucket/set") --> a folder of obstore: s3, gs, az, http and https
                                         --> a folder of fsspec: every other kind of store (hf, memory, ...)

obstore is written in Rust, and a request costs less CPU time than one of fsspec. Its threads do not survive a fork, so
a process that was forked from one that used it takes fsspec instead.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import urlsplit

from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.object_store import ObjectFolder, serves
from rhofast.storage.store import StoreFolder

_OPEN_FOLDERS = 64
# Names that mean the same to every library: no signs that one of them encodes or forbids.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._ -]*/)*[A-Za-z0-9_-][A-Za-z0-9._ -]*")


def open_store_folder(url: str, timeout_s: float) -> StoreFolder:
    """Open a folder of a store; nothing is connected yet, but for stores of fsspec that connect at once.

    Args:
        url: Its checked address; see `check_address`.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.

    Raises:
        ConfigError: The address is of an unknown kind, or the configuration of the store is malformed.
        DependencyError: A package for this kind of store is not installed.
        RequestError: The store connects at once, and cannot.
    """
    return ObjectFolder(url, timeout_s) if serves(url) else FsspecFolder(url, timeout_s)


def open_store_file(address: str, timeout_s: float) -> tuple[StoreFolder, str]:
    """Return the folder and the name with which one file is read; files of one bucket or host share connections.

    Args:
        address: Its checked address, which may be signed.
        timeout_s: As for `open_store_folder`, which has the errors, too.
    """
    parts = urlsplit(address)
    name = parts.path.removeprefix("/")
    if parts.query or parts.fragment or not parts.netloc or not _PLAIN.fullmatch(name):
        is_web = parts.scheme in ("http", "https")
        return (open_store_folder if is_web else FsspecFolder)(address, timeout_s), ""
    return _shared_folder(f"{parts.scheme}://{parts.netloc}", timeout_s, os.getpid()), name


@lru_cache(maxsize=_OPEN_FOLDERS)
def _shared_folder(url: str, timeout_s: float, process: int) -> StoreFolder:
    """Open a folder once per process."""
    return open_store_folder(url, timeout_s)
