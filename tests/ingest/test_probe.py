"""Whatever a camera, an editor or a website makes of a video: every frame upright, in order, in time and in color; or
refused for a reason. Runs with the system's ffmpeg and with the one that comes along.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.ingest import transcode as transcoding
from rhofast.ingest.probe import Refusal, RefusedError, probe
from rhofast.ingest.transcode import TranscodeSettings, transcode
from tests.helpers.videos import FRAMES, RATE, UPRIGHT, corners_of, gray_of, number_of, paint, write_video

PROGRAMS = list(dict.fromkeys(filter(None, [shutil.which("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe()])))
MAKER = PROGRAMS[0]
SETTINGS = TranscodeSettings(short_side=64)
Pictures = npt.NDArray[np.uint8]


@pytest.fixture(params=PROGRAMS, ids=[f"ffmpeg{number}" for number in range(len(PROGRAMS))])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Transcoding uses this program."""
    monkeypatch.setattr(transcoding, "find_ffmpeg", lambda: request.param)
    transcoding._has_filter.cache_clear()
    return str(request.param)


def encoders() -> set[str]:
    listed = subprocess.run([MAKER, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True)
    return {line.split()[1] for line in listed.stdout.splitlines() if line.startswith(" V")}


def stored(path: Path, scratch: Path, settings: TranscodeSettings = SETTINGS, codec: object = None) -> Pictures:
    """The pictures of the member that this source becomes: u8[N, H, W, 3]."""
    out = scratch / "member"
    out.unlink(missing_ok=True)
    with av.open(str(transcode(path, probe(path), codec or JpegCodec(quality=2), settings, out))) as container:  # type: ignore[arg-type]
        return np.array([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def numbers_in(pictures: Pictures) -> list[int]:
    return [round(number_of(picture)) for picture in pictures]


def assert_right(pictures: Pictures, *, frames: int = FRAMES, color: float = 12) -> None:
    """Upright, in order, all of them, and of the colors that were painted."""
    assert numbers_in(pictures) == list(range(frames))
    for picture in pictures:
        np.testing.assert_allclose(corners_of(picture), UPRIGHT, atol=color)


X264 = ("-c:v", "libx264", "-qp", "4")
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, object]]] = {
    "mp4 h264": ("mp4", X264, {}),
    "mp4 h264 B-frames open gop": ("mp4", ("-c:v", "libx264", "-qp", "4", "-bf", "3", "-g", "4"), {}),
    "mkv h264 10 bit 422": ("mkv", (*X264, "-pix_fmt", "yuv422p10le"), {"bits": 10, "chroma": "422"}),
    "mp4 h264 444": ("mp4", (*X264, "-pix_fmt", "yuv444p"), {"chroma": "444"}),
    "mp4 hevc 10 bit": ("mp4", ("-c:v", "libx265", "-x265-params", "qp=4:log-level=none"), {"bits": 10}),
    "mp4 hevc 12 bit 444": (
        "mp4",
        ("-c:v", "libx265", "-x265-params", "qp=4:log-level=none"),
        {"bits": 12, "chroma": "444"},
    ),
    "mp4 av1": ("mp4", ("-c:v", "libsvtav1", "-crf", "4", "-preset", "10"), {"size": (96, 72)}),
    "webm vp8": ("webm", ("-c:v", "libvpx", "-b:v", "2M"), {}),
    "webm vp9": ("webm", ("-c:v", "libvpx-vp9", "-b:v", "2M"), {}),
    "avi mpeg4": ("avi", ("-c:v", "mpeg4", "-q:v", "1", "-bf", "2"), {}),
    "avi mjpeg": ("avi", ("-c:v", "mjpeg", "-q:v", "2"), {"full": True}),
    "mpg mpeg1": ("mpg", ("-c:v", "mpeg1video", "-q:v", "1", "-r", "25"), {"rate": "25"}),
    "ts mpeg2": ("ts", ("-c:v", "mpeg2video", "-q:v", "1", "-r", "25"), {"rate": "25"}),
    "mov prores": ("mov", ("-c:v", "prores_ks", "-profile:v", "3"), {"bits": 10, "chroma": "422"}),
    "mkv ffv1 rgb": ("mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0"), {"rgb": True}),
    "flv": ("flv", ("-c:v", "flv", "-q:v", "2"), {}),
    "fragmented mp4": ("mp4", (*X264, "-movflags", "frag_keyframe+empty_moov"), {}),
    "live mkv": ("mkv", (*X264, "-f", "matroska", "-live", "1"), {}),
    "bt709": ("mp4", X264, {"matrix": "bt709"}),
    "bt2020": ("mp4", X264, {"matrix": "bt2020"}),
    "bt709 full range": ("mp4", X264, {"matrix": "bt709", "full": True}),
    "bt601 full range": ("mp4", X264, {"full": True}),
    "17x33": ("mkv", ("-c:v", "ffv1"), {"size": (51, 33), "chroma": "444"}),
    "one frame": ("mp4", X264, {"frames": 1}),
    "tiny": ("mkv", ("-c:v", "ffv1"), {"size": (16, 16), "chroma": "444"}),
    "wide": ("mkv", ("-c:v", "ffv1"), {"size": (256, 24)}),
    "late": ("mp4", (*X264, "-output_ts_offset", "3.05"), {}),
    "late by the clock of the world": ("ts", (*X264, "-output_ts_offset", "95000"), {}),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, have = tmp_path_factory.mktemp("inputs"), encoders()
    made = {}
    for number, (kind, (suffix, encoder, how)) in enumerate(KINDS.items()):
        if encoder[1] in have:
            made[kind] = write_video(MAKER, folder / f"{number}.{suffix}", *encoder, **how)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_comes_out_right(kind: str, sources: dict[str, Path], program: str, tmp_path: Path) -> None:
    if kind not in sources:
        pytest.skip(f"{MAKER} has no encoder for it")
    pictures = stored(sources[kind], tmp_path)
    how = KINDS[kind][2]
    coarse = kind in ("tiny", "17x33", "wide", "webm vp8", "flv", "ts mpeg2", "mpg mpeg1", "webm vp9")
    assert_right(pictures, frames=int(str(how.get("frames", FRAMES))), color=30 if coarse else 12)
    width, height = how.get("size", (64, 48))  # type: ignore[misc]
    longer, shorter = max(width, height), min(width, height)
    assert min(pictures.shape[1:3]) == 64
    assert abs(max(pictures.shape[1:3]) - 64 * longer / shorter) <= 8


