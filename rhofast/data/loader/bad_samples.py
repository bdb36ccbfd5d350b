"""What happens to the count and the names of bad samples: a file, and a limit. It replaces nothing (loader.py does)."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock

from rhofast.errors import SampleError, TooManyBadSamplesError

GRACE = 1000  # samples after which the share of bad ones is taken at face value


class BadSampleLog:
    """Counts bad samples, names them in a file, and stops the run when they are too many. Thread-safe."""

    def __init__(self, log: Path | None, limit: float | None) -> None:
        self.count = 0
        self._log, self._limit = log, limit
        self._lock = Lock()

    def add(self, error: SampleError, sample: int, at: dict[str, int], seen: int) -> None:
        """Raises TooManyBadSamplesError if there is a limit and this one passes it."""
        with self._lock:
            self.count += 1
            if self._log is not None:
                line = {"sample": sample, "shard": error.shard, "key": error.key, "offset": error.offset}
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**at, **line, "reason": error.reason}) + "\n")
            if self._limit is not None and self.count > self._limit * max(seen, GRACE):
                raise TooManyBadSamplesError(
                    f"{self.count} bad samples among {seen}, the last one: {error.reason}",
                    shard=error.shard,
                    key=error.key,
                    offset=error.offset,
                    hint="check the set with `rhofast verify`, or raise data.max_bad",
                )
