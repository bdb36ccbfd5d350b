"""Copied files: byte for byte, and read by the groups that are needed where the file says where they are."""

from __future__ import annotations

import io
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rhofast.data.codecs.codec import Member, Part
from rhofast.data.codecs.sparse_file import SparseFile
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.units import colors_of, frames_in
from rhofast.ingest.transcode import find_ffmpeg
from tests.data.codecs.test_timeline import some, whole
from tests.helpers.shards import REAL_VIDEOS

NUM_FRAMES = 60
SOUND = "-f lavfi -i sine=frequency=440:sample_rate=48000:duration=5"

# How a file is made, and whether a part of it can be read.
FILES = {
    "closed groups": ("mp4", "-c:v libx264 -g 12 -bf 2 -x264-params open-gop=0", True),
    "open groups": ("mp4", "-c:v libx264 -g 12 -bf 3 -x264-params open-gop=1:b-pyramid=strict", False),
    "table first": ("mp4", "-c:v libx264 -g 12 -bf 2 -movflags +faststart", True),
    "with sound": ("mp4", f"{SOUND} -map 0:v -map 1:a -c:v libx264 -g 12 -bf 2 -c:a aac -shortest", True),
    "sound first": ("mov", f"{SOUND} -map 1:a -map 0:v -c:v libx264 -g 12 -c:a pcm_s16le -shortest", True),
    "hevc": ("mp4", "-c:v libx265 -x265-params keyint=12:bframes=2:open-gop=0:log-level=error", True),
    "mpeg4": ("mp4", "-c:v mpeg4 -g 12 -bf 2 -flags +cgop -sc_threshold 1000000000", True),
    "mjpeg": ("mov", "-c:v mjpeg", True),
    "fragments": ("mp4", "-c:v libx264 -g 12 -movflags frag_keyframe+empty_moov", False),
    "matroska": ("mkv", "-c:v libx264 -g 12", False),
    "transport stream": ("ts", "-c:v libx264 -g 12", False),
}


@cache
def made(name: str, folder: Path) -> bytes:
    suffix, options, _ = FILES[name]
    out = folder / f"{name.replace(' ', '_')}.{suffix}"
    pictures = f"-f lavfi -i testsrc2=size=80x48:rate=12:duration={NUM_FRAMES // 12}".split()
    command = [find_ffmpeg(), "-loglevel", "error", "-y", *pictures, *options.split(), "-pix_fmt", "yuv420p"]
    subprocess.run([*command, "-threads", "1", str(out)], check=True)
    return out.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


def part_of(content: bytes, member: Member, frames: npt.NDArray[np.int32]) -> Part:
    """What a reader reads of a member for some frames."""
    units = member.units
    rows = CopyCodec().units_for(units, member.num_frames, frames)
    pieces = [memoryview(content)[units.offset[row] : units.offset[row] + units.size[row]] for row in rows]
    facts = {"num_frames": member.num_frames, "width": member.width, "height": member.height}
    return Part(units=units, frames=frames, rows=rows, pieces=pieces, **facts)


def assert_parts_are_as_the_whole(content: bytes, seed: int) -> Member:
    codec, rng = CopyCodec(), np.random.default_rng(seed)
    member = codec.index_member(io.BytesIO(content))
    expected, units = whole(content), member.units
    assert len(expected) == member.num_frames
    assert int(units.size.sum(dtype=np.int64)) == len(content) and units.offset[0] == 0
    for frames in (some(rng, member.num_frames) for _ in range(6)):
        part = part_of(content, member, frames)
        pictures = codec.decode(part)
        assert sorted(pictures) == frames.tolist()
        for frame, picture in pictures.items():
            assert np.array_equal(picture, expected[frame])
        if len(part.rows) < len(units.frame):  # the header, the table, and the holders of the frames
            holders = set((np.searchsorted(units.frame, frames, side="right") - 1).tolist())
            assert set(part.rows.tolist()) == holders | set(np.flatnonzero(frames_in(units, member.num_frames) == 0))
    return member


@pytest.mark.parametrize("name", FILES)
def test_a_part_of_a_file_decodes_as_in_the_whole(name: str, folder: Path) -> None:
    content = made(name, folder)
    member = assert_parts_are_as_the_whole(content, seed=1)
    holders = np.count_nonzero(frames_in(member.units, NUM_FRAMES))
    assert (holders >= 5) == FILES[name][2]
    if FILES[name][2]:
        pixels, color = whole(content, {12})[12], colors_of(member.units, NUM_FRAMES, np.array([12]))
        assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - color).max() < 4  # measured on a thumbnail


@pytest.mark.parametrize("name", ["bikes.mp4", "kinetics_b.mp4", "nasa.mp4"])
@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="the real videos are not here")
def test_a_part_of_a_real_video_decodes_as_in_the_whole(name: str) -> None:
    assert_parts_are_as_the_whole((REAL_VIDEOS / name).read_bytes(), seed=2)


@pytest.mark.parametrize("name", [name for name, (*_, parts) in FILES.items() if parts])
def test_the_device_gets_the_same_packets_from_a_part(name: str, folder: Path) -> None:
    content, codec = made(name, folder), CopyCodec()
    member = codec.index_member(io.BytesIO(content))
    frames = np.array([14, 20, 37], dtype=np.int32)
    every = part_of(content, member, np.arange(NUM_FRAMES, dtype=np.int32))
    whole_file = Part(
        units=member.units,
        num_frames=NUM_FRAMES,
        width=member.width,
        height=member.height,
        frames=frames,
        rows=every.rows,
        pieces=every.pieces,
    )
    part = part_of(content, member, frames)
    accepted = ["h264", "hevc"]
    of_part, of_whole = codec.trim(part, accepted), codec.trim(whole_file, accepted)
    assert len(part.rows) < len(every.rows)
    if of_whole is None:
        assert of_part is None
    else:
        assert of_part is not None and np.array_equal(of_part.wanted, of_whole.wanted)
        shown, expected = (whole(bytes(stream.content)) for stream in (of_part, of_whole))
        assert len(shown) == len(expected)
        assert all(np.array_equal(shown[frame], expected[frame]) for frame in of_part.wanted.tolist())


def test_a_file_whose_table_does_not_fit_its_index_is_an_error(folder: Path) -> None:
    content, other = made("closed groups", folder), made("table first", folder)
    codec = CopyCodec()
    member = codec.index_member(io.BytesIO(content))
    part = part_of(other, member, np.array([14], dtype=np.int32))
    with pytest.raises(ValueError, match=r"cannot be (decoded|opened)|no video stream"):
        codec.decode(part)


def test_a_sparse_file_has_its_pieces_and_zeros_between_them() -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(1, 256, 1000, dtype=np.uint8)
    spans = [(0, 10), (10, 40), (300, 301), (999, 1000)]
    here = np.zeros(1000, dtype=np.uint8)
    for begin, end in spans:
        here[begin:end] = content[begin:end]
    file = SparseFile([(begin, content[begin:end].tobytes()) for begin, end in spans], 1000)
    assert file.readall() == here.tobytes()
    for _ in range(200):
        begin, size = int(rng.integers(0, 1100)), int(rng.integers(0, 400))
        assert file.seek(begin) == begin
        assert file.read(size) == here[begin : begin + size].tobytes()
        assert file.tell() == begin + max(0, min(size, 1000 - begin))
    assert file.seek(-1, io.SEEK_END) == 999
    late = SparseFile([(5, b"ab")], 8)
    assert late.readall() == b"\0\0\0\0\0ab\0"
    with pytest.raises(OSError, match="cannot seek"):
        late.seek(-1)
