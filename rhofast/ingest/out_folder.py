"""The folder OUT of ingest: what may lie in it, who works in it, and what a killed run left there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from rhofast.data.format.dataset import open_folder
from rhofast.data.format.dataset_json import DatasetInfo
from rhofast.data.format.index import DATASET_FILE
from rhofast.errors import ConfigError, IngestError, ShardError
from rhofast.ingest.array_task import ArrayTask
from rhofast.storage.address import redacted
from rhofast.storage.files import check_unicode, is_local
from rhofast.storage.store_path import StorePath, check_store

_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # stores that tell that a bucket is not there


def complete_set(out: Path) -> DatasetInfo | None:
    """Return the complete set in `out`; None if there is none.

    Raises:
        IngestError: `out` is a file, holds other things, or holds a set that cannot be read.
    """
    if not (out / DATASET_FILE).exists():
        if out.is_dir() and any(out.iterdir()) and not any(out.glob(".job-*")):
            raise IngestError(
                f"{out}: the folder is not empty and holds no shards", hint="choose a new or empty folder"
            )
        if out.exists() and not out.is_dir():
            raise IngestError(f"{out}: is a file", hint="choose a new or empty folder")
        return None
    try:
        return open_folder(out).info
    except ShardError as error:
        raise IngestError(error.message, hint=error.hint or "choose another folder, or delete this one") from None


def check_out(out: Path) -> None:
    """Check that shards can be written to `out`, as far as this shows before the work.

    Raises:
        ConfigError: `out` is on a web server, or its path is not UTF-8.
        StoreError: The store of `out` cannot be reached.
        IngestError: There is no such bucket.
    """
    if is_local(out):
        check_unicode(out)
        return
    remote, shown = cast(StorePath, out), redacted(str(out))
    if remote.protocol in ("http", "https"):
        raise ConfigError(f"OUT={shown}: shards cannot be written to a web server", hint="write to a folder or s3://")
    if remote.protocol in _BUCKETS and not check_store(remote.root):
        raise IngestError(f"{remote.root}: no such bucket", hint="correct the address, or create the bucket")


def create_folder(out: Path) -> None:
    """Create the folder of a set and the folders above it, but never a bucket: its name may be a typing error.

    Raises:
        OSError: The folder cannot be created.
    """
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(out: Path, *, shared: bool) -> Iterator[None]:
    """Keep two commands from working in one folder.

    Tasks of a job array may share it (shared=True). If the file system has no locks, nothing is checked.
    """
    if not is_local(out):
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IngestError(
                f"{out}: another `rhofast shard` is running in this folder", hint="wait for it, or stop it"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def clear_leftovers(out: Path, task: ArrayTask | None) -> None:
    """Delete the unfinished files of a killed run; with `task`, only those of its jobs."""
    for path in out.glob(".*.tmp"):
        number = path.name.removeprefix(".job-")[:6]
        if task is not None and not (number.isdecimal() and task.includes(int(number))):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
