"""Reading touches just the needed bytes and notices what is wrong with them."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.timeline import Timeline
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.types import Sample
from rhofast.errors import DecodeError, MachineError, SampleError
from tests.helpers.shards import ROOT, STREAMS, damage_unit, encode_stream, frame_pixels, write_shards

h264 = pytest.mark.parametrize("stream_shards", ["h264"], indirect=True)


def shown(sample: Sample) -> dict[int, tuple[int, int]]:
    """For each frame that was decoded, the (frame, video) that its pixels name."""
    for picture in sample.pictures.values():
        assert picture.dtype == np.uint8 and picture.shape == (48, 64, 3) and picture.flags.c_contiguous
    means = {frame: picture.mean(axis=(0, 1)) / 8 for frame, picture in sample.pictures.items()}
    return {frame: (round(float(mean[0])), round(float(mean[1]))) for frame, mean in means.items()}


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
    with pytest.raises(SampleError, match="is cut short"):
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


def test_the_note_of_a_sample_is_one_read_of_its_own_bytes(
    members: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = [{"caption": f"v\u00eddeo {video}", "boxes": [[0, 0.5]]} for video in range(12)]
    reader = Reader(write_shards(tmp_path / "noted", members[:12], extra=[*extra[:11], None]))
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: (reads.append(size), pread(fd, size, offset))[1])
    assert [reader.read_json(video).extra for video in range(12)] == [*extra[:11], {}]
    assert reads == [reader.locate(video).json_size for video in range(12)]


def test_the_note_and_frames_are_read_together(stream_shards: ShardSet) -> None:
    reader, frames = Reader(stream_shards), np.array([3, 4, 20], dtype=np.int32)
    for video in range(len(stream_shards)):
        alone, both = reader.read(video, frames), reader.read(video, frames, with_json=True)
        size = reader.locate(video).json_size
        assert (both.bytes_read, both.bytes_used) == (alone.bytes_read + size, alone.bytes_used + size)
        assert all(np.array_equal(both.pictures[frame], alone.pictures[frame]) for frame in alone.pictures)
        assert alone.extra is None and both.extra == {} == reader.read_json(video).extra


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "checksum mismatch"),
        (b"[]", "KEY.json: .*object"),
        (b'{"extra": 3}', "KEY.json: extra=3: .*object"),
        (b'{"extra": {"a": NaN}}', "KEY.json: extra.a: not a finite number"),
        (b'{"extra": {"a": 1, "a": 2}}', "KEY.json: key 'a' occurs twice"),
        (b'{"extra": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, "KEY.json: .*nested more than"),
        (b'{"source": "\xff"}', "KEY.json: not UTF-8"),
        (b'{"start": "1"}', "KEY.json: start='1'"),
    ],
)
def test_a_note_that_is_not_what_it_should_be_is_a_sample_error(shards: ShardSet, content: bytes, says: str) -> None:
    """With the right checksum, as a stranger may write it; and without, as a disk may."""
    row, path = shards.row(6), shards.root / "shard-000001.tar"
    stored = bytearray(path.read_bytes())
    note = content.ljust(row.json_size) if content else b"x" * row.json_size
    stored[row.json_offset : row.json_offset + len(note)] = note
    path.write_bytes(stored)
    row = replace(row, json_size=len(note), json_crc=zlib.crc32(note) if content else row.json_crc)
    with pytest.raises(SampleError, match=says) as caught:
        Reader(shards).read_json(6, row)
    assert (caught.value.shard, caught.value.key, caught.value.offset) == (path.name, "v6", row.json_offset)
    path.write_bytes(stored[: row.json_offset])
    with pytest.raises(SampleError, match="the shard is cut short"):
        Reader(shards).read_json(6, row)


def test_a_known_row_is_not_looked_up_again(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, frames = Reader(shards), np.array([3, 1], dtype=np.int32)
    row, expected = reader.locate(7), reader.read(7, frames)
    monkeypatch.setattr(reader, "locate", None)
    again = reader.read(7, frames, row)
    assert (again.key, again.bytes_read, list(again.pictures)) == (expected.key, expected.bytes_read, [1, 3])


FRAMES: dict[str, npt.NDArray[np.int32]] = {
    "repeated": np.array([[5, 5, 5], [5, 5, 5]], dtype=np.int32),
    "overlapping": np.array([[4, 6, 8, 10], [6, 8, 10, 12]], dtype=np.int32),
    "backward": np.array([20, 13, 2], dtype=np.int32),
    "first and last": np.array([0, 23], dtype=np.int32),
    "all": np.arange(24, dtype=np.int32),
    **{f"random {n}": np.random.default_rng(n).integers(0, 24, (n % 4 + 1, 3), dtype=np.int32) for n in range(20)},
}


def test_each_decoded_frame_is_the_one_asked_for(stream_shards: ShardSet) -> None:
    reader = Reader(stream_shards)
    for sample, (name, frames) in enumerate(FRAMES.items()):
        sample %= 13
        read = reader.read(sample, frames)
        assert shown(read) == {int(frame): (frame, sample) for frame in np.unique(frames)}, name
        assert list(read.pictures) == np.unique(frames).tolist()


def test_decoded_frames_are_contiguous_where_the_decoder_pads_rows(tmp_path: Path) -> None:
    codec = STREAMS["copy"]
    member = encode_stream([frame_pixels(2, frame, 52) for frame in range(3)], codec, tmp_path / "video.mp4")
    shards = write_shards(tmp_path / "shards", [member], codec=codec)
    for picture in Reader(shards).read(0, np.arange(3, dtype=np.int32)).pictures.values():
        assert picture.shape == (48, 52, 3) and picture.flags.c_contiguous


def test_a_stream_is_read_by_its_header_and_the_needed_groups(
    stream_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: (reads.append(size), pread(fd, size, offset))[1])
    reader, codec = Reader(stream_shards), stream_shards.info.codecs[0]
    units = stream_shards.row(3).units
    assert len(units.frame) > 2
    for frames in FRAMES.values():
        groups = set((np.searchsorted(units.frame, frames, side="right") - 1).flat)
        assert "gop" not in codec or groups == {int(frame) // codec["gop"] + 1 for frame in frames.flat}
        table = set() if "gop" in codec else {len(units.frame) - 1}  # of an MP4 that was not made for streaming
        rows = sorted({0} | groups | table)
        runs = sum(row - 1 not in rows for row in rows)
        reads.clear()
        sample = reader.read(3, frames)
        assert sample.bytes_read == sum(reads) == int(units.size[list(rows)].sum())
        assert len(reads) == runs


@h264
@pytest.mark.parametrize(("unit", "name"), [(0, "unit 0"), (3, "unit 3")])
def test_a_flipped_bit_of_a_needed_unit_is_named_and_of_another_unnoticed(
    stream_shards: ShardSet, unit: int, name: str
) -> None:
    begin = damage_unit(stream_shards, 6, unit)
    reader = Reader(stream_shards)
    with pytest.raises(SampleError, match=f"{name}: checksum mismatch") as caught:
        reader.read(6, np.array([6, 9, 10], dtype=np.int32))
    assert (caught.value.shard, caught.value.key, caught.value.offset) == ("shard-000001.tar", "v6", begin)
    if unit:
        others = np.array([0, 7, 12, 23], dtype=np.int32)
        assert shown(reader.read(6, others)) == {int(frame): (frame, 6) for frame in others}


def test_a_frame_that_does_not_come_out_is_a_sample_error(stream_shards: ShardSet) -> None:
    with pytest.raises(DecodeError, match="frame 24 cannot be decoded") as caught:
        Reader(stream_shards).read(6, np.array([3, 24], dtype=np.int32))
    assert caught.value.key == "v6" and caught.value.offset == stream_shards.row(6).offset


def test_a_short_stream_is_a_sample_error(stream_shards: ShardSet) -> None:
    row = stream_shards.row(12)
    os.truncate(stream_shards.root / "shard-000002.tar", row.offset + row.size - 7)
    with pytest.raises(SampleError, match="is cut short") as caught:
        Reader(stream_shards).read(12, np.array([23], dtype=np.int32))
    assert caught.value.offset == row.offset + row.size - 7


def test_descriptors_are_bounded_and_closed(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhofast.data.format.tar_files._OPEN_FILES", 1)

    def open_here() -> int:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(str(shards.root)) and link.endswith(".tar") for link in links)

    reader = Reader(shards)
    for sample in (0, 6, 12, 0, 12, 6):
        reader.read(sample, np.array([0], dtype=np.int32))
        assert open_here() == 1
    reader.close()
    assert open_here() == 0


def test_a_long_video_costs_what_its_clips_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    runs_for = Timeline.runs_for

    def counting(timeline: Timeline, frames: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
        runs = runs_for(timeline, frames)
        decoded.append(sum(last - first + 1 for first, last in runs))
        return runs

    monkeypatch.setattr(Timeline, "runs_for", counting)
    codec, read = H264Codec(quality=4, gop=5, preset="ultrafast"), []
    for count in (60, 900):
        frames = [frame_pixels(1, number % 20) for number in range(count)]
        member = encode_stream(frames, codec, tmp_path / f"{count}.mp4")
        reader = Reader(write_shards(tmp_path / str(count), [member], codec=codec))
        read.append(reader.read(0, (count - 40 + 3 * np.arange(8)).astype(np.int32)))
    # Frames 0 3 | 1 4 | 2 | 0 3 | 1 of their groups, each decoded up to its last.
    assert decoded == [4 + 5 + 3 + 4 + 2] * 2
    assert read[1].bytes_read == pytest.approx(read[0].bytes_read, rel=0.1)


@pytest.mark.parametrize("name", list(STREAMS))
def test_a_video_of_one_frame(name: str, tmp_path: Path) -> None:
    member = encode_stream([frame_pixels(4, 9)], STREAMS[name], tmp_path / "video.mp4")
    shards = write_shards(tmp_path / "shards", [member], codec=STREAMS[name])
    assert shown(Reader(shards).read(0, np.zeros((2, 3), dtype=np.int32))) == {0: (9, 4)}


# In a process of its own: an index that is cut short under a mapping ends a process by a signal.
CUT_SHORT = """
import os, sys
import numpy as np
from pathlib import Path
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.reader import Reader
from rhofast.errors import SampleError
root = Path(sys.argv[1])
shards = open_folder(root)
reader = Reader(shards)
frames = np.array([1, 2], dtype=np.int32)
early = reader.locate(6)
before = reader.read(6, frames).pictures[1].tobytes()
os.truncate(root / "shard-000001.arrow", 0)
assert reader.read(6, frames, early).pictures[1].tobytes() == before  # located before: a copy
try:
    reader.locate(7)
