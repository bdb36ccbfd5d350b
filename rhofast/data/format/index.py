"""The index of a shard: one Arrow file with a row per sample, memory-mapped.

    shard-000000.arrow   sample 0   key, label, digest of the source | place in the tar | frames, rate, size | units
                         sample 1   ...

A *unit* is the smallest piece of a member that can be decoded by itself: one picture of a `jpeg` member, one group of
pictures of an `h264` member. The index holds each unit's place, checksum and mean color. So the bytes of a clip are
found without opening the container, a damaged unit is detected before any decoder sees it, and the center of the
contrast jitter is known before decoding. SCHEMA lists the columns; the `unit_*` columns are lists with one entry per
unit, or three in `unit_rgb`. index_file.py opens an index and checks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhofast.data.codecs.codec import Part
from rhofast.data.types import Units

VERSION = 1
DATASET_FILE = "dataset.json"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # class number; null without a label
        pa.field("source_digest", pa.binary(16), nullable=False),  # BLAKE2b-128 of the source file's bytes
        pa.field("offset", pa.int64(), nullable=False),  # position of the member's first byte in the tar
        pa.field("size", pa.int64(), nullable=False),  # size of the member in bytes
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),  # frames per second
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("unit_frame", pa.list_(pa.int32()), nullable=False),  # number of the unit's first frame
        pa.field("unit_offset", pa.list_(pa.int64()), nullable=False),  # position of its first byte in the member
        pa.field("unit_size", pa.list_(pa.int32()), nullable=False),  # bytes
        pa.field("unit_crc", pa.list_(pa.uint32()), nullable=False),  # CRC-32 as zlib computes it
        pa.field("unit_rgb", pa.list_(pa.float32()), nullable=False),  # mean R, G, B in 0..255: three values per unit
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """One sample as the index holds it.

    Attributes:
        key: Key of the sample, unique in the data set.
        label: Class number, or None without a label.
        source_digest: BLAKE2b-128 of the source file's bytes, 16 bytes.
        offset: Position of the member's first byte in the tar.
        size: Size of the member in bytes.
        num_frames: Number of frames.
        fps: Frames per second.
        width: Width in pixels.
        height: Height in pixels.
        units: The independently decodable pieces of the member.
    """

    key: str
    label: int | None
    source_digest: bytes
    offset: int
    size: int
    num_frames: int
    fps: float
    width: int
    height: int
    units: Units

    def part(self, frames: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], pieces: Sequence[Any]) -> Part:
        """Return what a codec decodes frames from.

        Args:
            frames: The wanted frames, distinct and ascending, i32[F].
            rows: Numbers of the units that hold them, i64[U].
            pieces: The bytes of these units.
        """
        return Part(
            units=self.units,
            num_frames=self.num_frames,
            width=self.width,
            height=self.height,
            frames=frames,
            rows=rows,
            pieces=pieces,
        )


class ShardIndex:
    """The index of one shard, memory-mapped. Columns that are needed as a whole are numpy views of N rows.

    Attributes:
        source_digest: S16[N]. They sort and compare as the digests do, although numpy hides zeros at their end.
        label: i64[N], -100 without a label.
        offset: i64[N].
        size: i64[N].
        num_frames: i32[N].
        fps: f64[N].
        width: i32[N].
        height: i32[N].
        unit_starts: Place of each sample's first unit in `every_unit`, and the number of units at the end, i32[N + 1].
        every_unit: The units of all samples, one sample after another.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Use the columns of a record batch that index_file.py has checked: SCHEMA, and no null but in `label`."""
        column = {name: batch.column(name) for name in SCHEMA.names}
        self._key, self._source = column["key"], column["source_digest"]
        rows, before = len(self._source), self._source.offset
        source = np.frombuffer(self._source.buffers()[1], dtype="S16", count=before + rows)
        self.source_digest: npt.NDArray[np.bytes_] = source[before:]
        self.label: npt.NDArray[np.int64] = (
            column["label"].fill_null(-100).to_numpy(zero_copy_only=False).astype(np.int64)
        )
        self.offset, self.size = column["offset"].to_numpy(), column["size"].to_numpy()
        self.num_frames, self.fps = column["num_frames"].to_numpy(), column["fps"].to_numpy()
        self.width, self.height = column["width"].to_numpy(), column["height"].to_numpy()
        frame, offset, size, crc, rgb = (
            column[f"unit_{part}"].values.to_numpy() for part in ("frame", "offset", "size", "crc", "rgb")
        )
        self.unit_starts = column["unit_frame"].offsets.to_numpy()
        self.every_unit = Units(frame=frame, offset=offset, size=size, crc=crc, rgb=rgb.reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.num_frames)

    def key(self, row: int) -> str:
        """Return the key of one sample."""
        return str(self._key[row].as_py())

    def key_bytes(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return the length of each key in bytes, i32[N], and the bytes of all keys, one after another."""
        _, offsets, content = self._key.buffers()
        starts = np.frombuffer(offsets, dtype=np.int32, count=len(self) + 1)
        every = np.frombuffer(content, dtype=np.uint8) if content is not None else np.zeros(0, dtype=np.uint8)
        return np.diff(starts), every[int(starts[0]) : int(starts[-1])]

    def units(self, row: int) -> Units:
        """Return the units of one sample as views, without a copy."""
        part = slice(int(self.unit_starts[row]), int(self.unit_starts[row + 1]))
        every = self.every_unit
        return Units(
            frame=every.frame[part],
            offset=every.offset[part],
            size=every.size[part],
            crc=every.crc[part],
            rgb=every.rgb[part],
        )

    def row(self, row: int) -> IndexRow:
        """Return everything that the index knows of one sample, as a copy that outlives the mapped file."""
        label = int(self.label[row])
        units = self.units(row)
        return IndexRow(
            key=self.key(row),
            label=None if label < 0 else label,
            source_digest=self._source[row].as_py(),
            offset=int(self.offset[row]),
            size=int(self.size[row]),
            num_frames=int(self.num_frames[row]),
            fps=float(self.fps[row]),
            width=int(self.width[row]),
            height=int(self.height[row]),
            units=Units(
                frame=units.frame.copy(),
                offset=units.offset.copy(),
                size=units.size.copy(),
                crc=units.crc.copy(),
                rgb=units.rgb.copy(),
            ),
        )


def write_index(path: Path, rows: Sequence[IndexRow], metadata: Mapping[str, str]) -> str:
    """Write the index of one shard as one record batch.

    Args:
        path: The file to write.
        rows: The samples in the order of the tar, at least one.
        metadata: Notes that are stored in the schema of the file.

    Returns:
        The SHA-256 of the file, hexadecimal.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        for name in SCHEMA.names:
            part = name.removeprefix("unit_")
            value = getattr(row.units, part).reshape(-1) if part != name else getattr(row, name)
            columns[name].append(value)
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    content = sink.getvalue().to_pybytes()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