@pytest.mark.parametrize("codec", [H264Codec(quality=8), HevcCodec(quality=8)], ids=["h264", "hevc"])
@pytest.mark.parametrize("kind", ["bt709", "bt601 full range", "mkv ffv1 rgb"])
def test_streams_have_the_same_colors(
    kind: str, codec: H264Codec, sources: dict[str, Path], program: str, tmp_path: Path
) -> None:
    assert_right(stored(sources[kind], tmp_path, codec=codec))


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_rotated_video_is_stored_upright(turn: int, program: str, tmp_path: Path) -> None:
    lying = write_video(
        MAKER,
        tmp_path / "lying.mp4",
        *X264,
        shown=np.array([np.rot90(paint(n, (64, 48)), turn // 90) for n in range(FRAMES)]),
    )
    path = tmp_path / "rotated.mp4"
    with av.open(str(lying)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(-turn)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    pictures = stored(path, tmp_path)
    assert_right(pictures)
    assert pictures.shape[1:3] == (64, 80)


@pytest.mark.parametrize(("sar", "shape"), [("2/1", (64, 176)), ("1/2", (96, 64)), ("64/45", (64, 128))])
def test_pixels_become_square(sar: str, shape: tuple[int, int], program: str, tmp_path: Path) -> None:
    path = write_video(MAKER, tmp_path / "x.mp4", *X264, filters=f"setsar={sar}")
    pictures = stored(path, tmp_path)
    assert_right(pictures)
    assert pictures.shape[1:3] == shape


def write_timed(path: Path, times: list[float], *, base: int = 90_000) -> Path:
    """Frames shown at these times, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, base)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(paint(number, (64, 48)), format="rgb24")
            frame.pts, frame.time_base = round(time * base), Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "times",
    [
        [0, 0.1, 0.2, 1.2, 1.3, 1.4],  # a gap
        [0, 0.01, 0.02, 0.5, 1.0, 1.5],  # a burst
        [0, 0.33, 0.4, 0.7, 1.1, 1.15],
        [2.0, 2.1, 2.2, 2.3, 2.4, 2.9],  # late, too
    ],
)
@pytest.mark.parametrize("rate", [None, 10.0, 30.0])
def test_a_variable_rate_becomes_a_constant_one_by_time(
    times: list[float], suffix: str, rate: float | None, program: str, tmp_path: Path
) -> None:
    path = write_timed(tmp_path / f"x.{suffix}", times)
    settings = TranscodeSettings(short_side=64, fps=rate)
    fps = float(transcoding.output_fps(probe(path), settings))
    shown = numbers_in(stored(path, tmp_path, settings))
    assert abs(len(shown) - (times[-1] - times[0]) * fps) <= 2
    for i, number in enumerate(shown):
        time = times[0] + i / fps
        near = [n for n, begin in enumerate(times) if begin <= time + 0.5 / fps + 1e-3]
        ends = [*times[1:], np.inf]
        allowed = {n for n in near if ends[n] >= time - 0.5 / fps - 1e-3}
        assert number in allowed, f"frame {i} at {time:.3f} s shows {number}, not one of {allowed}"


def test_only_what_is_inside_the_edit_list_is_shown(program: str, tmp_path: Path) -> None:
    whole = write_video(MAKER, tmp_path / "whole.mp4", *X264, "-g", "6", "-bf", "0", frames=12)
    cut = tmp_path / "cut.mp4"
    command = [MAKER, "-v", "error", "-ss", "0.4", "-i", str(whole), "-c", "copy", str(cut)]
    subprocess.run(command, check=True)
    assert numbers_in(stored(cut, tmp_path)) == list(range(4, 12))


def test_the_video_is_stored_and_not_its_cover(program: str, tmp_path: Path) -> None:
    video = write_video(MAKER, tmp_path / "video.mp4", *X264)
    cover = write_video(MAKER, tmp_path / "cover.png", "-frames:v", "1", frames=1, rgb=True)
    both = tmp_path / "both.mp4"
    command = [MAKER, "-v", "error", "-i", str(cover), "-i", str(video), "-map", "0", "-map", "1", "-c", "copy"]
    subprocess.run([*command, "-disposition:v:0", "attached_pic", str(both)], check=True)
    assert_right(stored(both, tmp_path))


def test_ticks_of_a_clock_are_no_frame_rate(program: str, tmp_path: Path) -> None:
    path = write_timed(tmp_path / "x.mkv", [n / RATE + (0.001 if n % 2 else 0) for n in range(FRAMES)], base=1000)
    assert len(stored(path, tmp_path)) == FRAMES


def test_a_picture_that_is_much_longer_than_wide_is_refused(tmp_path: Path) -> None:
    path = write_video(MAKER, tmp_path / "x.mkv", "-c:v", "ffv1", size=(680, 40))
    with pytest.raises(RefusedError) as refused:
        probe(path)
    assert refused.value.reason == Refusal.ODD_SHAPE


def test_high_dynamic_range_is_tone_mapped(program: str, tmp_path: Path) -> None:
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    path = write_video(MAKER, tmp_path / "x.mkv", "-c:v", "ffv1", bits=10, matrix="bt2020", filters=tags)
    assert probe(path).hdr
    pictures = stored(path, tmp_path)
    assert len(pictures) == FRAMES
    middles = [number_of(picture) for picture in pictures]
    assert np.all(np.diff(middles) > 0)  # brighter and brighter, though not by the numbers that were painted
    assert transcoding._has_filter("zscale") == (middles[0] < -0.3)  # the dark is darker than its code


def test_interlaced_pictures_are_made_whole(program: str, tmp_path: Path) -> None:
    encoder = ("-c:v", "mpeg2video", "-q:v", "1", "-flags", "+ildct+ilme")
    path = write_video(MAKER, tmp_path / "x.mkv", *encoder, rate="25", size=(64, 64), filters="setfield=tff")
    assert probe(path).interlaced
    assert numbers_in(stored(path, tmp_path)) == list(range(FRAMES))


def test_4k_comes_out_right(program: str, tmp_path: Path) -> None:
    path = write_video(
        MAKER, tmp_path / "x.mp4", "-c:v", "libx264", "-preset", "ultrafast", size=(3840, 2160), frames=2
    )
    assert_right(stored(path, tmp_path), frames=2)


@pytest.mark.parametrize("part", [slice(0, 0.5), slice(0, 0.9), slice(0.3, 1)], ids=["half", "most", "end"])
def test_a_part_of_a_file_is_refused(part: slice, sources: dict[str, Path], program: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "part.mp4", sources["mp4 h264"].read_bytes()
    path.write_bytes(whole[int(part.start * len(whole)) : int(part.stop * len(whole))])
    with pytest.raises(RefusedError):
        stored(path, tmp_path)


def test_the_painted_numbers_can_be_told_apart() -> None:
    assert [round(number_of(paint(n, (64, 48)))) for n in range(12)] == list(range(12))
    assert gray_of(12) < 256


def test_a_jump_in_time_does_not_become_a_day_of_one_picture(tmp_path: Path) -> None:
    path = write_timed(tmp_path / "x.mkv", [*(n / 10 for n in range(15)), 1440], base=1000)
    with pytest.raises(RefusedError, match=r"16 pictures have timestamps over 0\.4 h"):
        stored(path, tmp_path, TranscodeSettings(short_side=64, fps=30))


def joined(path: Path, *parts: Path) -> Path:
    """The videos one after another, packets untouched."""
    listed = path.with_suffix(".txt")
    listed.write_text("".join(f"file '{part}'\n" for part in parts))
    command = [MAKER, "-v", "error", "-f", "concat", "-safe", "0", "-i", str(listed), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("size", [(128, 96), (96, 96)], ids=["larger", "another aspect"])
@pytest.mark.parametrize("chroma", ["420", "444"])
def test_no_picture_is_lost_where_size_or_format_changes(
    size: tuple[int, int], chroma: str, program: str, tmp_path: Path
) -> None:
    pictures = np.array([paint(number, size) for number in range(FRAMES, 2 * FRAMES)])
    first = write_video(MAKER, tmp_path / "first.ts", *X264)
    second = write_video(MAKER, tmp_path / "second.ts", *X264, shown=pictures, chroma=chroma)
    found = stored(joined(tmp_path / "both.mkv", first, second), tmp_path)
    assert_right(found, frames=2 * FRAMES)
    assert found.shape[1:3] == (64, 80)


MATRICES = {
    (1, 0, 0, 1): (False, 0),
    (0, 1, -1, 0): (False, 90),
    (-1, 0, 0, -1): (False, 180),
    (0, -1, 1, 0): (False, 270),
    (-1, 0, 0, 1): (True, 0),
    (0, -1, -1, 0): (True, 90),
    (1, 0, 0, -1): (True, 180),
    (0, 1, 1, 0): (True, 270),
}


def with_matrix(source: Path, path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same MP4 with another display matrix (ISO/IEC 14496-12, 8.3.2), 16.16 fixed point: x' = a x + c y, ..."""
    content = bytearray(source.read_bytes())
    at = content.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_video_is_turned_and_mirrored_as_its_display_matrix_says(
    matrix: tuple[int, int, int, int], program: str, tmp_path: Path
) -> None:
    a, b, c, d = matrix
    lying = []
    for number in range(2):
        upright = paint(number, (64, 48))
        y, x = np.mgrid[: 64 if a == 0 else 48, : 48 if a == 0 else 64]
        across, down = a * x + c * y, b * x + d * y
        lying.append(upright[down - down.min(), across - across.min()])
    path = write_video(MAKER, tmp_path / "lying.mp4", *X264, shown=np.array(lying))
    path = with_matrix(path, tmp_path / "turned.mp4", matrix)
    source = probe(path)
    assert (source.mirrored, source.rotation) == MATRICES[matrix]
    assert_right(stored(path, tmp_path), frames=2)


def test_a_picture_on_its_corner_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    path = with_matrix(sources["mp4 h264"], tmp_path / "x.mp4", (1, 1, -1, 1))
    with pytest.raises(RefusedError, match="45 degrees"):
        probe(path)


def test_a_bare_stream_has_the_length_of_its_pictures(program: str, tmp_path: Path) -> None:
    path = write_video(MAKER, tmp_path / "x.h264", *X264)
    source = probe(path)
    assert (source.fps, source.seconds) == (RATE, pytest.approx(FRAMES / RATE))
    assert_right(stored(path, tmp_path))


def test_a_jump_of_a_broadcast_clock_is_no_pause(tmp_path: Path) -> None:
    parts = [
        write_video(MAKER, tmp_path / f"{late}.ts", *X264, "-output_ts_offset", late) for late in ("0", "5000", "90")
    ]
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    source = probe(path)
    assert source.fps == RATE and source.seconds == pytest.approx(3 * FRAMES / RATE, abs=0.21)


def test_the_last_picture_of_an_animation_stays_as_long_as_it_says(program: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(paint(number, (64, 48))) for number in range(3)]
    path = tmp_path / "x.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 500])
    assert probe(path).seconds == pytest.approx(0.7)
    assert numbers_in(stored(path, tmp_path)) in ([0, 1] + count * [2] for count in (5, 6))


@pytest.mark.parametrize("kind", ["png", "jpg", "ycgco", "slow", "hostile"])
def test_what_cannot_be_shown_rightly_is_refused(kind: str, program: str, tmp_path: Path) -> None:
    path, reason = tmp_path / f"x.{kind}", Refusal.NOT_A_VIDEO
    if kind in ("png", "jpg"):
        write_video(MAKER, path, "-frames:v", "1", frames=1, rgb=kind == "png", full=True)
    elif kind == "ycgco":
        encoder = (*X264, "-f", "matroska")
        write_video(MAKER, path, *encoder, tagged=False, filters="setparams=colorspace=ycgco")
        reason = Refusal.ODD_COLORS
    elif kind == "slow":
        pictures = [Image.fromarray(paint(number, (64, 48))) for number in range(3)]
        pictures[0].save(path, format="gif", save_all=True, append_images=pictures[1:], duration=[100, 100, 655_350])
    else:  # a few bytes that ask for 6 GB
        begin = b"GIF89a" + struct.pack("<HH", 40_000, 40_000) + b"\x80\0\0" + 3 * b"\0" + 3 * b"\xff"
        path.write_bytes(begin + b",\0\0\0\0\x02\0\x02\0\0\x02\x03\x44\x34\x05\0;")
        reason = Refusal.DAMAGED
    with pytest.raises(RefusedError) as refused:
        stored(path, tmp_path)
    assert refused.value.reason == reason


def test_high_dynamic_range_needs_not_say_more_than_its_curve(program: str, tmp_path: Path) -> None:
    how = {"bits": 10, "matrix": "bt2020", "tagged": False}
    said = "setparams=color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"
    whole = write_video(MAKER, tmp_path / "whole.mkv", "-c:v", "ffv1", filters=said, **how)  # type: ignore[arg-type]
    little = write_video(MAKER, tmp_path / "little.mkv", "-c:v", "ffv1", filters=said[:29], **how)  # type: ignore[arg-type]
    if transcoding._has_filter("zscale"):
        np.testing.assert_array_equal(stored(little, tmp_path), stored(whole, tmp_path))


def test_an_mp4_that_was_cut_short_or_not_finished_says_so(tmp_path: Path) -> None:
    def box(kind: bytes, length: int, *, wide: bool = False) -> bytes:
        head = struct.pack(">I4sQ", 1, kind, length) if wide else struct.pack(">I4s", length, kind)
        return head + bytes(length - len(head))

    path = tmp_path / "x.mp4"
    begin = box(b"ftyp", 24)
    for content, says in (
        (begin + box(b"mdat", 4000)[:300], "cut short: it has 324 of at least 4,024 bytes"),
        (begin + box(b"mdat", 4000, wide=True)[:300], "cut short: it has 324 of at least 4,024 bytes"),
        (begin + box(b"mdat", 4000), "not finished: an MP4 without its table of contents (moov)"),
        (b"no video at all", "Invalid data found when processing input"),
    ):
        path.write_bytes(content)
        with pytest.raises(RefusedError) as caught:
            probe(path)
        assert (caught.value.reason, caught.value.detail) == (Refusal.NOT_A_VIDEO, says)
