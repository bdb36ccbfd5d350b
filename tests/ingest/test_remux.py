"""Codec `remux`: the source's own packets, in closed groups, and nothing that is wrong taken silently."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import ffmpeg
import numpy as np
import numpy.typing as npt
import pytest

import rhofast
from rhofast.data.codecs.codec import Member, Part
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.unfit import UnfitError
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.types import VideoRecord
from rhofast.errors import SampleError
from rhofast.ingest import remux_source as remuxing
from rhofast.ingest.probe import RefusedError, probe
from rhofast.ingest.remux import remux
from rhofast.ingest.transcode import find_ffmpeg
from rhofast.ingest.verify import verify_shards
from tests.helpers.shards import REAL_VIDEOS, damage_unit
from tests.helpers.videos import UPRIGHT, corners_of, write_video
from tests.ingest.test_build import build

WIDTH, HEIGHT, RATE, FRAMES = 80, 64, Fraction(30000, 1001), 40
CLOSED = {
    "vcodec": "libx264",
    "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-pyramid=normal:open-gop=0",
}
OPEN = {"vcodec": "libx264", "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:open-gop=1"}
X265 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:log-level=error:pools=none"
# Arguments of the encoder, suffix, and the first frame of each group.
SOURCES: dict[str, tuple[dict[str, Any], str, list[int]]] = {
    "h264": (CLOSED, "mp4", [0, 12, 24, 36]),
    "h264_mkv": (CLOSED, "mkv", [0, 12, 24, 36]),
    "h264_ts": (CLOSED, "ts", [0, 12, 24, 36]),
    "h264_open": (OPEN, "mp4", [0]),
    "h264_plain_avi": ({**CLOSED, "x264-params": "keyint=16:scenecut=0:bframes=0"}, "avi", [0, 16, 32]),
    "h264_444": ({**CLOSED, "pix_fmt": "yuv444p"}, "mov", [0, 12, 24, 36]),
    "hevc": ({"vcodec": "libx265", "x265-params": f"{X265}:open-gop=0"}, "mp4", [0, 12, 24, 36]),
    "hevc_open_10": ({"vcodec": "libx265", "x265-params": X265, "pix_fmt": "yuv420p10le"}, "mkv", [0]),
    "vp9": ({"vcodec": "libvpx-vp9", "g": 16, "deadline": "realtime", "cpu-used": 8}, "webm", [0, 16, 32]),
    "hevc_ts": ({"vcodec": "libx265", "x265-params": f"{X265}:open-gop=0:repeat-headers=1"}, "ts", [0, 12, 24, 36]),
    "vp9_hidden": (
        {"vcodec": "libvpx-vp9", "g": 16, "b:v": "200k", "lag-in-frames": 12, "auto-alt-ref": 1, "cpu-used": 5},
        "mkv",
        [0, 16, 32],
    ),
    "av1": ({"vcodec": "libsvtav1", "g": 16, "preset": 12}, "mkv", [0, 16, 32]),
}


def picture(number: int) -> npt.NDArray[np.uint8]:
    """A frame that tells its number by its gray level, with a pattern that moves."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20 + 5 * number, dtype=np.uint8)
    pixels[8:24, (2 * number) % 60 : (2 * number) % 60 + 16] = (220, 40, 90)
    return pixels


def encode(out: Path, arguments: dict[str, Any], *, count: int = FRAMES, **options: Any) -> Path:
    given = ffmpeg.input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{WIDTH}x{HEIGHT}", r=str(RATE))
    arguments = {"pix_fmt": "yuv420p", **arguments, **options}
    output = ffmpeg.output(given, f"file:{out}", threads=1, **arguments).global_args("-loglevel", "error", "-y")
    content = b"".join(picture(number).tobytes() for number in range(count))
    subprocess.run(ffmpeg.compile(output, cmd=find_ffmpeg()), input=content, check=True)
    return out


def run_ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: encode(folder / f"{name}.{suffix}", given) for name, (given, suffix, _) in SOURCES.items()}


