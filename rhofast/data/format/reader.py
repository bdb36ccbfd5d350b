"""Read exactly the bytes that a plan needs, and check them before any decoder sees them.

There is one `pread` for each run of adjacent units (tar_files.py), or one range request for several that are near to
each other (ranges.py). Nothing is read twice, and threads share no file position. Each unit must have the checksum that
was recorded when the shard was made and its content was checked, and must begin as the codec stores it: a picture is a
baseline JPEG of the size that the index says. This protects the decoders, which may crash on bytes that cannot be
parsed.

Stored pictures are passed on as they are; decode/ decodes them. A video stream that the device will decode is trimmed
to the groups of pictures that are needed. Any other stream is decoded here, in the calling thread (the decoder releases
the GIL), and each frame of the plan is kept once. A sample that cannot be read raises an error; loader/ decides what
happens then. Where a shard was damaged in a cache, it is downloaded again first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs import build_codec
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.ranges import SpanFetch, UnavailableError
from rhofast.data.format.read_request import ReadRequest, adjacent_units
from rhofast.data.format.remote import RemoteShardSet
from rhofast.data.format.sample_json import SampleJson, parse_sample_json
from rhofast.data.format.tar_files import TarFiles
from rhofast.data.types import Sample
from rhofast.data.units import usage
from rhofast.errors import DecodeError, SampleError, ShardError, ShardFormatError
from rhofast.storage.machine_errors import with_patience

_PATIENCE_S = 30.0


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
        self._files = TarFiles(shards, patience_s=patience_s)

    @property
    def fetches(self) -> bool:
        """Whether bytes are fetched from a remote store by a request, and not read from files by a thread."""
        return isinstance(self.shards, RemoteShardSet) and self.shards.ranges is not None

    def close(self) -> None:
        """Close every open shard. The reader can still be used."""
        self._files.close()

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

    def request(
        self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow | None = None, *, with_json: bool = False
    ) -> ReadRequest:
        """Find out what is to be read for frames of a sample, and ask a remote store for it.

        Args:
            sample: Number of the sample in the set.
            frames: Frame numbers, i32 of any shape; repeats are allowed.
            row: The sample's row of the index, if it is known already (see `locate`).
            with_json: Whether the fields of the user's own are read, too.

        Raises:
            SampleError: The index of its shard cannot be used.
        """
        row = self.locate(sample) if row is None else row
        distinct = np.unique(frames)
        none = np.zeros(0, dtype=np.int64)
        rows = self.codecs[row.codec].units_for(row.units, row.num_frames, distinct) if len(distinct) else none
        shard, _ = self.shards.locate(sample)
        # As lists, once per sample: numbers of numpy are slow one by one.
        columns = (row.units.offset, row.units.size, row.units.crc)
        runs = adjacent_units(list(zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True)))
        spans = [(row.offset + run[0][1], run[-1][1] + run[-1][2] - run[0][1]) for run in runs]
        spans = [(row.json_offset, row.json_size), *spans] if with_json else spans
        return ReadRequest(
            sample=sample,
            row=row,
            frames=distinct,
            shard=shard,
            unit_rows=rows,
            runs=runs,
            spans=spans,
            with_json=with_json,
            fetch=self.shards.fetch_spans(shard, spans),
        )

    def read(
        self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow | None = None, *, with_json: bool = False
    ) -> Sample:
        """Read the given frames of a sample.

        Args:
            sample: Number of the sample in the set.
            frames: Frame numbers, i32 of any shape; repeats are allowed.
            row: The sample's row of the index, if it is known already (see `locate`).
            with_json: Whether the fields of the user's own are read, too.

        Returns:
            The distinct frames, as stored pictures, as decoded pictures, or as a stream for the device.

        Raises:
            SampleError: The shard is missing or short, a read failed, a checksum is wrong, or KEY.json is not what the
                format says. The error carries the address of the first bad byte range.
            DecodeError: A stream does not decode to its frames. The error carries the address of the member.
            MachineError: The machine or the store refused the read for too long, for a reason that is not in the data.
        """
        return self.finish(self.request(sample, frames, row, with_json=with_json))

    def finish(self, request: ReadRequest) -> Sample:
        """Read what was requested. Results and errors are those of `read`."""
        row, distinct, codec = request.row, request.frames, self.codecs[request.row.codec]
        pieces, note, bytes_read = self._read_pieces(request)
        stream, pictures = None, dict[int, npt.NDArray[np.uint8]]()
        if codec.pictures and not self._decode_pictures:
            found = (np.frombuffer(piece, dtype=np.uint8) for piece in pieces)
            pictures = dict(zip(distinct.tolist(), found, strict=True))
        else:
            part = row.part(distinct, request.unit_rows, pieces)
            try:
                stream = codec.trim(
                    part, [name for name, limits in self._limits.items() if limits.fit(row.width, row.height)]
                )
                if stream is None:
                    pictures = codec.decode(part)
            except ValueError as error:
                name = self.shards.info.shards[request.shard].tar
                raise DecodeError(str(error), shard=name, key=row.key, offset=row.offset) from None
        used, decoded = float(sum(piece.nbytes for piece in pieces)), len(distinct)
        if not codec.pictures and len(distinct):
            used, decoded = usage(row.units, row.num_frames, distinct)
        used += row.json_size if request.with_json else 0
        return Sample(
            sample=request.sample,
            key=row.key,
            label=row.label,
            pictures=pictures,
            bytes_read=bytes_read,
            stream=stream,
            bytes_used=used,
            frames_decoded=decoded,
            extra=None if note is None else note.extra,
        )

    def read_json(self, sample: int, row: IndexRow | None = None) -> SampleJson:
        """Read the KEY.json of a sample, which has the fields of the user's own.

        Args:
            sample: Number of the sample in the set.
            row: The sample's row of the index, if it is known already.

        Raises:
            SampleError: The shard is missing or short, a read failed, the checksum is wrong, or the content is not what
                the format says. The error carries the address of KEY.json.
            MachineError: The machine or the store refused the read for too long, for a reason that is not in the data.
        """
        no_frames = np.zeros(0, dtype=np.int32)
        _, note, _ = self._read_pieces(self.request(sample, no_frames, row, with_json=True))
        assert note is not None, "it was requested"
        return note

    def _fetched_again(self, shard: int) -> bool:
        """Return whether damaged bytes are of a remote shard, and another attempt may bring others."""
        return isinstance(self.shards, RemoteShardSet) and self.shards.recheck(self.shards.info.shards[shard].tar)

    def _read_pieces(self, request: ReadRequest) -> tuple[list[memoryview], SampleJson | None, int]:
        """Read units and KEY.json and check each of them; return them and the number of bytes read.

        What a remote store gave damaged is read once more, after it was fetched again.
        """
        try:
            return self._read_checked(request, request.fetch)
        except UnavailableError:
            raise
        except SampleError:
            if not self._fetched_again(request.shard):
                raise
        return self._read_checked(request, self.shards.fetch_spans(request.shard, request.spans))

    def _read_checked(
        self, request: ReadRequest, fetch: SpanFetch | None
    ) -> tuple[list[memoryview], SampleJson | None, int]:
        row, codec, pieces = request.row, self.codecs[request.row.codec], list[memoryview]()
        contents, bytes_read = self._contents(request.shard, request.spans, row.key, fetch)
        note = self._check_json(request.shard, row, contents.pop(0)) if request.with_json else None
        for run, content in zip(request.runs, contents, strict=True):
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
                        shard=self.shards.info.shards[request.shard].tar,
                        key=row.key,
                        offset=row.offset + begin,
                    )
                pieces.append(piece)
        return pieces, note, bytes_read

    def _check_json(self, shard: int, row: IndexRow, content: memoryview) -> SampleJson:
        name, fault = self.shards.info.shards[shard].tar, "KEY.json: checksum mismatch"
        if crc32(content) == row.json_crc:
            try:
                return parse_sample_json(bytes(content))
            except ShardFormatError as error:
                fault = error.message
        raise SampleError(fault, shard=name, key=row.key, offset=row.json_offset)

    def _contents(
        self, shard: int, spans: list[tuple[int, int]], key: str, fetch: SpanFetch | None
    ) -> tuple[list[memoryview], int]:
        """Return the bytes of spans of a tar, and how many bytes were read for them."""
        if fetch is None:
            return self._files.read(shard, spans, key), sum(size for _, size in spans)
        try:
            return fetch.contents(key), fetch.num_bytes
        finally:
            fetch.release()