except SampleError as error:
    print(error)
"""


def test_an_index_that_is_cut_short_under_a_run_is_an_error_and_no_signal(shards: ShardSet) -> None:
    command = [sys.executable, "-c", CUT_SHORT, str(shards.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "shard-000001.arrow: 0 bytes, but dataset.json lists" in done.stdout


def test_an_index_that_is_written_again_is_checked_again(shards: ShardSet) -> None:
    reader, path = Reader(shards), shards.root / "shard-000001.arrow"
    key, content = reader.locate(6).key, path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 255]) + content[201:])
    with pytest.raises(SampleError, match="digest differs"):
        reader.locate(6)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert reader.locate(6).key == key


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_a_refusal_of_the_machine_is_waited_for_and_is_no_bad_sample(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    expected = Reader(shards).read(2, np.array([3], dtype=np.int32)).pictures[3].tobytes()
    pread, refusals = os.pread, [0]

    def refusing(*given: int) -> bytes:
        refusals[0] += 1
        if refusals[0] <= 2:
            raise OSError(number, os.strerror(number))
        return pread(*given)

    monkeypatch.setattr(os, "pread", refusing)
    read = Reader(shards, patience_s=5).read(2, np.array([3], dtype=np.int32))
    assert read.pictures[3].tobytes() == expected and refusals[0] == 3
    refusals[0] = -(10**9)
    monkeypatch.setattr(os, "pread", lambda *given: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(MachineError, match="--resume"):
        Reader(shards, patience_s=0.1).read(2, np.array([3], dtype=np.int32))


def test_an_open_that_hangs_holds_up_no_close(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released = threading.Event(), threading.Event()

    def hang(self: ShardSet, name: str) -> int:
        begun.set()
        released.wait()
        raise OSError(errno.EIO, "released")

    monkeypatch.setattr(ShardSet, "open", hang)
    reader = Reader(shards)
    frames = np.array([3], dtype=np.int32)
    thread = threading.Thread(target=_read, args=(reader, frames))
    thread.start()
    try:
        assert begun.wait(10)
        reader.close()  # waits for no lock
    finally:
        released.set()
        thread.join(10)


def _read(reader: Reader, frames: npt.NDArray[np.int32]) -> None:
    with contextlib.suppress(SampleError):
        reader.read(2, frames)
