"""Reading touches just the needed bytes and notices what is wrong with them."""

import os
from pathlib import Path

import numpy as np
import pytest

from rhofast.data.index import ShardSet
from rhofast.data.reader import Reader
from rhofast.errors import SampleError


def test_pictures_are_the_member_s_own_bytes(shards: ShardSet, members: list[bytes]) -> None:
    sample = Reader(shards).read(7, np.array([[3, 4, 9], [4, 20, 3]], dtype=np.int32))
    assert (sample.key, sample.label) == ("v7", 1)
    assert sorted(sample.pictures) == [3, 4, 9, 20]
    for picture in sample.pictures.values():
        assert picture.tobytes() in members[7]
        assert picture[:2].tobytes() == b"\xff\xd8"


def test_no_byte_is_read_that_no_frame_needs(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    frames = np.array([[0, 3, 6, 9], [6, 9, 12, 15]], dtype=np.int32)
    sample = Reader(shards).read(2, frames)
    needed = sum(picture.nbytes for picture in sample.pictures.values())
    assert len(sample.pictures) == 6
    assert sum(reads) == sample.bytes_read == needed


def test_adjacent_frames_are_one_read(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: (offsets.append(offset), pread(fd, size, offset))[1])
    Reader(shards).read(0, np.arange(5, 13, dtype=np.int32))
    assert len(offsets) == 1


def test_a_flipped_bit_is_named_by_its_address(shards: ShardSet) -> None:
    row = shards.row(6)
    path = shards.root / "shard-000001.tar"
    at = row.offset + int(row.units.offset[10]) + 100
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    reader = Reader(shards)
    reader.read(6, np.array([9, 11], dtype=np.int32))
    with pytest.raises(SampleError, match="frame 10: checksum mismatch") as caught:
        reader.read(6, np.array([9, 10, 11], dtype=np.int32))
    assert (caught.value.shard, caught.value.key) == ("shard-000001.tar", "v6")
    assert caught.value.offset == row.offset + int(row.units.offset[10])


def test_a_short_shard_and_a_missing_one_are_sample_errors(shards: ShardSet) -> None:
    path = shards.root / "shard-000002.tar"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SampleError, match="ends too early"):
        Reader(shards).read(12, np.array([23], dtype=np.int32))
    path.unlink()
    with pytest.raises(SampleError, match="No such file"):
        Reader(shards).read(12, np.array([23], dtype=np.int32))


def test_a_damaged_index_is_a_sample_error(shards: ShardSet) -> None:
    path = shards.root / "shard-000001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SampleError, match="digest"):
        Reader(shards).read(6, np.array([0], dtype=np.int32))


def test_descriptors_are_bounded_and_closed(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhofast.data.reader._OPEN_FILES", 1)

    def open_here() -> int:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(str(shards.root)) and link.endswith(".tar") for link in links)

    reader = Reader(shards)
    for sample in (0, 6, 12, 0, 12, 6):
        reader.read(sample, np.array([0], dtype=np.int32))
        assert open_here() == 1
    reader.close()
    assert open_here() == 0
