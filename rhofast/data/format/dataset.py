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
Full description: docs/reference/shard_format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from rhofast.config.section import Section
from rhofast.data.format.index import DATASET_FILE, VERSION, IndexRow, ShardIndex, open_index
from rhofast.errors import ConfigError, ShardFormatError, ShardMissingError

_OPEN_INDICES = 1024  # memory-mapped shard indices kept at once; each costs a mapping, not memory


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


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def choose_samples(shards: ShardSet, count: int) -> list[int]:
    """`count` samples, evenly spread over a set."""
    return [int(sample) for sample in np.unique(np.linspace(0, len(shards) - 1, count).astype(int))]


def find_keys(shards: ShardSet, keys: Sequence[str]) -> list[int]:
    """The samples with these keys, in their order. Raises ConfigError for a key that is not in the set."""
    wanted = dict.fromkeys(keys, -1)
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        for row in range(len(index)):
            if index.key(row) in wanted:
                wanted[index.key(row)] = int(shards.starts[number]) + row
    missing = [key for key, sample in wanted.items() if sample < 0]
    if missing:
        raise ConfigError(f"{shards.where}: no sample has the key {missing[0]!r}")
    return list(wanted.values())
