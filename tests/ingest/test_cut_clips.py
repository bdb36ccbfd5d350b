"""Every picture of a constant rate is stored once, at this rate: cut clips, empty slots, very short files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.ingest.probe import probe
from rhofast.ingest.transcode import TranscodeSettings, transcode
from tests.helpers.bars import numbers_in, run_ffmpeg, write_bars

NTSC = Fraction(30_000, 1001)
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "250", "-pix_fmt", "yuv420p")


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
    whole = write_bars(tmp_path / f"whole.{suffix}", rate, 240, *X264)
    path = tmp_path / f"cut.{suffix}"
    run_ffmpeg("-ss", "2.3", "-i", whole, "-t", seconds, "-c", "copy", path)
    source = numbers_in(path)
    assert len(source) > 4
    assert stored(path) == (rate, source)
    with path.open("rb") as file:
        member = CopyCodec().index_member(file)
    assert (member.fps, member.num_frames) == (rate, len(source))


def test_an_empty_slot_of_an_avi_shows_the_picture_before_it(tmp_path: Path) -> None:
    removed = (3, 8, 14)
    chosen = "select=" + "*".join(f"not(eq(n\\,{number}))" for number in removed)
    path = write_bars(
        tmp_path / "x.avi", 10, 20, "-vf", chosen, "-fps_mode", "passthrough", "-c:v", "mpeg4", "-q:v", "2"
    )
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
    path = write_bars(tmp_path / f"x.{suffix}", rate, count, *SHORT[suffix])
    assert stored(path) == (rate, list(range(count)))
