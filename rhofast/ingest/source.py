"""Read a source from its first byte to its last, before any library looks at it.

    record --read, with retries--> local file and digest --> probe, transcode --a refusal?--> read again: same digest?

So an error of the disk, the network or the process (EIO, ESTALE, EMFILE, ...) is never taken for damage. It is retried,
then the source is refused as `unreadable`. If that happens to more than a few sources in succession, it is no matter of
the sources, and the command stops.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rhofast.data.inside import Inside
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.inside_source import copy_inside
from rhofast.ingest.isolation import IsolatedProcess
from rhofast.ingest.kept_source import kept
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.probe import UNFIT, Refusal, RefusedError
from rhofast.storage.address import redacted
from rhofast.storage.fetch import FetchError, fetch, remote_state
from rhofast.storage.files import is_local
from rhofast.storage.network import RetryPolicy

ResultT = TypeVar("ResultT")

_PAUSES = (0.5, 1.0)  # seconds between attempts at reading a source
_MOST_IN_SUCCESSION = {"file": 3, "address": 10}  # addresses of a list go bad one by one, files of a disk together
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FINAL = (errno.EACCES, errno.EPERM)
_OUTAGE_S = 120.0  # for which a store is waited for, but at most half of the time that a video has
_STATE_POLICY = RetryPolicy(attempts=3, timeout_s=15.0)
_STATE_S = 60.0  # seconds that a store has to describe a source
_CHUNK = 1 << 20
# Refusals that follow from the bytes of the source, and so would also follow from bytes that were misread.
_BY_CONTENT = frozenset({Refusal.NOT_A_VIDEO, Refusal.NO_VIDEO_STREAM, Refusal.DAMAGED, Refusal.NO_FRAMES, *UNFIT})

isolated = IsolatedProcess()  # shared by everything in this process that opens sources


class Deadline:
    """The time limit of one video, over all that is done with it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; raises RefusedError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise RefusedError(Refusal.TIMEOUT, f"after {self._seconds:g} s")
        return left


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was read once as a whole.

    Attributes:
        path: Its file on this machine.
        digest: BLAKE2b digest of its bytes, 16 bytes.
    """

    path: Path
    digest: bytes


def read_source(path: Path, scratch: Path, deadline: Deadline, inside: Inside | None = None) -> Source:
    """Read a source as a whole; a remote one, or one inside a file, is copied to `scratch`.

    Args:
        path: The source, on this machine or behind an address, or the file that it lies in.
        scratch: A folder of this machine.
        deadline: Time limit of the video.
        inside: Where in the file the source lies; None: it is the file. Nothing else of the file is read, and the
            digest is that of the video's bytes.

    Raises:
        RefusedError: The source is missing, empty, not a file, or took too long.
        UnreadableError: It cannot be read.
        OSError: `scratch` cannot be written.
    """
    local = path
    if inside is not None:
        local = scratch / "source"
        place = path if is_local(path) else str(path)
        isolated.call(_copy_inside, place, inside, local, _patience(deadline), seconds=deadline.left())
    elif not is_local(path):
        local = scratch / "source"
        isolated.call(_fetch, str(path), local, _patience(deadline), seconds=deadline.left())
    return Source(local, call_reader(_read_digest, local, deadline=deadline))


def source_state(path: Path) -> list[Any] | None:
    """Return the size of a source and, where the storage knows it, its version or modification time.

    None: the source is missing, or the storage says neither.
    """
    if not is_local(path):
        try:
            return isolated.call(remote_state, str(path), _STATE_POLICY, seconds=_STATE_S)
        except RefusedError:
            return None
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def source_states(records: Iterable[VideoRecord]) -> Iterator[list[Any] | None]:
    """Yield the state of each record's source; a file of which several records in succession are is asked for once."""
    path, state = None, None
    for record in records:
        if record.path != path:
            path, state = record.path, source_state(record.path)
        yield state


