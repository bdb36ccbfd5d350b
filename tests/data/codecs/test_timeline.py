"""Decoding a part of a stream gives what decoding all of it gives, and decodes no more than it must."""

import io
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rhofast.data.codecs import part_decoding
from rhofast.data.codecs.containers import decode_all, open_container
from rhofast.data.codecs.containers import video_stream as stream_of
from rhofast.data.codecs.part_decoding import Source, decode_wanted, trim
from rhofast.data.codecs.timeline import Timeline, read_timeline
from rhofast.ingest.transcode import find_ffmpeg
from tests.helpers.shards import REAL_VIDEOS

NUM_FRAMES = 60

# Encoders whose groups are closed, whose groups are open (a key frame is followed by frames that are shown before it),
# that refresh pictures bit by bit, that hide frames, that reorder them, and that give them no times.
STREAMS = {
    "h264 closed": ("mp4", "libx264 -g 12 -bf 2 -x264-params open-gop=0"),
    "h264 open": ("mp4", "libx264 -g 12 -bf 3 -x264-params open-gop=1:b-pyramid=strict"),
    "h264 refresh": ("mkv", "libx264 -g 12 -x264-params intra-refresh=1"),
    "h264 interlaced": ("mp4", "libx264 -g 12 -bf 2 -flags +ildct+ilme"),
    "h264 in ts": ("ts", "libx264 -g 12 -bf 2"),
    "hevc closed": ("mp4", "libx265 -x265-params keyint=12:bframes=2:open-gop=0:log-level=error"),
    "hevc open": ("mp4", "libx265 -x265-params keyint=12:bframes=3:open-gop=1:log-level=error"),
    "vp9 hidden": ("webm", "libvpx-vp9 -g 12 -b:v 200k -lag-in-frames 16 -auto-alt-ref 1"),
    "vp8 hidden": ("webm", "libvpx -g 12 -b:v 200k -lag-in-frames 16 -auto-alt-ref 1"),
    "mpeg4 closed": ("mp4", "mpeg4 -g 12 -bf 2 -flags +cgop -sc_threshold 1000000000"),
    "mpeg4 open": ("mp4", "mpeg4 -g 12 -bf 2"),
    "mpeg2": ("mkv", "mpeg2video -g 12 -bf 2"),
    "mpeg4 in avi": ("avi", "mpeg4 -g 12 -bf 2"),
}
# Where a part can be decoded by itself:
PARTS = {"h264 closed", "h264 interlaced", "h264 in ts", "hevc closed", "mpeg4 closed", "vp9 hidden", "vp8 hidden"}