def shown(path: Path) -> list[npt.NDArray[np.uint8]]:
    """What a decoder that begins at the beginning shows, in the format of the source."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def shown_rgb(path: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def stored(
    path: Path, out: Path, codec: RemuxCodec | None = None, segment: tuple[float | None, float | None] = (None, None)
) -> Member:
    return remux(path, probe(path), codec or RemuxCodec(), segment, out)


def part_of(member: Member, file: Path, frames: Sequence[int]) -> Part:
    """What the reader reads for some frames."""
    codec, content = RemuxCodec(), file.read_bytes()
    wanted = np.array(sorted(set(frames)), dtype=np.int32)
    rows = codec.units_for(member.units, member.num_frames, wanted)
    spans = zip(member.units.offset[rows].tolist(), member.units.size[rows].tolist(), strict=True)
    pieces = [content[offset : offset + size] for offset, size in spans]
    for row, piece in zip(rows.tolist(), pieces, strict=True):
        assert codec.find_fault(row, memoryview(piece), member.width, member.height) is None
    return Part(
        units=member.units,
        num_frames=member.num_frames,
        width=member.width,
        height=member.height,
        frames=wanted,
        rows=rows,
        pieces=pieces,
    )


def read(member: Member, file: Path, frames: Sequence[int]) -> tuple[dict[int, npt.NDArray[np.uint8]], list[int]]:
    """The frames as the reader gets them, and the units that it reads for them."""
    part = part_of(member, file, frames)
    return RemuxCodec().decode(part), part.rows.tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_frames_are_those_of_the_source_bit_by_bit(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    member = stored(sources[name], tmp_path / "member")
    *_, groups = SOURCES[name]
    assert member.units.frame.tolist() == [0, *groups] and member.units.after == 0
    assert (member.num_frames, member.fps, member.width, member.height) == (FRAMES, RATE, WIDTH, HEIGHT)
    expected, found = shown(sources[name]), shown(tmp_path / "member")
    assert len(found) == FRAMES and all(map(np.array_equal, expected, found))
    rgb, draw = shown_rgb(sources[name]), np.random.default_rng(0)
    edges = [*groups, FRAMES]
    for _ in range(12):
        wanted = sorted(draw.choice(FRAMES, size=int(draw.integers(1, 5)), replace=False).tolist())
        pictures, units = read(member, tmp_path / "member", wanted)
        assert list(pictures) == wanted and all(np.array_equal(pictures[frame], rgb[frame]) for frame in wanted)
        holders = {next(g for g, end in enumerate(edges[1:], 1) if frame < end) for frame in wanted}
        assert units == [0, *sorted(holders)]


@pytest.mark.parametrize("name", ["h264", "hevc", "vp9"])
def test_a_segment_is_the_groups_that_contain_it(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    rgb, draw = shown_rgb(sources[name]), np.random.default_rng(1)
    for _ in range(10):
        first, stop = sorted(draw.choice(FRAMES + 1, size=2, replace=False).tolist())
        member = stored(sources[name], tmp_path / "member", segment=(first / float(RATE), stop / float(RATE)))
        assert member.num_frames == stop - first
        pictures, _ = read(member, tmp_path / "member", range(member.num_frames))
        assert all(np.array_equal(pictures[frame], rgb[first + frame]) for frame in range(member.num_frames))
        groups = [group for group in SOURCES[name][2] if group < stop]
        assert -member.units.frame[0] == first - max(group for group in groups if group <= first)
        assert len(member.units.frame) == 1 + sum(group > first for group in groups) + 1
    with pytest.raises(RefusedError, match="no frame is shown in the segment"):
        stored(sources[name], tmp_path / "member", segment=(9.0, None))


@pytest.mark.parametrize("first", [13, 26, 31])
def test_a_segment_of_open_groups_begins_at_a_random_access_point(
    first: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    rgb, segment = shown_rgb(sources["hevc_open_10"]), (first / float(RATE), (first + 6) / float(RATE))
    member = stored(sources["hevc_open_10"], tmp_path / "member", segment=segment)
    pictures, _ = read(member, tmp_path / "member", range(6))
    assert all(np.array_equal(pictures[frame], rgb[first + frame]) for frame in range(6))
    with av.open(str(tmp_path / "member")) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) < 30
    with (tmp_path / "member").open("rb") as file:
        assert len(RemuxCodec().index_member(file, deep=True).units.frame) == 2
    assert RemuxCodec().trim(part_of(member, tmp_path / "member", [0, 5]), ["hevc"]) is None  # not on a device


@pytest.mark.parametrize("name", ["h264", "h264_mkv", "h264_ts", "h264_plain_avi", "vp9", "av1"])
def test_many_segments_of_a_file_read_it_once(
    name: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all, count = remuxing._read_packets, 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return read_all(*arguments)

    monkeypatch.setattr(remuxing, "_read_packets", counted)
    monkeypatch.setattr(remuxing, "_last", remuxing._LastSource())
    rgb = shown_rgb(sources[name])
    for first in (30, 4, 17, 0, 36):
        member = stored(sources[name], tmp_path / "member", segment=(first / float(RATE), (first + 3) / float(RATE)))
        pictures, _ = read(member, tmp_path / "member", range(3))
        assert all(np.array_equal(pictures[frame], rgb[first + frame]) for frame in range(3))
    assert count == 1


def test_frames_that_an_edit_list_hides_are_stored_and_not_counted(sources: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    run_ffmpeg("-ss", "0.55", "-i", sources["h264"], "-c", "copy", cut)
    expected = shown_rgb(cut)
    member = stored(cut, tmp_path / "member")
    assert member.units.frame[0] < 0 and member.num_frames == len(expected) < FRAMES
    pictures, _ = read(member, tmp_path / "member", range(member.num_frames))
    assert all(np.array_equal(pictures[number], one) for number, one in enumerate(expected))


def test_the_same_source_gives_the_same_bytes(sources: dict[str, Path], tmp_path: Path) -> None:
    for name in ("h264", "hevc", "vp9", "av1"):
        contents = []
        for number, check in enumerate(("full", "keys", "full")):
            (tmp_path / f"{number}").mkdir(exist_ok=True)
            member = stored(sources[name], tmp_path / f"{number}" / "member", RemuxCodec(check=check))
            contents.append((tmp_path / f"{number}" / "member").read_bytes())
            assert member.units.rgb.tolist() == stored(sources[name], tmp_path / "other").units.rgb.tolist()
        assert contents[0] == contents[1] == contents[2]
        with av.open(str(tmp_path / "0" / "member")) as container:
            assert not container.streams.audio and container.streams.video[0].average_rate == RATE
            assert not any("encoder" in (one.metadata or {}) for one in (container, container.streams.video[0]))


def test_sound_is_left_out_and_the_shape_of_pixels_kept(tmp_path: Path) -> None:
    encode(tmp_path / "video.mp4", CLOSED, vf="setsar=4/3")
    sound = ("-f", "lavfi", "-i", "sine=duration=1", "-c:v", "copy", "-c:a", "aac", "-map", "1", "-map", "0")
    run_ffmpeg("-i", tmp_path / "video.mp4", *sound, tmp_path / "sound.mp4")
    member = stored(tmp_path / "sound.mp4", tmp_path / "member")
    assert member.pixel_aspect == float(np.float32(4 / 3))
    with av.open(str(tmp_path / "member")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def uneven(path: Path) -> None:
    encode(path, {**CLOSED, "vf": "setpts='(N+3*floor(N/4)+2*floor(N/7))/(30*TB)'", "fps_mode": "vfr"})


def turned(path: Path) -> None:
    encode(path.with_name("upright.mp4"), CLOSED)
    run_ffmpeg("-display_rotation", "90", "-i", path.with_name("upright.mp4"), "-c", "copy", path)


def two_sizes(path: Path) -> None:
    for name, size in (("a", "80x64"), ("b", "96x64")):
        encode(path.with_name(f"{name}.ts"), {**CLOSED, "vf": f"scale={size.replace('x', ':')}"}, count=24)
    path.write_bytes(path.with_name("a.ts").read_bytes())
    listing = path.with_name("list.txt")
    listing.write_text("".join(f"file '{path.with_name(name)}.ts'\n" for name in "ab"))
    run_ffmpeg("-f", "concat", "-safe", "0", "-i", listing, "-c", "copy", path)


UNFIT: dict[str, tuple[Any, str, str]] = {
    "uneven": (uneven, "variable_rate", "frames/s on average"),
    "turned": (turned, "rotated", "by 270 degrees"),
    "fields": (
        lambda path: encode(path, {"vcodec": "libx264", "x264-params": "tff=1:bframes=0"}),
        "interlaced",
        "pairs of fields",
    ),
    "two_sizes": (two_sizes, "changing_size", "80x64 to 96x64"),
    "mpeg4": (lambda path: encode(path, {"vcodec": "mpeg4"}), "other_format", "codec mpeg4, not h264, hevc, vp9, av1"),
    "bright": (
        lambda path: encode(
            path, {"vcodec": "libx264", "x264-params": "transfer=smpte2084:colormatrix=bt2020nc:colorprim=bt2020"}
        ),
        "other_format",
        "high dynamic range",
    ),
    "long": (lambda path: encode(path, OPEN), "long_group", "40 frames, more than max_group=20"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_kept_is_refused_with_a_reason_of_its_own(name: str, tmp_path: Path) -> None:
    make, reason, detail = UNFIT[name]
    suffix = "ts" if name == "two_sizes" else "mp4"
    make(tmp_path / f"source.{suffix}")
    for check in ("full", "keys"):
        with pytest.raises(UnfitError, match=detail) as caught:
            stored(tmp_path / f"source.{suffix}", tmp_path / "member", RemuxCodec(check=check, max_group=20))
        assert caught.value.reason == reason


def test_b_frames_without_times_are_refused(tmp_path: Path) -> None:
    encode(tmp_path / "source.avi", CLOSED)
    with pytest.raises(UnfitError, match="avi does not say when pictures are shown"):
        stored(tmp_path / "source.avi", tmp_path / "member")


def test_a_clock_that_begins_again_is_no_order_of_pictures() -> None:
    codec = SimpleNamespace(codec=SimpleNamespace(canonical_name="vp9"), extradata=b"", has_b_frames=0)

    def read_times(times: Sequence[int]) -> list[int]:
        packets = [
            SimpleNamespace(size=9, pts=time, is_corrupt=False, is_discard=False, is_keyframe=place % 20 == 0)
            for place, time in enumerate(times)
        ]
        for packet in packets:
            packet.has_sidedata = lambda name: False
        container = SimpleNamespace(format=SimpleNamespace(name="mpegts"), demux=lambda stream: iter(packets))
        return remuxing._read_packets(container, SimpleNamespace(codec_context=codec, time_base=1), RATE).rank.tolist()

    assert read_times([*range(40), *range(100, 140)]) == list(range(80))
    with pytest.raises(UnfitError, match="its clock jumps back"):
        read_times([*range(1000, 1040), *range(40)])


def complains(path: Path) -> bool:
    """Whether ffmpeg reports an error when it decodes the pictures of a file."""
    command = [find_ffmpeg(), "-nostdin", "-loglevel", "error", "-i", f"file:{path}", "-map", "0:v", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True)
    return done.returncode != 0 or bool(done.stderr)


@pytest.mark.parametrize("name", ["h264", "hevc", "h264_ts", "vp9"])
def test_what_ffmpeg_reports_as_damaged_is_refused(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    content, draw, reported = sources[name].read_bytes(), np.random.default_rng(0), 0
    broken = tmp_path / sources[name].name
    for number in range(12):
        damaged = bytearray(content)
        begin = int(draw.integers(200, len(content) - 64))
        damaged[begin : begin + 48] = draw.bytes(48)
        broken.write_bytes(damaged if number else content[: -len(content) // 4])
        if complains(broken):
            reported += 1
            with pytest.raises((RefusedError, UnfitError)):
                stored(broken, tmp_path / "member")
    assert reported >= 2


def test_keys_alone_find_what_is_wrong_with_keys_and_packets(sources: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(sources["h264"].read_bytes())
    with av.open(str(sources["h264"])) as container:
        second = [packet for packet in container.demux(video=0) if packet.is_keyframe][1]
        begin, size = second.pos, second.size
    content[begin + 30 : begin + size] = bytes(0xA5 for _ in range(size - 30))
    (tmp_path / "broken.mp4").write_bytes(content)
    with pytest.raises(RefusedError, match="damaged"):
        stored(tmp_path / "broken.mp4", tmp_path / "member", RemuxCodec(check="keys"))
    (tmp_path / "short.mp4").write_bytes(sources["h264"].read_bytes()[: -len(content) // 3])
    with pytest.raises(RefusedError):
        stored(tmp_path / "short.mp4", tmp_path / "member", RemuxCodec(check="keys"))


@pytest.mark.skipif(not REAL_VIDEOS.exists(), reason="the real videos are not here")
@pytest.mark.parametrize("name", ["kinetics_a.mp4", "pancake.mkv", "scene_cuts.mp4", "nasa.mp4"])
def test_real_videos_keep_their_frames_and_bytes(name: str, tmp_path: Path) -> None:
    path = REAL_VIDEOS / name
    member = stored(path, tmp_path / "member")
    with av.open(str(path)) as container:
        packets = sum(packet.size for packet in container.demux(video=0))
    assert (tmp_path / "member").stat().st_size <= 1.05 * packets
    expected, found = shown(path), shown(tmp_path / "member")
    assert len(found) == member.num_frames == len(expected) and all(map(np.array_equal, expected, found))


def test_a_set_of_several_codecs_is_made_checked_and_read(sources: dict[str, Path], tmp_path: Path) -> None:
    uneven(tmp_path / "uneven.mp4")
    paths = {name: sources[name] for name in ("h264", "hevc", "vp9", "av1")} | {"uneven": tmp_path / "uneven.mp4"}
    records = [VideoRecord(key=name, path=path, label=0) for name, path in paths.items()]
    records.append(VideoRecord(key="part", path=sources["h264"], label=0, start=0.5, end=1.0))
    out, settings = tmp_path / "set", {"codec": RemuxCodec(), "side": 64}
    assert build(records, tmp_path / "alone", **settings).refused == {"variable_rate": 1}
    info = build(records, out, fallback=H264Codec(gop=8), **settings)
    shards = open_folder(out)
    assert info.refused == {} and [shards.row(sample).codec for sample in range(6)] == [0, 0, 0, 0, 1, 0]
    part = shards.row(5)
    assert part.num_frames == len(range(15, 30)) and part.units.frame.tolist() == [-3, -3, 9] and part.units.after == 6
    assert not list(verify_shards(shards, deep=True))
    reader = Reader(shards)
    whole, cut = (reader.read(sample, np.arange(count)) for sample, count in ((0, FRAMES), (5, part.num_frames)))
    assert all(np.array_equal(cut.pictures[frame], whole.pictures[15 + frame]) for frame in range(part.num_frames))
    assert cut.frames_decoded == 18 and cut.bytes_read == int(part.units.size.sum())
    with rhofast.clips(shards, batch_size=6, num_frames=4, size=32, device="cpu") as loader:
        assert sorted(next(loader).sample.tolist()) == list(range(6))
    again = build(records, tmp_path / "again", fallback=H264Codec(gop=8), **settings)
    assert again.shards == info.shards


def test_a_damaged_member_is_found(sources: dict[str, Path], tmp_path: Path) -> None:
    build([VideoRecord(key="one", path=sources["h264"])], tmp_path / "set", codec=RemuxCodec())
    shards = open_folder(tmp_path / "set")
    damage_unit(shards, 0, 2)
    assert any("frames 12-23: checksum mismatch" in str(problem) for problem in verify_shards(shards))
    with pytest.raises(SampleError, match="unit 2: checksum mismatch"):
        Reader(shards).read(0, np.array([13]))
    assert len(Reader(shards).read(0, np.array([3, 30])).pictures) == 2


@pytest.mark.parametrize(("matrix", "full"), [("bt709", False), ("bt601", False), ("bt709", True), ("bt2020", False)])
def test_colors_are_those_that_the_source_says(matrix: str, full: bool, tmp_path: Path) -> None:
    path = write_video(find_ffmpeg(), tmp_path / "video.mp4", "-c:v", "libx264", "-qp", "1", matrix=matrix, full=full)
    member = stored(path, tmp_path / "member")
    pictures, _ = read(member, tmp_path / "member", [2])
    assert np.abs(corners_of(pictures[2]) - UPRIGHT).max() <= 4
    part = part_of(member, tmp_path / "member", [2])
    on_device = RemuxCodec().trim(part, ["h264"])
    assert (on_device is not None) == (matrix == "bt601")  # DALI takes everything for BT.601 of limited range


@pytest.mark.parametrize("name", ["h264", "hevc"])
def test_a_device_gets_the_wanted_packets_as_a_file(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    member, rgb = stored(sources[name], tmp_path / "member"), shown_rgb(sources[name])
    part = part_of(member, tmp_path / "member", [2, 15, 16, 38])
    assert RemuxCodec().trim(part, []) is None
    stream = RemuxCodec().trim(part, [name])
    assert stream is not None and stream.frames.tolist() == [2, 15, 16, 38]
    (tmp_path / "stream.mp4").write_bytes(stream.content.tobytes())
    found = shown_rgb(tmp_path / "stream.mp4")
    assert len(found) < FRAMES
    for number, frame in zip(stream.wanted, stream.frames, strict=True):
        assert np.array_equal(found[number], rgb[frame])
