"""Damage in what is not kept refuses no video, and changes no byte of the member; damage in a picture still does."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.ingest.ffmpeg_messages import pictures_are_whole, read_messages
from rhofast.ingest.ogg_pages import video_pages_are_whole
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo, probe
from rhofast.ingest.transcode import TranscodeSettings, transcode

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "10")
KINDS = {
    "mkv": (*X264, "-c:a", "libmp3lame"),
    "mp4": (*X264, "-c:a", "aac"),
    "avi": ("-c:v", "mpeg4", "-q:v", "3", "-c:a", "ac3"),
    "ts": ("-c:v", "mpeg2video", "-q:v", "3", "-c:a", "mp2"),
    "webm": ("-c:v", "libvpx", "-b:v", "1M", "-deadline", "realtime", "-c:a", "libvorbis"),
    "ogv": ("-c:v", "libtheora", "-q:v", "7", "-c:a", "libvorbis"),
}
NAL = b"\0\0\0\1"


def run(*arguments: str | Path) -> None:
    command = [FFMPEG, "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def make(path: Path, *encoder: str) -> Path:
    """A second of moving pictures and noise."""
    picture = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=1")
    sound = ("-f", "lavfi", "-i", "anoisesrc=duration=1:sample_rate=44100") if "-c:a" in encoder else ()
    run(*picture, *sound, *encoder, path)
    return path


def stored(path: Path) -> bytes:
    out = path.with_suffix(".member")
    out.unlink(missing_ok=True)
    settings = TranscodeSettings(short_side=64)
    return transcode(path, probe(path), JpegCodec(quality=3), settings, out).read_bytes()


def spoil(path: Path, kind: str, rng: np.random.Generator) -> Path:
    """The same file with other bytes in every packet of the first stream of a kind, not in their headers."""
    content, found = bytearray(path.read_bytes()), 0
    with av.open(str(path)) as container:
        for packet in container.demux(**{kind: 0}):
            piece = bytes(packet)[:24]
            at = content.find(piece) if len(piece) == 24 else -1
            if at >= 0:
                content[at + 4 : at + 24] = rng.integers(2, 254, 20, dtype=np.uint8).tobytes()
                found += 1
    assert found > 3
    target = path.with_name(f"spoiled.{path.name}")
    target.write_bytes(content)
    return target


SOURCE = SourceInfo(
    container="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    decoder="h264",
    stream=0,
    fps=Fraction(25),
    frames=25,
    seconds=1.0,
)
OPENED = b"[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'x.mp4':\n"


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_sound_changes_nothing(suffix: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"x.{suffix}", *KINDS[suffix])
    assert stored(spoil(path, "audio", np.random.default_rng(1))) == stored(path)


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_pictures_are_refused_with_and_without_damaged_sound(suffix: str, tmp_path: Path) -> None:
    path = spoil(make(tmp_path / f"x.{suffix}", *KINDS[suffix]), "video", np.random.default_rng(1))
    for each in (path, spoil(path, "audio", np.random.default_rng(1))):
        with pytest.raises(RefusedError) as refused:
            stored(each)
        assert refused.value.reason in (Refusal.DAMAGED, Refusal.NO_FRAMES, Refusal.NOT_A_VIDEO)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("h264", b"\x06\x80\x40" + bytes(range(1, 57)) + b"\x80"),  # says 64 bytes, has 56
        ("hevc", b"\x4e\x01\x80\x40" + bytes(range(1, 57)) + b"\x80"),
    ],
    ids=["h264", "hevc"],
)
def test_a_truncated_sei_message_refuses_no_video(codec: str, message: bytes, tmp_path: Path) -> None:
    encoder = X264 if codec == "h264" else ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=10:bframes=0")
    plain = make(tmp_path / f"plain.{codec}", *encoder, "-bf", "0")
    units = plain.read_bytes().replace(NAL, NAL[1:]).split(NAL[1:])[1:]
    picture = (1, 5) if codec == "h264" else range(32)
    kind = [unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63 for unit in units]
    noisy = tmp_path / f"noisy.{codec}"
    noisy.write_bytes(
        b"".join((NAL + message if kind[n] in picture else b"") + NAL + unit for n, unit in enumerate(units))
    )
    paths = []
    for bare in (plain, noisy):
        paths.append(bare.with_suffix(".mkv"))
        run("-framerate", "25", "-i", bare, "-c", "copy", "-bsf:v", "setts=ts=N/25/TB", paths[-1])
    assert pictures_are_whole(paths[1], probe(paths[1]))
    assert stored(paths[1]) == stored(paths[0])


EXIF = {"whole": b"II*\0\x08\0\0\0\1\0\x0f\1\2\0\3\0\0\0Me\0\0\0\0\0\0", "broken": b"II*\0\xff\xff\xff\xff"}


def motion_jpeg(folder: Path, exif: bytes | None) -> Path:
    for number in range(5):
        image = Image.new("RGB", (96, 64), (40 * number, 80, 200))
        image.save(folder / f"{number}.jpg", exif=b"Exif\0\0" + exif if exif else b"")
    run("-framerate", "10", "-i", folder / "%d.jpg", "-c", "copy", folder / "x.mov")
    return folder / "x.mov"


@pytest.mark.parametrize("exif", ["whole", "broken"])
def test_motion_jpeg_with_exif_is_stored(exif: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = motion_jpeg(tmp_path, EXIF[exif])
    source = probe(path)
    assert (source.fps, source.frames, source.rotation) == (10, 5, 0)
    capfd.readouterr()
    found = stored(path)
    assert capfd.readouterr() == ("", "")
    assert found == stored(motion_jpeg(tmp_path, None))


def test_a_codec_without_decoder_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "x.mp4", *X264)
    for tag, name in ((b"xyzw", "unknown codec xyzw"), (b"evc1", "evc")):
        other = tmp_path / "other.mp4"
        other.write_bytes(path.read_bytes().replace(b"avc1", tag))
        with pytest.raises(RefusedError) as refused:
            probe(other)
        assert (refused.value.reason, refused.value.detail) == (Refusal.NO_DECODER, name)
    said = read_messages(OPENED + b"[error] Decoding requested, but no decoder found for: h264\n", SOURCE)
    assert said.no_decoder


@pytest.mark.parametrize("place", ["sound", "pictures", "end"])
def test_pages_of_an_ogg_file_tell_whose_is_damaged(place: str, tmp_path: Path) -> None:
    path = make(tmp_path / "x.ogv", *KINDS["ogv"])
    assert video_pages_are_whole(path)
    if place == "end":
        path.write_bytes(path.read_bytes()[:-3000])
    else:
        path = spoil(path, "audio" if place == "sound" else "video", np.random.default_rng(1))
    assert video_pages_are_whole(path) == (place == "sound")


@pytest.mark.parametrize(
    ("before", "after", "damage", "doubt"),
    [
        (b"[aac @ 0x1] [error] Reserved bit set.\n", b"", False, False),
        (b"[h264 @ 0x1] [error] no frame!\n", b"", False, False),  # it is decoded again behind the opening
        (b"[mov,mp4,m4a,3gp,3g2,mj2 @ 0x1] [error] error reading header\n", b"", True, False),
        (b"[in#0 @ 0x1] [error] stream 1, missing mandatory atoms, broken header\n", b"", False, False),
        (b"[in#0 @ 0x1] [error] stream 0, missing mandatory atoms, broken header\n", b"", True, False),
        (b"", b"[h264 @ 0x1] [error] SEI type 128 size 64 truncated at 57\n", False, True),
        (b"", b"[h264 @ 0x1] [warning] Increasing reorder buffer to 2\n", False, False),
        (b"", b"[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [error] Error submitting packet to decoder\n", True, False),
        (b"", b"[in#0/mov,mp4,m4a,3gp,3g2,mj2 @ 0x1] [error] Error during demuxing: Input/output error\n", True, False),
        (b"", b"[null @ 0x1] [error] Application provided invalid, non monotonically increasing dts\n", False, False),
        (b"", b"[mp4 @ 0x1] [error] Application provided invalid, non monotonically increasing dts\n", True, False),
        (b"", b"[fatal] Conversion failed!\n", True, False),
    ],
)
def test_messages_are_told_apart_by_who_speaks_and_when(before: bytes, after: bytes, damage: bool, doubt: bool) -> None:
    found = read_messages(before + OPENED + after, SOURCE)
    assert (bool(found.damage), bool(found.doubt), found.no_decoder) == (damage, doubt, False)


def test_a_file_that_cannot_be_opened_has_a_message() -> None:
    found = read_messages(b"[h264 @ 0x1] [error] no frame!\n[error] Error opening input file x.mp4.\n", SOURCE)
    assert found.damage == "Error opening input file x.mp4."


def test_a_message_is_the_same_in_every_run() -> None:
    said = [b"[h264 @ 0x%x] [error] mmco: unref short failure\n" % address for address in (0x55CE3B6E6DC0, 0x1)]
    assert {read_messages(OPENED + each, SOURCE).doubt for each in said} == {"[h264] mmco: unref short failure"}
