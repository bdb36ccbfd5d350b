"""A run of records in few bytes, for the jobs that wait and the processes that they are sent to."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice

from rhofast.data.types import VideoRecord

_BLOCK = 1_000  # records that are packed together; neighbors have much in common


class RecordRun:
    """Records of a job, in their order: some tens of bytes each, where they are segments of a few files."""

    def __init__(self, records: Iterable[VideoRecord]) -> None:
        """Take the records, one after another."""
        self._blocks, self._count, every = list[bytes](), 0, iter(records)
        while block := list(islice(every, _BLOCK)):
            self._blocks.append(zlib.compress(pickle.dumps(block), level=1))
            self._count += len(block)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[VideoRecord]:
        for block in self._blocks:
            yield from pickle.loads(zlib.decompress(block))

    def __contains__(self, record: object) -> bool:
        return any(each == record for each in self)
