"""The index of a shard: one Arrow file with a row per sample, memory-mapped.

    shard-000000.arrow   sample 0   key, label, digest of the source | place in the tar | frames, rate, size | units
                         sample 1   ...

A *unit* is the smallest piece of a member that can be decoded by itself: one picture of a `jpeg` member, one group of
pictures of an `h264` member. The index holds each unit's place, checksum and mean color. So the bytes of a clip are
found without opening the container, a damaged unit is detected before any decoder sees it, and the center of the
contrast jitter is known before decoding. SCHEMA lists the columns.

Most of an index is its `unit_*` columns, lists with one entry per unit, so they hold only what does not follow from
anything else: positions are sums of sizes, every picture is one frame, and colors are 32 bits. A picture costs 8.25
bytes, a group of pictures 16. index_writer.py writes an index, index_file.py opens it and checks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhofast.data.codecs.codec import Part
from rhofast.data.types import TimedLabel, Units

VERSION = 2
DATASET_FILE = "dataset.json"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # class number; null without a label
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # further class numbers
        pa.field("label_start", pa.list_(pa.float64()), nullable=False),  # seconds of the sample; NaN: its beginning
        pa.field("label_end", pa.list_(pa.float64()), nullable=False),  # seconds of the sample; NaN: its end
        pa.field("source_digest", pa.binary(16), nullable=False),  # BLAKE2b-128 of the source file's bytes
        pa.field("codec", pa.uint8(), nullable=False),  # place in the list of codecs in dataset.json
        pa.field("offset", pa.int64(), nullable=False),  # position of the member's first byte in the tar
        pa.field("size", pa.int64(), nullable=False),  # size of the member in bytes
        pa.field("json_size", pa.int32(), nullable=False),  # size in bytes of KEY.json, which stands before the member
        pa.field("json_crc", pa.uint32(), nullable=False),  # its CRC-32
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("lead", pa.int32(), nullable=False),  # frames that the units hold before the sample's frame 0
        pa.field("fps", pa.float64(), nullable=False),  # frames per second
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("pixel_aspect", pa.float32(), nullable=False),  # width of a pixel as shown, divided by its height
        pa.field("begin", pa.int64(), nullable=False),  # position of the first unit's first byte in the member
        pa.field("unit_size", pa.list_(pa.int32()), nullable=False),  # bytes
        pa.field("unit_crc", pa.list_(pa.uint32()), nullable=False),  # CRC-32 as zlib computes it
        pa.field("unit_frames", pa.list_(pa.int32()), nullable=False),  # frames in it; empty if all units have one
        pa.field("color", pa.list_(pa.uint32()), nullable=False),  # mean colors, packed (see `pack_colors`)
    ]
)
LISTS = ("labels", "label_start", "label_end", "unit_size", "unit_crc", "unit_frames", "color")
_COMPONENT_BITS = 10  # of a color: steps of a quarter
_COMPONENT_MAX = (1 << _COMPONENT_BITS) - 1
_SHIFTS = np.arange(0, 3 * _COMPONENT_BITS, _COMPONENT_BITS, dtype=np.uint32)
COLOR_BITS = 3 * _COMPONENT_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """One sample as the index holds it.

    Attributes:
        key: Key of the sample, unique in the data set.
        label: Class number, or None without a label.
        labels: Further labels, in seconds of the sample.
        source_digest: BLAKE2b-128 of the source file's bytes, 16 bytes.
        offset: Position of the member's first byte in the tar.
        size: Size of the member in bytes.
        json_size: Size of KEY.json in bytes; 0 for a sample that is only planned and lies in no tar.
        json_crc: CRC-32 of KEY.json.
        num_frames: Number of frames.
        fps: Frames per second.
        width: Width in pixels.
        height: Height in pixels.
        units: The independently decodable pieces of the member.
        codec: Place of the storage codec in `DatasetInfo.codecs`.
        pixel_aspect: Width of a pixel as shown, divided by its height.
    """

    key: str
    label: int | None
    labels: tuple[TimedLabel, ...] = ()
    source_digest: bytes
    offset: int
    size: int
    json_size: int = 0
    json_crc: int = 0
    num_frames: int
    fps: float
    width: int
    height: int
    units: Units
    codec: int = 0
    pixel_aspect: float = 1.0

    @property
    def json_offset(self) -> int:
        """Position of the first byte of KEY.json in the tar: it is the member before this one."""
        return int(json_offset(self.offset, self.json_size))

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
        codec: Place of each sample's storage codec in `DatasetInfo.codecs`, u8[N].
        offset: i64[N].
        size: i64[N].
        json_size: i32[N].
        json_crc: u32[N].
        num_frames: i32[N].
        lead: i32[N].
        fps: f64[N].
        width: i32[N].
        height: i32[N].
        pixel_aspect: f32[N].
        begin: i64[N].
        labels, label_start, label_end: The lists of all samples, one after another: i32, f64, f64.
        labels_starts: Place of each sample's first label in them, and the number of labels at the end, i32[N + 1].
        unit_size, unit_crc, unit_frames, color: The lists of all samples, one after another: i32, u32, i32, u32.
        unit_starts: Place of each sample's first unit in them, and the number of units at the end, i32[N + 1].
        frames_starts: The same for `unit_frames`.
        color_starts: The same for `color`.
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
        self.codec = column["codec"].to_numpy()
        self.offset, self.size = column["offset"].to_numpy(), column["size"].to_numpy()
        self.json_size, self.json_crc = column["json_size"].to_numpy(), column["json_crc"].to_numpy()
        self.lead = column["lead"].to_numpy()
        self.num_frames, self.fps = column["num_frames"].to_numpy(), column["fps"].to_numpy()
        self.width, self.height = column["width"].to_numpy(), column["height"].to_numpy()
        self.pixel_aspect = column["pixel_aspect"].to_numpy()
        self.begin = column["begin"].to_numpy()
        self.labels, self.label_start, self.label_end = (column[name].values.to_numpy() for name in LISTS[:3])
        self.unit_size, self.unit_crc, self.unit_frames, self.color = (
            column[name].values.to_numpy() for name in LISTS[3:]
        )
        self.labels_starts, self.unit_starts, self.frames_starts, self.color_starts = (
            column[name].offsets.to_numpy() for name in ("labels", "unit_size", "unit_frames", "color")
        )

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

    def timed_labels(self, row: int) -> tuple[TimedLabel, ...]:
        """Return the further labels of one sample, in seconds of the sample."""
        held = slice(self.labels_starts[row], self.labels_starts[row + 1])
        columns = (self.labels[held], self.label_start[held], self.label_end[held])
        return tuple(
            TimedLabel(label, None if math.isnan(start) else start, None if math.isnan(end) else end)
            for label, start, end in zip(*(column.tolist() for column in columns), strict=True)
        )

    def units(self, row: int) -> Units:
        """Return the units of one sample, as a copy that outlives the mapped file."""
        first, end = self.unit_starts[row], self.unit_starts[row + 1]
        size = self.unit_size[first:end].copy()
        offset = np.empty(len(size), dtype=np.int64)
        offset[0], offset[1:] = self.begin[row], size[:-1]
        frames = self.unit_frames[self.frames_starts[row] : self.frames_starts[row + 1]]
        first_frame, after = np.arange(len(size), dtype=np.int32), 0
        if len(frames):
            ends = np.cumsum(frames, dtype=np.int32) - self.lead[row]
            first_frame, after = ends - frames, int(ends[-1] - self.num_frames[row])
        return Units(
            frame=first_frame,
            offset=offset.cumsum(out=offset),
            size=size,
            crc=self.unit_crc[first:end].copy(),
            rgb=unpack_colors(self.color[self.color_starts[row] : self.color_starts[row + 1]]),
            after=after,
        )

    def row(self, row: int) -> IndexRow:
        """Return everything that the index knows of one sample, as a copy that outlives the mapped file."""
        label = int(self.label[row])
        return IndexRow(
            key=self.key(row),
            label=None if label < 0 else label,
            labels=self.timed_labels(row),
            source_digest=self._source[row].as_py(),
            codec=int(self.codec[row]),
            offset=int(self.offset[row]),
            size=int(self.size[row]),
            json_size=int(self.json_size[row]),
            json_crc=int(self.json_crc[row]),
            num_frames=int(self.num_frames[row]),
            fps=float(self.fps[row]),
            width=int(self.width[row]),
            height=int(self.height[row]),
            pixel_aspect=float(self.pixel_aspect[row]),
            units=self.units(row),
        )


def json_offset(offset: Any, json_size: Any) -> Any:
    """Return the position in a tar of a KEY.json, which ends in the block before the header of the member.

    Args:
        offset: Position of the first byte of the member: a number, or an array of them.
        json_size: Size of KEY.json in bytes, likewise.
    """
    return offset - BLOCKSIZE - -(-json_size // BLOCKSIZE) * BLOCKSIZE


def pack_colors(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Pack colors into 32 bits each: 10 for red, the lowest, 10 for green and 10 for blue.

    Args:
        rgb: R, G, B in 0..255, f32[C, 3].

    Returns:
        The colors, u32[C], each component rounded to a multiple of 255 / 1023.
    """
    red, green, blue = np.rint(rgb * (_COMPONENT_MAX / 255)).astype(np.uint32).reshape(-1, 3).T
    packed: npt.NDArray[np.uint32] = red | green << _COMPONENT_BITS | blue << 2 * _COMPONENT_BITS
    return packed


def unpack_colors(packed: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return the colors, f32[C, 3] in 0..255, that `pack_colors` packed, u32[C]."""
    components = (packed[:, None] >> _SHIFTS) & np.uint32(_COMPONENT_MAX)
    return components.astype(np.float32) * np.float32(255 / _COMPONENT_MAX)
