"""A shard set: the files that it consists of, and opening and checking them.

    OUT/dataset.json             DatasetInfo; it is written last, so its presence means that the set is complete
    OUT/shard-000000.tar         a plain WebDataset tar: KEY.mp4, KEY.json, KEY2.mp4, ...
    OUT/shard-000000.arrow       the index of the tar, one row per sample (index.py)
    OUT/shard-000000.idx         the members of the tar as DALI's wds2idx lists them
    OUT/sizes.json               number of samples per tar, as open_clip reads it
    OUT/refused.jsonl            every source that did not become a sample, and the reason

This module reads `dataset.json` and maps indices. reader.py reads the tars, ingest/ writes the shards. The format is
described in full in docs/reference/shard_format.md.
"""

from __future__ import annotations

import copy
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhofast.data.format.dataset_json import MAX_DATASET_BYTES, DatasetInfo, ShardInfo, index_facts, parse_dataset
from rhofast.data.format.index import DATASET_FILE, IndexRow, ShardIndex
from rhofast.data.format.index_file import open_column, open_index
from rhofast.data.format.ranges import SpanFetch
from rhofast.data.format.subset import Subset
from rhofast.errors import ShardFormatError, ShardMissingError
from rhofast.storage.files import check_unicode, is_local, open_regular_descriptor
from rhofast.storage.strict_json import read_bounded

_OPEN_INDICES = 1024  # memory-mapped shard indices kept at once; each costs a mapping, not memory


