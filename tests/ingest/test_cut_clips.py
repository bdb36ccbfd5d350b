"""Every picture of a constant rate is stored once, at this rate: cut clips, empty slots, very short files."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest

from rhofast.data.codecs.containers import open_container
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.ingest.probe import probe
from rhofast.ingest.transcode import TranscodeSettings, transcode

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
NTSC = Fraction(30_000, 1001)
BITS, BAR, HEIGHT = 8, 16, 64
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "250", "-pix_fmt", "yuv420p")


def picture(number: int) -> npt.NDArray[np.uint8]:
    """A picture that shows its number as bright and dark bars."""
    bars = [210 if number >> bit & 1 else 40 for bit in range(BITS)]
    return np.tile(np.repeat(np.array(bars, dtype=np.uint8), BAR), (HEIGHT, 1))


def numbers_in(path: Path) -> list[int]:
    """The number that each picture of a video shows, in the order of decoding by PyAV."""
    with path.open("rb") as file, open_container(file, mp4=False) as container:
        bars = [frame.to_ndarray(format="gray")[:, BAR // 2 :: BAR].mean(axis=0) for frame in container.decode(video=0)]
    return [sum(int(level > 125) << bit for bit, level in enumerate(levels)) for levels in bars]


def run(*arguments: str | Path, pictures: range = range(0)) -> None:
    command = [FFMPEG, "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, input=b"".join(picture(number).tobytes() for number in pictures))


def write(path: Path, rate: Fraction | int, count: int, *encoder: str) -> Path:
    raw = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{BITS * BAR}x{HEIGHT}", "-r", str(rate), "-i", "pipe:0")
    run(*raw, *encoder, path, pictures=range(count))
    return path


def stored(path: Path) -> tuple[Fraction, list[int]]:
    """The rate at which a video is stored, and the pictures."""
    source, out = probe(path), path.with_suffix(".member")
    transcode(path, source, JpegCodec(), TranscodeSettings(short_side=64), out)
    return source.fps, numbers_in(out)


@pytest.mark.parametrize("seconds", ["1", "3"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize("rate", [Fraction(25), NTSC], ids=str)
def test_a_clip_that_was_cut_without_encoding_keeps_rate_and_pictures(
    rate: Fraction, suffix: str, seconds: str, tmp_path: Path
) -> None:
    whole = write(tmp_path / f"whole.{suffix}", rate, 240, *X264)
    path = tmp_path / f"cut.{suffix}"
    run("-ss", "2.3", "-i", whole, "-t", seconds, "-c", "copy", path)
    source = numbers_in(path)
    assert len(source) > 4
    assert stored(path) == (rate, source)
    with path.open("rb") as file:
        member = CopyCodec().index_member(file)
    assert (member.fps, member.num_frames) == (rate, len(source))


def test_an_empty_slot_of_an_avi_shows_the_picture_before_it(tmp_path: Path) -> None:
    removed = (3, 8, 14)
    chosen = "select=" + "*".join(f"not(eq(n\\,{number}))" for number in removed)
    path = write(tmp_path / "x.avi", 10, 20, "-vf", chosen, "-fps_mode", "passthrough", "-c:v", "mpeg4", "-q:v", "2")
    expected = [number - 1 if number in removed else number for number in range(20)]
    assert stored(path) == (10, expected)


SHORT = {
    "asf": ("-c:v", "wmv2", "-q:v", "2"),
    "ts": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2"),
    "mpg": ("-c:v", "mpeg2video", "-q:v", "2"),
    "flv": ("-c:v", "flv", "-q:v", "2"),
    "mkv": X264,
}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("suffix", SHORT)
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30)], ids=str)
def test_a_very_short_video_keeps_rate_and_pictures(rate: Fraction, suffix: str, count: int, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{suffix}", rate, count, *SHORT[suffix])
    assert stored(path) == (rate, list(range(count)))
