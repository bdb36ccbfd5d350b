"""Positional reads of just the bytes that a plan needs, checked before any decoder sees them.

One `pread` for each run of adjacent units, nothing read twice, no seek position shared between threads. What comes back
has the checksum that was recorded when the shard was made and its pictures were decoded once; that is what protects the
decoder, which may crash on bytes that do not parse. What it is not: it decides nothing about what to do with a bad
sample (loader.py) and decodes nothing (pipeline.py).
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs import build_codec
from rhofast.data.index import IndexRow, ShardSet
from rhofast.data.types import Sample, Units
from rhofast.errors import SampleError, ShardError

_OPEN_FILES = 256


class _OpenFile:
    """A descriptor that closes when its last user lets go, so that one thread cannot close it under another's read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Reader:
    """Reads samples of one shard set. Thread-safe; holds at most 256 shards open."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._codec = build_codec(shards.info.codec)
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def close(self) -> None:
        """Let go of every open shard. The reader stays usable."""
        with self._lock:
            self._files.clear()

    def locate(self, sample: int) -> IndexRow:
        """What the index knows of a sample. Raises SampleError where its shard's index cannot be used."""
        shard, row = self.shards.locate(sample)
        try:
            return self.shards.index(shard).row(row)
        except ShardError as error:
            name = self.shards.info.shards[shard].index
            raise SampleError(error.message, shard=name, key=f"row {row}", offset=0, hint=error.hint) from None

    def read(self, sample: int, frames: npt.NDArray[np.int32]) -> Sample:
        """The pictures of the given frames (any shape, repeats allowed). Raises SampleError, with the address of the
        first bad byte range, if the shard is missing or short, a unit's checksum is wrong, or a read fails."""
        row = self.locate(sample)
        wanted = self._codec.units_for(row.units, np.unique(frames))
        shard, _ = self.shards.locate(sample)
        name = self.shards.info.shards[shard].tar
        pictures: dict[int, npt.NDArray[np.uint8]] = {}
        bytes_read = 0
        for first, last in _adjacent(row.units, wanted):
            start = row.offset + int(row.units.offset[first])
            end = row.offset + int(row.units.offset[last]) + int(row.units.size[last])
            content = self._pread(shard, start, end - start, row.key)
            bytes_read += end - start
            for unit in range(first, last + 1):
                begin = row.offset + int(row.units.offset[unit]) - start
                picture = content[begin : begin + int(row.units.size[unit])]
                if zlib.crc32(picture) != int(row.units.crc[unit]):
                    raise SampleError(
                        f"frame {int(row.units.frame[unit])}: checksum mismatch",
                        shard=name,
                        key=row.key,
                        offset=start + begin,
                    )
                pictures[int(row.units.frame[unit])] = np.frombuffer(picture, dtype=np.uint8)
        return Sample(sample=sample, key=row.key, label=row.label, pictures=pictures, bytes_read=bytes_read)

    def _pread(self, shard: int, offset: int, size: int, key: str) -> memoryview:
        name = self.shards.info.shards[shard].tar
        try:
            file = self._file(shard)  # held until the read is over
            content = os.pread(file.descriptor, size, offset)
            while 0 < len(content) < size:  # a signal or a network file system may cut a read short
                rest = os.pread(file.descriptor, size - len(content), offset + len(content))
                if not rest:
                    break
                content += rest
        except OSError as error:
            raise SampleError(f"{error.strerror or error}", shard=name, key=key, offset=offset) from None
        if len(content) < size:
            raise SampleError("the shard ends too early", shard=name, key=key, offset=offset + len(content))
        return memoryview(content)

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = _OpenFile(self.shards.root / self.shards.info.shards[shard].tar)
                while len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard]


def _adjacent(units: Units, wanted: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs (first, last) of wanted units whose bytes lie side by side; `wanted` ascends."""
    if not len(wanted):
        return []
    ends = units.offset[wanted] + units.size[wanted]
    breaks = np.flatnonzero((np.diff(wanted) != 1) | (units.offset[wanted[1:]] != ends[:-1]))
    firsts = wanted[np.concatenate([[0], breaks + 1])]
    lasts = wanted[np.concatenate([breaks, [len(wanted) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
