"""The index of a shard: one Arrow file with a row per sample, memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhofast.data.types import Units
from rhofast.errors import ShardFormatError, ShardMissingError

VERSION = 1
DATASET_FILE = "dataset.json"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # null: no label
        pa.field("source_digest", pa.binary(16), nullable=False),  # BLAKE2b-128 of the source file's bytes
        pa.field("offset", pa.int64(), nullable=False),  # of the member's first byte in the tar
        pa.field("size", pa.int64(), nullable=False),  # of the member, bytes
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("unit_frame", pa.list_(pa.int32()), nullable=False),  # number of the unit's first frame
        pa.field("unit_offset", pa.list_(pa.int64()), nullable=False),  # of its first byte in the member
        pa.field("unit_size", pa.list_(pa.int32()), nullable=False),  # bytes
        pa.field("unit_crc", pa.list_(pa.uint32()), nullable=False),  # CRC-32 (zlib's)
        pa.field("unit_rgb", pa.list_(pa.float32()), nullable=False),  # mean R, G, B in 0..255: three values a unit
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """One sample as the index holds it; `offset` counts from the tar's first byte."""

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


class ShardIndex:
    """One shard's index, memory-mapped. The columns that are needed as a whole are numpy views: num_frames, fps, width,
    height, label (-100 where null), offset, size, source_digest (as strings of 16 bytes: they sort, and compare as the
    digests do, though numpy hides zeros at their end)."""

    def __init__(self, table: pa.Table) -> None:
        batch = table.combine_chunks().to_batches()[0] if table.num_rows else None
        if batch is None:
            raise ValueError("an index without rows")
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
        units = [column[f"unit_{part}"] for part in ("frame", "offset", "size", "crc", "rgb")]
        self._starts = units[0].offsets.to_numpy()
        if any(not np.array_equal(unit.offsets.to_numpy(), self._starts) for unit in units[1:4]):
            raise ValueError("unit columns of different lengths")
        frame, offset, size, crc, rgb = (unit.values.to_numpy() for unit in units)
        self._units = Units(frame=frame, offset=offset, size=size, crc=crc, rgb=rgb.reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.num_frames)

    def key(self, row: int) -> str:
        return str(self._key[row].as_py())

    def units(self, row: int) -> Units:
        """The units of one sample: views, no copies."""
        part = slice(int(self._starts[row]), int(self._starts[row + 1]))
        every = self._units
        return Units(
            frame=every.frame[part],
            offset=every.offset[part],
            size=every.size[part],
            crc=every.crc[part],
            rgb=every.rgb[part],
        )

    def row(self, row: int) -> IndexRow:
        """Everything the index knows of one sample."""
        label = int(self.label[row])
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
            units=self.units(row),
        )


def open_index(path: Path, *, digest: str | None = None) -> ShardIndex:
    """Map one `.arrow` index, after comparing its SHA-256 with `digest` if given. Raises ShardMissingError or
    ShardFormatError."""
    return ShardIndex(_read_table(path, digest))


def write_index(path: Path, rows: Sequence[IndexRow], metadata: Mapping[str, str]) -> str:
    """Write the index of one shard (one record batch) and return its SHA-256. `metadata` is kept as notes."""
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


def _read_table(path: Path, digest: str | None) -> pa.Table:
    if not path.is_file():
        raise ShardMissingError(f"{path}: no such file, although {DATASET_FILE} names it")
    try:
        if digest is not None and _sha256(path) != digest:
            raise ShardFormatError(
                f"{path}: its digest is not the one in {DATASET_FILE}: the file was damaged or replaced",
                hint="copy it again from where it came, or delete it and run the same `rhofast shard` command again",
            )
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(pa.memory_map(str(path)).read_buffer()))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardFormatError(f"{path}: not a shard index: {str(error).splitlines()[0]}") from None
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ShardFormatError(f"{path}: not a shard index of format version {VERSION}: its columns are others")
    if table.num_rows == 0:
        raise ShardFormatError(f"{path}: an index without rows")
    return table


def _sha256(path: Path) -> str:
    """Read, not mapped: the pages of an index that no plan asks for are not to count as this process's memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