class ShardSet:
    """A complete set of shards in a local folder, or a part of its samples. Thread-safe.

    Opening reads only `dataset.json`. An index is mapped, and its digest checked, when one of its samples is first
    needed. The samples of a part are numbered among themselves, in the order of the whole set.

    Attributes:
        root: Folder of the set.
        where: Name of the set in messages: its folder or URL.
        info: The content of `dataset.json`, of the whole set.
        part: What part of the set this is; None for all of it.
        starts: Number of each shard's first sample, and the number of samples at the end, i64[shards + 1]. A shard of
            which a part has no sample has the same number as the next one.
        transport: How and why the set is read from where it is, in one sentence; empty for a folder.
        keeps_files: Whether files stay in place while the set is open. If not (remote.py), a file is opened for each
            read and closed afterwards.
    """

    keeps_files = True

    def __init__(self, root: Path, info: DatasetInfo, *, open_indices: int = _OPEN_INDICES) -> None:
        """Use the shards of a folder whose `dataset.json` was read (see `open_folder`).

        Args:
            root: Folder of the set.
            info: The content of `dataset.json`.
            open_indices: Limit on the number of indices that are mapped at the same time.
        """
        self.root = root
        self.where = str(root)
        self.transport = ""
        self.info = info
        self.part: Subset | None = None
        self.starts: npt.NDArray[np.int64] = np.cumsum([0, *(shard.samples for shard in info.shards)], dtype=np.int64)
        self._rows_before = self.starts  # the same for the whole set
        self._open: OrderedDict[int, ShardIndex] = OrderedDict()
        self._open_indices = open_indices
        self._checked: dict[int, tuple[int, ...]] = {}  # shard -> identity of its index when the digest was checked
        self._refused: dict[int, tuple[tuple[int, ...], ShardFormatError]] = {}  # shard -> same, and what was wrong
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __repr__(self) -> str:
        count = len(self.info.shards)
        held = f"{len(self)} samples in {count} shard{'' if count == 1 else 's'}"
        return f"{type(self).__name__}({self.where!r}, {held})"

    @property
    def fault(self) -> str:
        """Why its store did not answer the last time that it was asked; empty if it did, and for a folder."""
        return ""

    @property
    def digest(self) -> str:
        """Digest of the samples, 64 hexadecimal characters. Equal digests mean equal samples in equal order."""
        return self.info.digest if self.part is None else self.part.digest

    def subset(self, part: Subset) -> Self:
        """Return a part of this set, of samples that it has. It shares the open files."""
        chosen = copy.copy(self)
        chosen.part = part
        chosen.starts = np.searchsorted(part.samples, self._rows_before)
        return chosen

    def used_shards(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the shards that have samples, ascending, i64[n]."""
        return np.flatnonzero(np.diff(self.starts))

    def rows_of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the rows in the index of a shard that its samples have, ascending, i64[n]."""
        first, end = int(self.starts[shard]), int(self.starts[shard + 1])
        if self.part is None:
            return np.arange(end - first)
        rows: npt.NDArray[np.int64] = self.part.samples[first:end] - self._rows_before[shard]
        return rows

    def local(self, name: str) -> Path:
        """Return the path at which a file of the set (`shard-000000.tar`) can be opened on this machine."""
        return self.root / name

    def open(self, name: str) -> int:
        """Open a file of the set for reading and return its descriptor.

        Raises:
            OSError: The file cannot be opened.
            ShardError: The file cannot be downloaded (remote sets).
        """
        return open_regular_descriptor(self.local(name))

    def fetch_spans(self, shard: int, spans: Sequence[tuple[int, int]]) -> SpanFetch | None:
        """Begin to fetch spans of a tar that is not on this machine; None if it is read as a file (see remote.py)."""
        return None

    def load_indices(self, shards: Iterable[int]) -> None:
        """Have the indices of some shards fetched side by side, if they are not on this machine (see remote.py)."""

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the shard of a sample and the row in its index.

        Raises:
            IndexError: The sample is not in [0, len).
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in [0, {len(self)})")
        number = sample if self.part is None else int(self.part.samples[sample])
        shard = int(np.searchsorted(self._rows_before, number, side="right")) - 1
        return shard, int(number - self._rows_before[shard])

    def read_column(self, name: str, shard: int) -> pa.Array:
        """Return a column of the index of one shard, also of samples that are not in this part, as a copy.

        Nothing else is read and checked; the rest of the index is checked when a sample is first needed.

        Args:
            name: A column without nulls, such as `key` or `source_digest`.
            shard: Number of the shard.

        Raises:
            ShardMissingError: The index is not there.
            ShardFormatError: The index is not as recorded in `dataset.json`.
        """
        info = self.info.shards[shard]
        return open_column(self.local(info.index), name, samples=info.samples, num_bytes=info.index_bytes)

    def read_columns(self, name: str, shards: Iterable[int]) -> Iterator[pa.Array]:
        """Yield what `read_column` returns for some shards, in their order."""
        return (self.read_column(name, shard) for shard in shards)

    def index(self, shard: int) -> ShardIndex:
        """Return the index of one shard, as it is on the disk now.

        An index that was written while it is mapped would end the process, or be another one; so it is opened again,
        and checked again, if its file has changed.

        Raises:
            ShardMissingError: The index is not there.
            ShardFormatError: The index is not as recorded in `dataset.json`.
        """
        with self._lock:
            index = self._open.get(shard)
            if index is not None:
                self._open.move_to_end(shard)
        if index is not None and not self._has_changed(shard):  # without the lock: a dead mount answers late
            return index
        index = self._load_index(shard)
        with self._lock:
            self._open[shard] = index
            while len(self._open) > self._open_indices:
                self._open.popitem(last=False)
        return index

    def _has_changed(self, shard: int) -> bool:
        """Return whether the file of a mapped index is another one; only files that stay in place can be."""
        return self.keeps_files and self._checked.get(shard) != _identity(
            f"{self.root}/{self.info.shards[shard].index}"
        )

    def _load_index(self, shard: int) -> ShardIndex:
        """Map an index. It is checked only once, as long as the file does not change."""
        info = self.info.shards[shard]
        path = self.local(info.index)
        file = _identity(path)
        checked = file is not None and self._checked.get(shard) == file
        refused = self._refused.get(shard)
        if refused is not None and refused[0] == file:
            raise ShardFormatError(refused[1].message, hint=refused[1].hint)
        try:
            index = open_index(path, index_facts(info, self.info), checked=checked)
        except ShardFormatError as error:
            if file is not None:
                self._refused[shard] = file, error
            raise
        if file is not None:
            self._checked[shard] = file
        return index

    def row(self, sample: int) -> IndexRow:
        """Return what the index knows of a sample. Raises what `locate` and `index` raise."""
        shard, row = self.locate(sample)
        return self.index(shard).row(row)


def open_folder(root: Path, *, check_files: bool = True) -> ShardSet:
    """Open the shard set in a folder.

    Args:
        root: Folder of the set.
        check_files: Whether to check that all files of all shards are there and have the recorded sizes.

    Returns:
        The opened set.

    Raises:
        ConfigError: The path of the folder is not UTF-8.
        ShardMissingError: There is no set, the set is incomplete, or a shard is missing.
        ShardFormatError: `dataset.json` cannot be read or has another version, or a shard has another size.
    """
    check_unicode(root)
    path = root / DATASET_FILE
    if not root.is_dir():
        raise ShardMissingError(f"{root}: no such folder", hint="make shards: rhofast shard SOURCE OUT")
    if not path.exists():
        is_incomplete = any(root.glob("shard-*.arrow"))
        hint = "the set is incomplete: run the same `rhofast shard` command again"
        if not is_incomplete:
            hint = "not a shard set; make one: rhofast shard SOURCE OUT"
        raise ShardMissingError(f"{root}: no {DATASET_FILE}", hint=hint)
    content = read_bounded(path, raises=ShardFormatError, max_bytes=MAX_DATASET_BYTES)
    info = parse_dataset(content, str(path))
    if check_files:
        for shard in info.shards:
            check_shard_files(root, shard)
    return ShardSet(root, info)


def check_shard_files(root: Path, shard: ShardInfo) -> None:
    """Check that the tar and the index of a shard are there and have the recorded sizes.

    Args:
        root: Folder of the set.
        shard: The shard.

    Raises:
        ShardMissingError: A file is not there.
        ShardFormatError: A file has another size, or is not a regular file.
    """
    hint = f"copy the file again; check the whole set: rhofast verify {root}"
    is_here = is_local(root)
    for name, expected in ((shard.tar, shard.bytes), (shard.index, shard.index_bytes)):
        try:
            # Names as texts, because a set has thousands of files and a Path costs more than its stat.
            status = os.stat(f"{root}/{name}") if is_here else (root / name).stat()  # noqa: PTH116
        except OSError as error:
            raise ShardMissingError(f"{root / name}: {error.strerror or error}", hint=hint) from None
        if is_here and not stat.S_ISREG(status.st_mode):
            raise ShardFormatError(f"{root / name}: not a regular file")
        if status.st_size != expected:
            what = f"{status.st_size} bytes, but {DATASET_FILE} lists {expected}"
            raise ShardFormatError(f"{root / name}: {what}", hint=hint)


def _identity(path: Path | str) -> tuple[int, ...] | None:
    """Return values that change when a local file is replaced or written; None if there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each sample, and a Path costs more than its stat
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def choose_samples(shards: ShardSet, count: int) -> list[int]:
    """Return `count` samples, evenly spread over a set."""
    return [int(sample) for sample in np.unique(np.linspace(0, len(shards) - 1, count).astype(int))]
