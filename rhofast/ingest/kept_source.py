"""The file of which this process read a segment last, kept open for the next one.

Opening a file reads its table of contents, which grows with the file: of an hour of video it has megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rhofast.data.codecs.containers import open_source
from rhofast.ingest.probe import JUMPY, SourceInfo


class KeptSource:
    """Keeps one container open, as long as its file is unchanged."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._container: Any = None

    @contextmanager
    def opened(self, path: Path, source: SourceInfo) -> Iterator[Any]:
        """Open a source to jump into it.

        Args:
            path: The source.
            source: What is inside it.

        Yields:
            Its container, at any place. It stays open after the call if there is no error, and no clock that jumps.

        Raises:
            FFmpegError: It cannot be opened.
            OSError: It is not there any more.
        """
        status = path.stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key != self._key:
            self.forget()
        container, self._container = self._container or open_source(path), None
        try:
            yield container
            if source.container not in JUMPY:
                self._key, self._container, container = key, container, None
        finally:
            if container is not None:
                container.close()

    def forget(self) -> None:
        """Close the container, if one is open."""
        if self._container is not None:
            self._container.close()
        self._key, self._container = (), None


kept = KeptSource()  # of this process