@cache
def encoded(name: str, more: str = "") -> bytes:
    suffix, encoder = STREAMS[name]
    form = {"mkv": "matroska", "ts": "mpegts"}.get(suffix, suffix) + (" -movflags frag_keyframe" * (suffix == "mp4"))
    pictures = f"-f lavfi -i testsrc2=size=80x48:rate=12 -frames:v {NUM_FRAMES} {more} -pix_fmt yuv420p".split()
    command = [find_ffmpeg(), "-loglevel", "error", *pictures, "-c:v", *f"{encoder} -threads 1 -f {form} pipe:".split()]
    if suffix == "avi":  # needs a file that can seek
        command[-1:] = ["-y", "/dev/stdout"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def source(content: bytes) -> Source:
    with open_container(io.BytesIO(content), mp4=False) as container:
        context = stream_of(container).codec_context
        return Source(io.BytesIO(content), (context.width, context.height), mp4=False)


def whole(content: bytes, frames: set[int] | None = None) -> dict[int, npt.NDArray[np.uint8]]:
    """The frames of a file, decoded from its beginning to its end."""
    with open_container(io.BytesIO(content), mp4=False) as container:
        return {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(decode_all(container, stream_of(container)))
            if frames is None or number in frames
        }


def some(rng: np.random.Generator, num_frames: int) -> npt.NDArray[np.int32]:
    return np.unique(rng.integers(0, num_frames, rng.integers(1, 7))).astype(np.int32)


@pytest.mark.parametrize("name", STREAMS)
def test_a_part_decodes_as_in_the_whole(name: str) -> None:
    content, rng = encoded(name), np.random.default_rng(3)
    expected = whole(content)
    for frames in (some(rng, len(expected)) for _ in range(12)):
        pictures = decode_wanted(source(content), len(expected), frames)
        assert list(pictures) == frames.tolist()
        for number, picture in pictures.items():
            np.testing.assert_array_equal(picture, expected[number])
            assert picture.flags.c_contiguous


@pytest.mark.parametrize("name", STREAMS)
def test_decoding_begins_only_where_nothing_earlier_is_needed(name: str) -> None:
    content = encoded(name)
    with open_container(io.BytesIO(content), mp4=False) as container:
        timeline = read_timeline(container, stream_of(container), len(whole(content)))
    entries = 1 if timeline is None else int(timeline.entry.sum())
    assert (entries > 1) == (name in PARTS), entries
    assert (timeline is None) == (name == "mpeg4 in avi")


@pytest.mark.parametrize(
    "video", sorted(path.name for path in REAL_VIDEOS.glob("*") if path.suffix in (".avi", ".mkv", ".mp4"))
)
def test_a_part_of_a_real_video_decodes_as_in_the_whole(video: str) -> None:
    content = (REAL_VIDEOS / video).read_bytes()
    with open_container(io.BytesIO(content), mp4=False) as container:
        num_frames = sum(1 for _ in decode_all(container, stream_of(container)))
    rng = np.random.default_rng(5)
    parts = [some(rng, num_frames) for _ in range(2)]
    expected = whole(content, {int(frame) for part in parts for frame in part})
    for part in parts:
        pictures = decode_wanted(source(content), num_frames, part)
        assert list(pictures) == part.tolist()
        for number, picture in pictures.items():
            np.testing.assert_array_equal(picture, expected[number])


def test_runs_begin_at_entries_and_end_with_what_is_wanted() -> None:
    # Decoded as I0 P3 B1 B2 | I4 P7 B5 B6 | I8 P9, and one that is not shown at the end.
    rank = np.array([0, 3, 1, 2, 4, 7, 5, 6, 8, 9, -1])
    entry = np.isin(np.arange(11), [0, 4, 8])
    timeline = Timeline([None] * 11, rank, entry)

    def runs(*frames: int) -> list[tuple[int, int]]:
        return timeline.runs_for(np.array(frames, dtype=np.int32))

    assert runs(0) == [(0, 0)]
    assert runs(3) == [(0, 1)]  # the frames between are decoded after it
    assert runs(2, 3) == [(0, 3)]
    assert runs(5, 8) == [(4, 6), (8, 8)]
    assert runs(1, 9) == [(0, 2), (8, 9)]
    assert runs() == []
    assert runs(10) == []


def test_what_a_stream_says_of_itself_is_checked_against_what_was_counted() -> None:
    content = encoded("h264 closed")
    with open_container(io.BytesIO(content), mp4=False) as container:
        assert read_timeline(container, stream_of(container), NUM_FRAMES - 1) is None
    frames = np.array([7, 40], dtype=np.int32)
    pictures, expected = decode_wanted(source(content), NUM_FRAMES - 1, frames), whole(content)
    assert all(np.array_equal(pictures[number], expected[number]) for number in (7, 40))


def test_only_wanted_frames_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[int] = []
    make = part_decoding._converter

    def counting(size: tuple[int, int]) -> Callable[[Any], npt.NDArray[np.uint8]]:
        convert = make(size)
        return lambda frame: (converted.append(frame.pts), convert(frame))[1]

    monkeypatch.setattr(part_decoding, "_converter", counting)
    decode_wanted(source(encoded("h264 closed")), NUM_FRAMES, np.array([5, 30, 31], dtype=np.int32))
    assert len(converted) == 3


def test_a_frame_past_the_end_is_left_out() -> None:
    pictures = decode_wanted(source(encoded("h264 closed")), NUM_FRAMES, np.array([2, NUM_FRAMES], dtype=np.int32))
    assert list(pictures) == [2]


@pytest.mark.parametrize("name", ["h264 closed", "hevc closed"])
def test_a_trimmed_file_holds_the_same_frames_under_its_own_numbers(name: str) -> None:
    content, rng = encoded(name), np.random.default_rng(4)
    expected, sizes = whole(content), []
    for frames in (some(rng, NUM_FRAMES) for _ in range(8)):
        trimmed = trim(source(content), NUM_FRAMES, frames, {"h264", "hevc"})
        assert trimmed is not None
        smaller, wanted = trimmed
        sizes.append(len(smaller))
        assert wanted.dtype == np.int32 and (np.diff(wanted) > 0).all()
        with open_container(io.BytesIO(smaller)) as container:
            packets = [packet for packet in container.demux(stream_of(container)) if packet.size]
        assert min(packet.pts for packet in packets) >= 0 and not any(packet.is_discard for packet in packets)
        found = whole(smaller)
        for number, own in zip(frames.tolist(), wanted.tolist(), strict=True):
            np.testing.assert_array_equal(found[own], expected[number])
    assert min(sizes) < 0.7 * len(content)


@pytest.mark.parametrize(
    ("name", "more", "takes"),
    [
        ("h264 closed", "", {"hevc"}),
        ("h264 interlaced", "", {"h264"}),
        ("h264 closed", "-vf setparams=colorspace=bt709", {"h264"}),
        ("h264 closed", "-vf setparams=range=pc", {"h264"}),
        ("mpeg4 in avi", "", {"mpeg4"}),
    ],
)
def test_a_file_that_a_device_would_show_otherwise_is_not_trimmed(name: str, more: str, takes: set[str]) -> None:
    assert trim(source(encoded(name, more)), NUM_FRAMES, np.array([3], dtype=np.int32), takes) is None


@pytest.mark.parametrize("width", [34, 50, 64])
def test_rows_are_not_padded(width: int, tmp_path: Path) -> None:
    command = f"-loglevel error -f lavfi -i testsrc2=size={width}x18:rate=12 -frames:v 1 -pix_fmt yuv420p -c:v libx264"
    path = tmp_path / "one.mp4"
    subprocess.run([find_ffmpeg(), *command.split(), str(path)], check=True)
    ((number, picture),) = decode_wanted(source(path.read_bytes()), 1, np.array([0], dtype=np.int32)).items()
    assert number == 0 and picture.shape == (18, width, 3) and picture.flags.c_contiguous
