"""Read exactly the bytes that a plan needs, and check them before any decoder sees them.

There is one `pread` for each run of adjacent units. Nothing is read twice, and threads share no file position. Each
unit must have the checksum that was recorded when the shard was made and its content was checked, and must begin as the
codec stores it: a picture is a baseline JPEG of the size that the index says. This protects the decoders, which may
crash on bytes that cannot be parsed.

Stored pictures are passed on as they are; decode/ decodes them. A video stream that the device will decode is trimmed
to the groups of pictures that are needed. Any other stream is decoded here, in the calling thread (the decoder releases
the GIL), and each frame of the plan is kept once. A sample that cannot be read raises an error; loader/ decides what
happens then. Where a shard was damaged in a cache, it is downloaded again first.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs import build_codec
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.remote import RemoteShardSet
from rhofast.data.format.sample_json import SampleJson, parse_sample_json
from rhofast.data.types import Sample
from rhofast.data.units import usage
from rhofast.errors import DecodeError, SampleError, ShardError, ShardFormatError
from rhofast.storage.machine_errors import with_patience

_OPEN_FILES = 256
_PATIENCE_S = 30.0

_Unit = tuple[int, int, int, int]  # its number, first byte, size and CRC-32


class _OpenFile:
    """A descriptor that is closed with its last reference, so that no thread closes it while another one reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Reader:
    """Reads samples of one shard set. Thread-safe; at most 256 shards are open at the same time.

    Attributes:
        shards: The shard set.
        codecs: Its storage codecs; a row of the index names that of its sample by its place here.
    """

    def __init__(
        self,
        shards: ShardSet,
        limits: Mapping[str, VideoLimits] | None = None,
        *,
        decode_pictures: bool = False,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Build the codecs of the set.

        Args:
            shards: The shard set.
            limits: What the device's video decoder accepts, by codec. A stream within the limits is left to it, trimmed
                to what a sample needs; any other stream is decoded on the host.
            decode_pictures: Whether stored pictures are decoded on the host, too, in place of being passed on.
            patience_s: Seconds for which a read is tried again while the machine refuses it.
        """
        self.shards = shards
        self._limits = limits or {}
        self._patience_s = patience_s
        self.codecs = tuple(build_codec(settings) for settings in shards.info.codecs)
        self._decode_pictures = decode_pictures
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def close(self) -> None:
        """Close every open shard. The reader can still be used."""
        with self._lock:
            self._files.clear()

    def locate(self, sample: int) -> IndexRow:
        """Return what the index knows of a sample.

        Raises:
            SampleError: The index of its shard cannot be used.
            MachineError: The machine refused to open it for too long, for a reason that is not in the data.
        """
        shard, row = self.shards.locate(sample)
        name = self.shards.info.shards[shard].index
        try:
            where = f"{self.shards.where}/{name}"
            index = with_patience(lambda: self.shards.index(shard), where, patience_s=self._patience_s)
            return index.row(row)
        except ShardError as error:
            raise SampleError(error.message, shard=name, key=f"row {row}", offset=0, hint=error.hint) from None

    def read(self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow | None = None) -> Sample:
        """Read the given frames of a sample.

        Args:
            sample: Number of the sample in the set.
            frames: Frame numbers, i32 of any shape; repeats are allowed.
            row: The sample's row of the index, if it is known already (see `locate`).

        Returns:
            The distinct frames, as stored pictures, as decoded pictures, or as a stream for the device.

        Raises:
            SampleError: The shard is missing or short, a read failed, or a checksum is wrong. The error carries the
                address of the first bad byte range.
            DecodeError: A stream does not decode to its frames. The error carries the address of the member.
            MachineError: The machine refused the read for too long, for a reason that is not in the data.
        """
        if row is None:
            row = self.locate(sample)
        distinct, codec = np.unique(frames), self.codecs[row.codec]
        rows = codec.units_for(row.units, row.num_frames, distinct)
        shard, _ = self.shards.locate(sample)
        pieces = self._read_units(shard, row, rows)
        stream, pictures = None, dict[int, npt.NDArray[np.uint8]]()
        if codec.pictures and not self._decode_pictures:
            found = (np.frombuffer(piece, dtype=np.uint8) for piece in pieces)
            pictures = dict(zip(distinct.tolist(), found, strict=True))
        else:
            part = row.part(distinct, rows, pieces)
            try:
                stream = codec.trim(
                    part, [name for name, limits in self._limits.items() if limits.fit(row.width, row.height)]
                )
                if stream is None:
                    pictures = codec.decode(part)
            except ValueError as error:
                name = self.shards.info.shards[shard].tar
                raise DecodeError(str(error), shard=name, key=row.key, offset=row.offset) from None
        bytes_read = sum(piece.nbytes for piece in pieces)
        used, decoded = float(bytes_read), len(distinct)
        if not codec.pictures and len(distinct):
            used, decoded = usage(row.units, row.num_frames, distinct)
        return Sample(
            sample=sample,
            key=row.key,
            label=row.label,
            pictures=pictures,
            bytes_read=bytes_read,
            stream=stream,
            bytes_used=used,
            frames_decoded=decoded,
        )

    def read_json(self, sample: int, row: IndexRow | None = None) -> SampleJson:
        """Read the KEY.json of a sample, which has the fields of the user's own.

        Args:
            sample: Number of the sample in the set.
            row: The sample's row of the index, if it is known already.

        Raises:
            SampleError: The shard is missing or short, a read failed, the checksum is wrong, or the content is not what
                the format says. The error carries the address of KEY.json.
            MachineError: The machine refused the read for too long, for a reason that is not in the data.
        """
        if row is None:
            row = self.locate(sample)
        shard, _ = self.shards.locate(sample)
        try:
            return self._read_json_checked(shard, row)
        except SampleError:
            if not self._fetched_again(shard):
                raise
        return self._read_json_checked(shard, row)

    def _read_json_checked(self, shard: int, row: IndexRow) -> SampleJson:
        name, offset = self.shards.info.shards[shard].tar, row.json_offset
        (content,) = self._pread(shard, [(offset, row.json_size)], row.key)
        if crc32(content) != row.json_crc:
            raise SampleError("KEY.json: checksum mismatch", shard=name, key=row.key, offset=offset)
        try:
            return parse_sample_json(bytes(content))
        except ShardFormatError as error:
            raise SampleError(error.message, shard=name, key=row.key, offset=offset) from None

    def _fetched_again(self, shard: int) -> bool:
        """Return whether a copy of a remote shard was damaged, and was fetched again."""
        return isinstance(self.shards, RemoteShardSet) and self.shards.recheck(self.shards.info.shards[shard].tar)

    def _read_units(self, shard: int, row: IndexRow, rows: npt.NDArray[np.int64]) -> list[memoryview]:
        """Read units, adjacent ones at once, and check each of them.

        A damaged copy of a remote shard is read once more, after it was fetched again.
        """
        # As lists, once per sample: numbers of numpy are slow one by one.
        columns = (row.units.offset, row.units.size, row.units.crc)
        units = list(zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True))
        try:
            return self._read_checked(shard, row, units)
        except SampleError:
            if not self._fetched_again(shard):
                raise
        return self._read_checked(shard, row, units)

    def _read_checked(self, shard: int, row: IndexRow, units: list[_Unit]) -> list[memoryview]:
        runs, codec = _adjacent(units), self.codecs[row.codec]
        spans = [(row.offset + run[0][1], run[-1][1] + run[-1][2] - run[0][1]) for run in runs]
        pieces = []
        for run, content in zip(runs, self._pread(shard, spans, row.key), strict=True):
            start = run[0][1]
            for unit, begin, size, crc in run:
                piece = content[begin - start : begin - start + size]
                fault: str | None = "checksum mismatch"
                if crc32(piece) == crc:
                    fault = codec.find_fault(unit, piece, row.width, row.height)
                if fault is not None:
                    what = f"frame {int(row.units.frame[unit])}" if codec.pictures else f"unit {unit}"
                    raise SampleError(
                        f"{what}: {fault}",
                        shard=self.shards.info.shards[shard].tar,
                        key=row.key,
                        offset=row.offset + begin,
                    )
                pieces.append(piece)
        return pieces

    def _pread(self, shard: int, spans: list[tuple[int, int]], key: str) -> list[memoryview]:
        """Read spans of a shard, each an offset and a size in bytes."""
        name = self.shards.info.shards[shard].tar
        contents: list[memoryview] = []

        def read() -> None:
            """Read the spans that are still missing."""
            file = self._file(shard)  # keeps the descriptor open until the reads are over
            try:
                for offset, size in spans[len(contents) :]:
                    contents.append(memoryview(_read_span(file.descriptor, offset, size)))
            except OSError:
                with self._lock:
                    self._files.pop(shard, None)  # a descriptor of a mount that was lost stays bad
                raise

        try:
            with_patience(read, f"{self.shards.where}/{name}", patience_s=self._patience_s)
        except OSError as error:
            offset, _ = spans[len(contents)]
            raise SampleError(f"{error.strerror or error}", shard=name, key=key, offset=offset) from None
        except ShardError as error:
            offset, _ = spans[len(contents)]
            raise SampleError(error.message, shard=name, key=key, offset=offset, hint=error.hint) from None
        for (offset, size), content in zip(spans, contents, strict=True):
            if len(content) < size:
                raise SampleError("the shard is cut short", shard=name, key=key, offset=offset + len(content))
        return contents

    def _file(self, shard: int) -> _OpenFile:
        name = self.shards.info.shards[shard].tar
        if not self.shards.keeps_files:  # an evicted file takes its space as long as it is open
            return _OpenFile(self.shards.open(name))
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        file = _OpenFile(self.shards.open(name))  # without the lock: on a dead mount this never returns
        with self._lock:
            file = self._files.setdefault(shard, file)
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file


def _read_span(descriptor: int, offset: int, size: int) -> bytes:
    """Return the bytes of a span; fewer at the end of the file."""
    content = os.pread(descriptor, size, offset)
    while 0 < len(content) < size:  # a signal or a network file system may cut a read short
        rest = os.pread(descriptor, size - len(content), offset + len(content))
        if not rest:
            break
        content += rest
    return content


def _adjacent(units: list[_Unit]) -> list[list[_Unit]]:
    """Split wanted units, in ascending order, into runs whose bytes are adjacent."""
    runs: list[list[_Unit]] = []
    next_number = next_begin = -1
    for unit in units:
        number, begin, size, _ = unit
        if number == next_number and begin == next_begin:
            runs[-1].append(unit)
        else:
            runs.append([unit])
        next_number, next_begin = number + 1, begin + size
    return runs
