"""A torch Dataset of shards: frames by (sample, frames), decoded on the host, for those who only want the shards."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rhofast.config.schema import DataConfig
from rhofast.config.section import parse_section
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import IndexRow
from rhofast.data.format.reader import Reader
from rhofast.data.loader.fields import parse_fields
from rhofast.data.sources import open_shards
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.storage.address import check_address, is_remote
from rhofast.storage.store_path import as_path

Transform = Callable[[torch.Tensor, IndexRow], Any]
Frames = slice | Iterable[int]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What one process holds open; another process opens its own."""

    process: int
    shards: ShardSet
    reader: Reader


class ClipDataset(Dataset[Any]):
    """Random access to the stored frames of a shard set, as `dataset[sample, frames]`.

    `dataset[3, [0, 8, 16]]` and `dataset[3, 0:64:8]` are frames of sample 3, `dataset[3]` are all its frames: RGB
    u8[T, H, W, 3] in the stored size. Only the bytes that the frames need are read, and their checksums are checked.
    It needs no DALI and no GPU, pickles, and opens its files again in every process, so workers of a DataLoader may be
    forked or spawned. A sampler may yield numbers of samples or pairs (sample, frames).

    Args:
        shards: Folder or address of the shard set.
        keep: File that lists the samples of the dataset by their keys, as for `open_shards`; weights mean nothing here.
            The samples are numbered among themselves. None for all samples.
        transform: Called with the frames and the sample's row of the index (key, label, fps, ...); what it returns is
            the item. It must be picklable for spawned workers. None: the item is the frames.
        fields: Fields of the sample that an item has besides, as for `rhofast.clips`: the item is then a dict, with
            `frames` for what it would be otherwise. "labels" are the classes that hold at some time from the first to
            the last of the frames, bool[classes].
        cache: Folder for copies of remote shards, as `data.cache`; None for the folder for temporary files.

    Attributes:
        classes: Name of each class, by label; empty for a set without labels.

    Raises:
        ConfigError: An argument is wrong, or the set lacks a field.
        ShardError: The shard set cannot be opened.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        keep: str | Path | None = None,
        transform: Transform | None = None,
        fields: Sequence[str] = (),
        cache: str | Path | None = None,
    ) -> None:
        if not isinstance(shards, str | Path) or shards == "":
            raise ConfigError(f"shards={shards!r} must be the folder or the address of a shard set")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform={transform!r} must be a function of the frames and the row, or None")
        self._source = _lasting(shards)
        self._shown = str(shards if isinstance(self._source, Path) else self._source)
        data = parse_section(DataConfig, {"cache": cache}, "data")
        self._data = data if data.cache is None else data.model_copy(update={"cache": data.cache.absolute()})
        self._transform = transform
        self._opened: _Opened | None = None
        opened = open_shards(self._source, keep=keep, data=self._data)
        self._digest, self._length, self.classes = opened.info.digest, len(opened), tuple(opened.info.classes)
        self._part = opened.part
        asked_for = parse_fields(fields, (opened,))
        self._fields = asked_for if fields else None
        self._opened = _Opened(os.getpid(), opened, Reader(opened, decode_pictures=True))

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r}, {len(self)} samples)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __getitem__(self, index: int | tuple[int, Frames]) -> Any:
        """Return frames of a sample, or what `transform` makes of them.

        Args:
            index: A sample for all its frames, or (sample, frames) with frames as numbers, in any order and with
                repeats, or as a slice. Negative samples count from the end; negative frames are refused.

        Returns:
            RGB u8[T, H, W, 3], contiguous, or the transform's result; with `fields` a dict with it as `frames`.

        Raises:
            IndexError: There is no such sample or frame.
            TypeError: A number is not whole.
            SampleError: The sample cannot be read or decoded.
        """
        sample, frames = index if isinstance(index, tuple) and len(index) == 2 else (index, slice(None))
        number = self._number_of(sample)
        opened = self._open()
        row = opened.reader.locate(number)
        wanted = _frame_numbers(frames, row.num_frames, number)
        pixels = _stack(opened.reader.read(number, wanted, row).pictures, wanted, row)
        item = pixels if self._transform is None else self._transform(pixels, row)
        if self._fields is None:
            return item
        return {"frames": item, **self._fields.item(opened.reader, row, number, wanted)}

    def row(self, sample: int) -> IndexRow:
        """Return what the index knows of a sample: key, label, number of frames, fps, width and height.

        Raises:
            IndexError: There is no such sample.
            SampleError: The index of its shard cannot be used.
        """
        return self._open().reader.locate(self._number_of(sample))

    def close(self) -> None:
        """Close the files of this process; the next access opens them again."""
        if self._opened is not None and self._opened.process == os.getpid():
            self._opened.reader.close()
        self._opened = None

    def _number_of(self, sample: Any) -> int:
        number = _whole(sample, "a sample")
        if not -self._length <= number < self._length:
            raise IndexError(f"sample {number} is not in [0, {self._length})")
        return number % self._length

    def _open(self) -> _Opened:
        """Return what this process holds open. A lock of the parent may be locked for ever in a forked process."""
        if self._opened is not None and self._opened.process == os.getpid():
            return self._opened
        shards = open_shards(self._source, check_files=False, data=self._data)
        if shards.info.digest != self._digest:
            raise ShardFormatError(f"{shards.where}: the set is not the one that the dataset was made of")
        if self._part is not None:
            shards = shards.subset(self._part)
        self._opened = _Opened(os.getpid(), shards, Reader(shards, decode_pictures=True))
        return self._opened


def _lasting(shards: str | Path) -> str | Path:
    """Return where a set is in a form that holds in a worker with another current folder."""
    if isinstance(shards, Path):
        return shards.absolute()
    address = check_address(shards, "shards")
    return address if is_remote(address) else as_path(address).absolute()


def _whole(value: Any, what: str) -> int:
    """Return a whole number of Python, numpy or torch; raise TypeError for any other value."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be a whole number, got {value!r:.80}") from None


def _frame_numbers(frames: Frames, num_frames: int, sample: int) -> npt.NDArray[np.int32]:
    """Return the numbers of the wanted frames, i32[T]; raise IndexError if the sample lacks one."""
    if isinstance(frames, slice):
        return np.arange(*frames.indices(num_frames), dtype=np.int32)
    if isinstance(frames, str) or not isinstance(frames, Iterable):
        raise TypeError(f"frames must be a slice or several numbers, got {frames!r:.80}")
    numbers = [_whole(frame, "a frame") for frame in frames]
    wrong = next((number for number in numbers if not 0 <= number < num_frames), None)
    if wrong is not None:
        raise IndexError(f"frame {wrong} of sample {sample} is not in [0, {num_frames})")
    return np.array(numbers, dtype=np.int32)


def _stack(pictures: dict[int, npt.NDArray[np.uint8]], wanted: npt.NDArray[np.int32], row: IndexRow) -> torch.Tensor:
    """Copy decoded pictures into one tensor, u8[T, H, W, 3], in the wanted order."""
    pixels = torch.empty((len(wanted), row.height, row.width, 3), dtype=torch.uint8)
    array = pixels.numpy()
    for place, frame in enumerate(wanted.tolist()):
        array[place] = pictures[frame]
    return pixels