def call_reader(function: Callable[..., ResultT], *arguments: Any, deadline: Deadline) -> ResultT:
    """Call a function that reads a source, in the isolated process.

    Args:
        function: As for `IsolatedProcess.call`.
        *arguments: As for `IsolatedProcess.call`.
        deadline: Time limit of the video.

    Raises:
        Exception: Whatever `IsolatedProcess.call` raises; an OSError becomes an UnreadableError, since nothing is
            written there.
    """
    try:
        return isolated.call(function, *arguments, seconds=deadline.left())
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def check_unchanged(source: Source, refusal: RefusedError, deadline: Deadline) -> None:
    """Return if a refusal follows from the bytes of a source.

    Args:
        source: The source, as it was read before.
        refusal: What a library that has read it since says.
        deadline: Time limit of the video.

    Raises:
        UnreadableError: The source cannot be read any more, or reads differently now.
        RefusedError: The time is over.
    """
    if refusal.reason not in _BY_CONTENT:
        return
    try:
        digest = call_reader(_read_digest, source.path, deadline=deadline)
    except RefusedError as error:
        if error.reason == Refusal.TIMEOUT:
            raise
        raise UnreadableError(f"it was there, and now is {error}") from None
    if digest != source.digest:
        raise UnreadableError("it reads differently each time, or is being written")


def retried(attempt: Callable[[], ResultT], deadline: Deadline) -> ResultT:
    """Call `attempt` until it can read what it reads.

    Args:
        attempt: Does all the work on one source, or a part of it.
        deadline: Time limit of the video; pauses end with it.

    Returns:
        What `attempt` returned.

    Raises:
        RefusedError: Whatever `attempt` raised, or `unreadable` after the last attempt.
    """
    for pause in (*_PAUSES, None):
        try:
            return attempt()
        except UnreadableError as error:
            if pause is None or not error.passing:
                raise RefusedError(Refusal.UNREADABLE, error.words) from None
        time.sleep(min(pause, deadline.left()))
    raise AssertionError("the last attempt returns or raises")


class ReadingTrouble:
    """Counts the sources that could not be read in succession, in one process."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, path: Path, refusal: RefusedError | None) -> None:
        """Count one source.

        Args:
            path: The source.
            refusal: Why it was refused; None if it was not.

        Raises:
            IngestError: Too many sources in succession could not be read.
        """
        if refusal is None or refusal.reason != Refusal.UNREADABLE:
            self._count = 0
            return
        self._count += 1
        if self._count > _MOST_IN_SUCCESSION["file" if is_local(path) else "address"]:
            count, self._count = self._count, 0
            raise IngestError(
                f"{redacted(str(path))}: {refusal.detail}; {count} sources in succession could not be read",
                hint="finished shards are kept: check the disk or the server, and run the same command again",
            )


def _patience(deadline: Deadline) -> RetryPolicy:
    """Return how a source is requested: whoever gives up before the deadline may try again later."""
    return RetryPolicy(attempts=4, outage_s=min(_OUTAGE_S, deadline.left() / 2), unknown_s=_OUTAGE_S)


def _copy_inside(path: Path | str, inside: Inside, copy: Path, policy: RetryPolicy) -> None:
    """Copy a source out of the file that it lies in; raises what `copy_inside` raises."""
    kept.forget()  # a deleted copy takes space as long as it is open
    copy_inside(path, inside, copy, policy)


def _fetch(address: str, copy: Path, policy: RetryPolicy) -> None:
    """Copy a remote source to this machine; raises RefusedError, UnreadableError, or OSError for the copy itself."""
    kept.forget()
    try:
        fetch(address, copy, policy)
    except FetchError as error:
        if error.missing:
            raise RefusedError(Refusal.MISSING, str(error)) from None
        raise UnreadableError(str(error), passing=False) from None


def _read_digest(path: Path) -> bytes:
    """Read a file to its end and return its digest; raises RefusedError or UnreadableError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RefusedError(Refusal.NOT_A_VIDEO, "not a regular file")
            digest, size = hashlib.blake2b(digest_size=16), 0
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
                size += len(chunk)
        finally:
            os.close(descriptor)
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in _MISSING:
            raise RefusedError(Refusal.MISSING, words) from None
        raise UnreadableError(words, error.errno not in _FINAL) from None
    if not size:
        raise RefusedError(Refusal.EMPTY)
    return digest.digest()
