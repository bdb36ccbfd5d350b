"""A source that is kept open while its segments are stored: read, digested and probed once, not once per segment.

A process keeps one source: the last one. Records of one file that follow one another share it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from rhofast.data.types import VideoRecord
from rhofast.ingest.cut import Look
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.packets import Packets, count_pictures, read_packets
from rhofast.ingest.probe import RefusedError, SourceInfo, probe
from rhofast.ingest.source import Deadline, Source, call_reader, check_unchanged, read_source, source_state
from rhofast.ingest.transcode import first_look


class OpenedSource:
    """What is known of a source; found out when it is asked for.

    Attributes:
        source: Its file on this machine, and its digest.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """Its file on this machine."""
        return self.source.path

    def info(self, deadline: Deadline) -> SourceInfo:
        """Return what is inside it; raises RefusedError or UnreadableError, as `probe` does."""
        if "info" not in self._found:
            try:
                self._found["info"] = call_reader(probe, self.path, deadline=deadline)
            except RefusedError as refusal:
                self.confirm(refusal, deadline)
                self._found["info"] = refusal
        found = self._found["info"]
        if isinstance(found, RefusedError):
            raise found
        return found  # type: ignore[no-any-return]

    def confirm(self, refusal: RefusedError, deadline: Deadline) -> None:
        """Return if a refusal follows from the bytes of the source; see `check_unchanged`."""
        if refusal is not self._found.get("info"):
            check_unchanged(self.source, refusal, deadline)

    def packets(self, deadline: Deadline) -> Packets | None:
        """Return its packets; None if they do not tell which of them becomes which picture."""
        if "packets" not in self._found:
            self._found["packets"] = call_reader(read_packets, self.path, self.info(deadline), deadline=deadline)
        return self._found["packets"]  # type: ignore[no-any-return]

    def look(self, deadline: Deadline) -> Look:
        """Return what its first picture looks like to ffmpeg."""
        if "look" not in self._found:
            self._found["look"] = first_look(self.path, self.info(deadline), timeout=deadline.left())
        return self._found["look"]  # type: ignore[no-any-return]

    def counted(self, deadline: Deadline) -> SourceInfo:
        """Return what is inside it, for decoding it from its beginning: whether its pictures are as many as promised.

        At a constant rate, pictures are counted. This needs the number of all, which is known only after decoding.
        """
        info = self.info(deadline)
        if info.constant and "pictures" not in self._found:
            self._found["pictures"] = call_reader(count_pictures, self.path, info, deadline=deadline)
        return replace(info, constant=info.constant and is_counted(self._found["pictures"], info.seconds, info.fps))


def is_counted(count: int, seconds: float, rate: Fraction) -> bool:
    """Return whether about as many frames were made as there are packets, one for each interval."""
    expected = seconds * float(rate)
    return abs(count - expected) <= 0.05 * expected + 2


class LastSource:
    """Keeps the source that was opened last."""

    def __init__(self) -> None:
        self._key: tuple[Path, Any, Any] | None = None
        self._opened: OpenedSource | None = None
        self._place = Path()

    def open(self, record: VideoRecord, state: Any, folder: Path, deadline: Deadline) -> OpenedSource:
        """Return the source of a record, which is read unless it is the last one.

        Args:
            record: The record.
            state: What `source_state` returned for its file; None: the source is always read.
            folder: A folder of this machine for a copy of a source that is no file of it.
            deadline: Time limit of the video.

        Raises:
            RefusedError: The source is missing, empty, not a file, or took too long.
            UnreadableError: It cannot be read, or the file that it lies in is not the one that `state` is of.
            OSError: `folder` cannot be written.
        """
        key = (record.path, record.inside, state)
        if self._opened is None or state is None or self._key != key or not self._opened.path.exists():
            self.forget()
            self._place = Path(tempfile.mkdtemp(dir=folder))
            source = read_source(record.path, self._place, deadline, record.inside)
            # What lies inside a file is read by several requests, which may have met two versions of it.
            if record.inside is not None and state is not None and source_state(record.path) != state:
                raise UnreadableError("the file that it lies in was replaced since this job began", passing=False)
            self._opened, self._key = OpenedSource(source), key
        return self._opened

    @property
    def num_bytes(self) -> int:
        """Size of the source in bytes; 0 if none is open."""
        try:
            return 0 if self._opened is None else self._opened.path.stat().st_size
        except OSError:
            return 0

    def forget(self) -> None:
        """Let the next source be read, whichever it is; delete the copy of the last one."""
        if self._place.name:
            shutil.rmtree(self._place, ignore_errors=True)
        self._opened, self._key, self._place = None, None, Path()
