"""Choose the library that opens a store.

    open_store_folder("s3://bucket/set") --> a folder of obstore: s3, gs, az, http and https
                                         --> a folder of the hub: hf
                                         --> a folder of fsspec: every other kind of store (memory, sftp, ...)

obstore is written in Rust, and a request costs less CPU time than one of fsspec. Its threads do not survive a fork, so
a process that was forked from one that used it takes fsspec instead.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache

from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.hub_store import HubFolder
from rhofast.storage.object_store import ObjectFolder, serves
from rhofast.storage.store import StoreFolder

_OPEN_FOLDERS = 64
# Names of web servers that mean the same to every library: no signs that one of them encodes or forbids.
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
    if url.startswith("hf://"):
        return HubFolder(url, timeout_s)
    return ObjectFolder(url, timeout_s) if serves(url) else FsspecFolder(url, timeout_s)


def open_store_file(address: str, timeout_s: float) -> tuple[StoreFolder, str]:
    """Return the folder and the name with which one file is read; files of one bucket or host share connections.

    Args:
        address: Its checked address, which may be signed.
        timeout_s: As for `open_store_folder`, which has the errors, too.
    """
    scheme, _, rest = address.partition("://")
    host, _, name = rest.partition("/")
    if scheme in ("http", "https"):
        if not _PLAIN.fullmatch(name):
            return open_store_folder(address, timeout_s), ""
    elif not all(part not in ("", ".", "..") and part.isprintable() for part in name.rstrip("/").split("/") if name):
        return FsspecFolder(address, timeout_s), ""  # obstore does not take such a name
    return _shared_folder(f"{scheme}://{host}", timeout_s, os.getpid()), name.rstrip("/")


@lru_cache(maxsize=_OPEN_FOLDERS)
def _shared_folder(url: str, timeout_s: float, process: int) -> StoreFolder:
    """Open a folder once per process."""
    return open_store_folder(url, timeout_s)
