"""The shard format, version 1: what lies beside the tars, how it is written, opened and checked.

    OUT/dataset.json             DatasetInfo; written last, so its presence means that the set is complete
    OUT/shard-000000.tar         a plain WebDataset tar: KEY.mp4, KEY.json, KEY2.mp4, ...
    OUT/shard-000000.arrow       one row a sample, memory-mapped (SCHEMA below)
    OUT/shard-000000.idx         the same members as DALI's wds2idx lists them
    OUT/sizes.json               samples a tar, as open_clip reads it
    OUT/refused.jsonl            every source that did not become a sample, and why

A *unit* is the smallest piece of a member that can be decoded by itself: one picture of a `jpeg` member. The index
knows each unit's bytes, checksum and mean color, so a clip's bytes are found without opening the container, a damaged
unit is known before any decoder sees it, and the center of the contrast jitter is known before decoding.

What it is not: it reads no tar and decodes nothing (reader.py, pipeline.py), and builds no shards (ingest/).
Full description: docs/shard-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, ValidationError

from rhofast.config.section import Section
from rhofast.data.types import Units
from rhofast.errors import ShardFormatError, ShardMissingError

VERSION = 1
DATASET_FILE = "dataset.json"
_OPEN_INDICES = 1024  # memory-mapped shard indices kept at once; each costs a mapping, not memory

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


class ShardInfo(Section):
    """One shard as `dataset.json` lists it. bytes, index_bytes: sizes of the tar and of the index. Digests are SHA-256,
    hexadecimal."""

    name: str
    samples: int
    frames: int
    seconds: float
    bytes: int
    index_bytes: int
    tar_sha256: str
    index_sha256: str

    @property
    def tar(self) -> str:
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        return f"{self.name}.arrow"


class DatasetInfo(Section):
    """`dataset.json`. codec: its name and settings. transcode: how videos were brought to it; encoders: the ffmpeg
    programs that did. classes[label]: a class's name; empty without labels. refused: how many sources were refused, by
    reason. build: digest of the list of sources and the settings."""

    format: Literal["rhofast-shards"] = "rhofast-shards"
    version: int = VERSION
    name: str
    split: str
    codec: dict[str, Any]
    transcode: dict[str, Any] = Field(default_factory=dict)
    encoders: list[str] = Field(default_factory=list)
    classes: list[str]
    shards: list[ShardInfo]
    refused: dict[str, int]
    build: str

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def num_frames(self) -> int:
        return sum(shard.frames for shard in self.shards)

    @property
    def seconds(self) -> float:
        return sum(shard.seconds for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """Names the content: equal digests mean equal samples in equal order. Hexadecimal, 64 characters."""
        text = json.dumps([self.version, [(shard.samples, shard.index_sha256) for shard in self.shards]])
        return hashlib.sha256(text.encode()).hexdigest()


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


class ShardSet:
    """A complete set of shards. Opening reads `dataset.json` alone; each index is mapped, and its digest checked, when
    a sample of it is first asked for. Thread-safe.

    where: what a message calls the set. keeps_files: a file stays where it is as long as the set is open; where that
    is not so (remote.py), a file is opened when it is read and closed again.
    """

    keeps_files = True

    def __init__(self, root: Path, info: DatasetInfo, *, open_indices: int = _OPEN_INDICES) -> None:
        self.root = root
        self.where = str(root)
        self.info = info
        self.starts: npt.NDArray[np.int64] = np.cumsum([0, *(shard.samples for shard in info.shards)], dtype=np.int64)
        self._open: OrderedDict[int, ShardIndex] = OrderedDict()
        self._open_indices = open_indices
        self._checked: dict[int, tuple[int, ...]] = {}  # shards whose index had the right digest, and the file it was
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r}, {len(self)} samples in {len(self.info.shards)} shards)"

    def local(self, name: str) -> Path:
        """Where a file of the set (`shard-000000.tar`) can be opened on this machine."""
        return self.root / name

    def open(self, name: str) -> int:
        """A descriptor of a file of the set, for reading. Raises OSError, ShardError."""
        return os.open(self.local(name), os.O_RDONLY | os.O_CLOEXEC)

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard number, row in its index) of a sample. Raises IndexError outside [0, len)."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, int(sample - self.starts[shard])

    def index(self, shard: int) -> ShardIndex:
        """The index of one shard. Raises ShardMissingError, or ShardFormatError if it is not as recorded."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        index = self._load_index(shard)
        with self._lock:
            self._open[shard] = index
            while len(self._open) > self._open_indices:
                self._open.popitem(last=False)
        return index

    def _load_index(self, shard: int) -> ShardIndex:
        """Map an index. Its bytes are hashed once: one that was let go and is mapped again is the same file."""
        info = self.info.shards[shard]
        path = self.local(info.index)
        file = _identity(path)
        known = file is not None and self._checked.get(shard) == file
        index = open_index(path, digest=None if known else info.index_sha256)
        if len(index) != info.samples:
            raise ShardFormatError(f"{path}: {len(index)} rows, {DATASET_FILE} says {info.samples}")
        if file is not None:
            self._checked[shard] = file
        return index

    def row(self, sample: int) -> IndexRow:
        shard, row = self.locate(sample)
        return self.index(shard).row(row)


def open_folder(root: Path, *, check_files: bool = True) -> ShardSet:
    """Open the shard set in a folder. check_files: see that every shard is there and as long as it should be.

    Raises ShardMissingError where there is no set, it is incomplete, or a shard is missing; ShardFormatError for
    another version, a `dataset.json` that cannot be read, or a shard that was cut short.
    """
    path = root / DATASET_FILE
    if not root.is_dir():
        raise ShardMissingError(f"{root}: no such folder", hint="make shards with: rhofast shard SOURCE OUT")
    if not path.is_file():
        begun = any(root.glob("shard-*.arrow"))
        hint = "the set is incomplete: run the same `rhofast shard` command again" if begun else "not a shard set"
        raise ShardMissingError(f"{root}: no {DATASET_FILE}", hint=hint)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardFormatError(f"{path}: cannot be read: {error}") from None
    info = parse_dataset(content, str(path))
    if check_files:
        for shard in info.shards:
            check_shard_files(root, shard)
    return ShardSet(root, info)


def parse_dataset(content: bytes, where: str) -> DatasetInfo:
    """What a `dataset.json` says; `where` names it in messages. Raises ShardFormatError."""
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ShardFormatError(f"{where}: cannot be read: {error}") from None
    if not isinstance(values, dict) or values.get("format") != "rhofast-shards":
        raise ShardFormatError(f"{where}: not the description of a rhofast shard set")
    if values.get("version") != VERSION:
        raise ShardFormatError(
            f"{where}: format version {values.get('version')}, this rhofast reads version {VERSION}",
            hint="install the rhofast that wrote it, or make the shards again",
        )
    try:
        return DatasetInfo.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ShardFormatError(f"{where}: {key}: {first['msg']}") from None


def check_shard_files(root: Path, shard: ShardInfo) -> None:
    """See that a shard's tar and index are there and as long as recorded. Raises ShardMissingError or
    ShardFormatError."""
    hint = "copy it again, or see what else is wrong with: rhofast verify"
    for name, expected in ((shard.tar, shard.bytes), (shard.index, shard.index_bytes)):
        try:
            size = (root / name).stat().st_size
        except OSError as error:
            raise ShardMissingError(f"{root / name}: {error.strerror or error}", hint=hint) from None
        if size != expected:
            raise ShardFormatError(f"{root / name}: {size} bytes, {DATASET_FILE} says {expected}", hint=hint)


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


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
