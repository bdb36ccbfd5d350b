"""Segments are cut frame-exactly, from what they need of a file alone, and their file is read once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.types import VideoRecord
from rhofast.ingest import cut, kept_source, opened, store
from rhofast.ingest.opened import LastSource
from rhofast.ingest.packets import read_packets
from rhofast.ingest.probe import Refusal, RefusedError, probe
from rhofast.ingest.sample import make_sample
from rhofast.ingest.source import source_state
from rhofast.ingest.transcode import TranscodeSettings
from rhofast.ingest.writer import NewSample
from tests.helpers.bars import number_in, numbers_in, run_ffmpeg, write_bars
from tests.helpers.shards import REAL_VIDEOS

COUNT = 150
NTSC = Fraction(30_000, 1001)
GRAY = ("-pix_fmt", "yuv420p")
X264 = ("-c:v", "libx264", "-preset", "veryfast", *GRAY)
SETTINGS = TranscodeSettings(short_side=64)
MPEG4 = ("-c:v", "mpeg4", "-q:v", "2", *GRAY)


def _vfr(path: Path, *encoder: str) -> Path:
    chosen = "select=lt(mod(n*7\\,11)\\,5)"
    return write_bars(path, 60, COUNT, "-vf", chosen, "-fps_mode", "vfr", *encoder)


def _copied(path: Path, original: Path, *options: str) -> Path:
    """Copy the packets of a video; options come before the input."""
    run_ffmpeg(*options, "-i", original, "-c", "copy", path)
    return path


def _open_gop(path: Path, more: str = "") -> Path:
    return write_bars(path, 30, COUNT, *X264, "-x264-params", f"open-gop=1:bframes=3:keyint=22:b-adapt=0{more}")


def _x265(path: Path, parameters: str, *more: str) -> Path:
    params = ("-x265-params", f"log-level=0:pools=none:{parameters}")
    return write_bars(path, 25, COUNT, "-c:v", "libx265", "-preset", "veryfast", *GRAY, *more, *params)


KINDS: dict[str, Callable[[Path], Path]] = {
    "b_frames.mp4": lambda path: write_bars(path, 30, COUNT, *X264, "-g", "24", "-bf", "3"),
    "ntsc.mp4": lambda path: write_bars(path, NTSC, COUNT, *X264, "-g", "40"),
    "film.mkv": lambda path: write_bars(path, 24, COUNT, *X264, "-g", "24", "-bf", "2"),
    "open_gop.mp4": _open_gop,
    "open_plain.ts": lambda path: _open_gop(path, ":b-pyramid=none"),
    "hevc.mp4": lambda path: _x265(path, "keyint=20:bframes=4"),
    "hevc.ts": lambda path: _x265(path, "keyint=20:bframes=4", "-pix_fmt", "yuv420p10le"),
    "hevc_cut.mkv": lambda path: _copied(
        path, _x265(path.with_suffix(".whole.mkv"), "keyint=20:bframes=4"), "-ss", "1.9"
    ),
    "vfr.mp4": lambda path: _vfr(path, *X264, "-g", "20", "-bf", "3"),
    "vfr.mkv": lambda path: _vfr(path, *X264, "-g", "20"),
    "edit_list.mp4": lambda path: _copied(
        path, write_bars(path.with_suffix(".whole.mp4"), 30, COUNT, *X264, "-g", "24"), "-ss", "0.9"
    ),
    "late.mp4": lambda path: _copied(
        path, write_bars(path.with_suffix(".whole.mp4"), NTSC, COUNT, *X264, "-g", "24"), "-itsoffset", "2.7"
    ),
    "turned.mp4": lambda path: _copied(
        path, write_bars(path.with_suffix(".whole.mp4"), 30, COUNT, *X264, "-g", "24"), "-display_rotation", "180"
    ),
    "no_b_frames.avi": lambda path: write_bars(path, 25, COUNT, *X264, "-g", "20", "-bf", "0"),
    "broadcast.ts": lambda path: write_bars(path, 25, COUNT, "-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2"),
    "no_times.avi": lambda path: write_bars(path, 25, COUNT, *MPEG4, "-g", "20", "-bf", "2"),
    "program.mpg": lambda path: write_bars(path, 25, COUNT, "-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2"),
    "fields.mp4": lambda path: write_bars(
        path, 25, COUNT, *X264, "-g", "24", "-flags", "+ilme+ildct", "-x264-params", "tff=1"
    ),
    "colors.mkv": lambda path: write_bars(path, 25, COUNT, *MPEG4, "-g", "20", "-aspect", "3:1"),
}


@pytest.fixture(scope="session", params=KINDS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp("segments") / request.param)


def sample_of(
    path: Path,
    scratch: Path,
    *times: float | None,
    codec: Codec | None = None,
    settings: TranscodeSettings = SETTINGS,
    sources: LastSource | None = None,
) -> NewSample:
    start, end = times or (None, None)
    scratch.mkdir(parents=True)
    record = VideoRecord(key="x", path=path, start=start, end=end)
    sources = sources or LastSource()
    return make_sample(record, [codec or JpegCodec()], settings, scratch, sources=sources, state=source_state(path))


def pictures_of(sample: NewSample) -> list[bytes]:
    """The encoded pictures of a sample of codec jpeg."""
    content, units = sample.file.read_bytes(), sample.member.units
    return [content[begin : begin + size] for begin, size in zip(units.offset, units.size, strict=True)]


def shown_numbers(path: Path, rate: Fraction) -> list[int]:
    """The number that each frame of a video shows at a constant rate, by a decoder of its own and by time alone.

    Frame k shows the last picture whose time, rounded to frames, is not after k.
    """
    turned = path.name.startswith("turned")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = [
            (frame.pts, number_in(frame.to_ndarray(format="gray")[:: -1 if turned else 1, :: -1 if turned else 1]))
            for frame in container.decode(stream)
        ]
        constant, tick = probe(path).constant, stream.time_base
    first = decoded[0][0]
    numbers: list[int] = []
    for place, (time, number) in enumerate(decoded):
        frame = place if constant else floor((time - first) * tick * rate + Fraction(1, 2))
        numbers += numbers[-1:] * (frame - len(numbers))
        numbers[frame:] = [number]
    return numbers


def test_a_segment_has_the_frames_of_its_time(video: Path, tmp_path: Path) -> None:
    draw, sources = np.random.default_rng(3), LastSource()
    whole = sample_of(video, tmp_path / "whole", sources=sources)
    pictures, rate = pictures_of(whole), Fraction(whole.member.fps)
    numbers = shown_numbers(video, rate)
    stored = numbers_in(whole.file)
    most = min(len(stored), len(numbers))  # the last picture may be shown for longer, or not for a whole frame
    assert stored[:most] == numbers[:most] and most >= len(stored) - 5
    seconds = float(len(pictures) / rate)
    spans: list[tuple[float, float | None]] = [(0.0, 1.0), (seconds - 0.5, None), (1.0, seconds + 9)]
    spans += [(begin, begin + length) for begin, length in draw.uniform(0.1, seconds / 2, (4, 2)).round(2).tolist()]
    for place, (start, end) in enumerate(spans):
        sample = sample_of(video, tmp_path / str(place), start, end, sources=sources)
        last = float("inf") if end is None else end
        wanted = [k for k in range(len(pictures)) if start - 1e-6 <= k / rate < last - 1e-6]
        assert pictures_of(sample) == [pictures[k] for k in wanted], (start, end)
        assert numbers_in(sample.file) == [stored[k] for k in wanted]


@pytest.mark.parametrize("fps", [10.0, 50.0])
@pytest.mark.parametrize("kind", ["ntsc.mp4", "vfr.mkv"])
def test_frames_of_another_rate_are_those_of_the_whole_too(kind: str, fps: float, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path / kind)
    settings, sources = TranscodeSettings(short_side=64, fps=fps), LastSource()
    pictures = pictures_of(sample_of(path, tmp_path / "whole", settings=settings, sources=sources))
    cuts = [0.0, 0.33, 1.01, 1.9, None]
    held = [
        picture
        for place, (start, end) in enumerate(pairwise(cuts))
        for picture in pictures_of(
            sample_of(path, tmp_path / str(place), start, end, settings=settings, sources=sources)
        )
    ]
    assert held == pictures


def test_a_segment_is_decoded_from_the_key_frame_before_it(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, whole_calls = [], list[Path]()
    transcode = store.transcode

    def note(path: Path, *arguments: Any, **options: Any) -> Path:
        sources.append(options["window"].cut)
        whole_calls.append(path)
        return transcode(path, *arguments, **options)

    monkeypatch.setattr(store, "transcode", note)
    sample_of(video, tmp_path / "x", 1.5, 1.8)
    (used,) = sources
    assert used is not None and whole_calls != [video]
    assert used.first > 0 and len(used.times) < 60


def test_segments_of_h264_have_the_frames_too(tmp_path: Path) -> None:
    path = KINDS["b_frames.mp4"](tmp_path / "x.mp4")
    sample = sample_of(path, tmp_path / "x", 1.25, 2.5, codec=H264Codec(quality=10))
    assert numbers_in(sample.file) == list(range(38, 75))


@pytest.mark.parametrize("codec", [JpegCodec(), RemuxCodec(max_group=100)])
def test_segments_of_several_files_in_any_order_have_their_own_frames(codec: Codec, tmp_path: Path) -> None:
    """A file stays open for its next segment: a repeated, an overlapping or an earlier one, or one of another file."""
    paths = [KINDS[kind](tmp_path / kind) for kind in ("b_frames.mp4", "film.mkv")]
    rates, sources = [probe(path).fps for path in paths], LastSource()
    wanted = [
        (0, 2, 2.4),
        (0, 2, 2.4),
        (0, 0.4, 2.2),
        (1, 1, 1.5),
        (0, 1.2, 1.4),
        (1, 2, 2.5),
        (1, 0, 0.5),
        (0, 2, 2.4),
    ]
    for place, (which, start, end) in enumerate(wanted):
        sample = sample_of(paths[which], tmp_path / str(place), start, end, codec=codec, sources=sources)
        lead = -int(sample.member.units.frame[0])
        expected = range(ceil(start * rates[which]), ceil(end * rates[which]))
        assert numbers_in(sample.file)[lead : lead + sample.member.num_frames] == list(expected), (which, start, end)


@pytest.mark.skipif(not REAL_VIDEOS.exists(), reason="no real videos here")
@pytest.mark.parametrize("name", ["kinetics_a.mp4", "pancake.mkv", "lowfps_6.mp4", "scene_cuts.mp4", "ucf_style.avi"])
def test_segments_of_real_videos_equal_the_whole(name: str, tmp_path: Path) -> None:
    path, sources = REAL_VIDEOS / name, LastSource()
    whole = sample_of(path, tmp_path / "whole", sources=sources)
    pictures, rate = pictures_of(whole), Fraction(whole.member.fps)
    seconds = float(len(pictures) / rate)
    for place, (start, end) in enumerate([(0.3, 1.7), (seconds / 2, seconds / 2 + 1), (seconds - 1, None)]):
        wanted = [k for k in range(len(pictures)) if start - 1e-6 <= k / rate < (end or 1e9) - 1e-6]
        sample = sample_of(path, tmp_path / str(place), start, end, sources=sources)
        assert pictures_of(sample) == [pictures[k] for k in wanted]


# ---- what is uncertain ----


def test_a_jump_to_the_wrong_place_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KINDS["b_frames.mp4"](tmp_path / "x.mp4")
    source = probe(path)
    packets = read_packets(path, source)
    assert packets is not None
    planned = cut.plan_cut(packets, source, source.fps, 2.0, 2.5)
    assert planned is not None and planned.first > 0
    right, wrong = tmp_path / "right.mp4", tmp_path / "wrong.mp4"
    cut.write_piece(path, source, planned, right)

    class Astray:
        """A container that jumps to its end."""

        def __init__(self, container: Any) -> None:
            self._container = container

        def __enter__(self) -> Astray:
            self._container.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._container.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, offset: int, **options: Any) -> None:
            self._container.seek(10 * offset, **options)

    open_source = kept_source.open_source
    monkeypatch.setattr(kept_source, "open_source", lambda path: Astray(open_source(path)))
    kept_source.kept.forget()
    cut.write_piece(path, source, planned, wrong)
    assert wrong.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("kind", ["b_frames.mp4", "film.mkv", "hevc.ts", "broadcast.ts"])
def test_a_segment_costs_the_same_in_a_longer_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan holds few packets around it, and a file whose clock does not jump is opened once for all segments."""
    path = KINDS[kind](tmp_path / kind)
    source = probe(path)
    packets, opened_for = read_packets(path, source), list[Path]()
    assert packets is not None and packets.is_timed
    open_source = kept_source.open_source
    monkeypatch.setattr(kept_source, "open_source", lambda path: opened_for.append(path) or open_source(path))
    monkeypatch.setattr(cut, "open_source", None)  # for what is read from its beginning
    for place, start in enumerate((2.0, 1.2, 2.4)):
        pieces = []
        for near in (1_000, 1):  # a jump may end before the packets that are known
            monkeypatch.setattr(cut, "_NEAR", near)
            planned = cut.plan_cut(packets, source, source.fps, start, start + 0.3)
            assert planned is not None and planned.first > 1
            cut.write_piece(path, source, planned, tmp_path / f"{place}-{near}.mp4")
            pieces.append((tmp_path / f"{place}-{near}.mp4").read_bytes())
        assert len(planned.stored) == len(planned.num_bytes) == len(planned.times) + 1
        assert pieces[0] == pieces[1]
    assert len(opened_for) == (6 if kind.endswith("ts") else 1)


def test_other_packets_than_before_are_no_piece(tmp_path: Path) -> None:
    path = KINDS["b_frames.mp4"](tmp_path / "x.mp4")
    source = probe(path)
    packets = read_packets(path, source)
    assert packets is not None
    planned = cut.plan_cut(packets, source, source.fps, 2.0, 2.5)
    assert planned is not None
    planned.num_bytes[planned.first - planned.near + 2] += 1
    with pytest.raises(cut.UncertainError, match="other packets"):
        cut.write_piece(path, source, planned, tmp_path / "piece.mp4")


def test_a_wrong_plan_is_noticed_by_the_pictures_of_the_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key frames at which decoding cannot begin: the piece lacks pictures or shows damage, and all is decoded."""
    path, sources = KINDS["b_frames.mp4"](tmp_path / "x.mp4"), LastSource()
    expected = pictures_of(sample_of(path, tmp_path / "right", 2.0, 2.4, sources=sources))
    read = read_packets

    def misled(path: Path, source: Any) -> Any:
        packets = read(path, source)
        assert packets is not None
        packets.entries.closed[:] = packets.entries.open[:] = False
        packets.entries.closed[[0, 55]] = True
        return packets

    monkeypatch.setattr(
        opened,
        "call_reader",
        lambda function, *given, deadline: misled(*given) if function is read else function(*given),
    )
    assert pictures_of(sample_of(path, tmp_path / "misled", 2.0, 2.4)) == expected


def test_only_what_a_segment_needs_is_judged(tmp_path: Path) -> None:
    path = KINDS["b_frames.mp4"](tmp_path / "x.mp4")
    packets = read_packets(path, probe(path))
    assert packets is not None
    with av.open(str(path)) as container:
        at = next(packet.pos for number, packet in enumerate(container.demux(video=0)) if number == 60)
    content = bytearray(path.read_bytes())
    content[at + 20 : at + 90] = bytes(70)
    path.write_bytes(content)
    whole = KINDS["b_frames.mp4"](tmp_path / "sound.mp4")
    expected = pictures_of(sample_of(whole, tmp_path / "sound", 0.0, 1.0))
    assert pictures_of(sample_of(path, tmp_path / "before", 0.0, 1.0)) == expected
    with pytest.raises(RefusedError, match="damaged"):
        sample_of(path, tmp_path / "damaged", 1.8, 2.4)
    with pytest.raises(RefusedError, match="damaged"):
        sample_of(path, tmp_path / "whole")


# ---- limits ----


def test_the_end_of_the_video_and_the_limits(tmp_path: Path) -> None:
    path = write_bars(tmp_path / "x.mp4", 10, 40, *X264, "-g", "10")
    sources = LastSource()

    def numbers(start: float | None, end: float | None, **limits: Any) -> list[int]:
        settings = TranscodeSettings(short_side=64, **limits)
        scratch = tmp_path / f"{start}-{end}-{limits}"
        return numbers_in(sample_of(path, scratch, start, end, settings=settings, sources=sources).file)

    def refusal(*times: float | None, **limits: Any) -> Refusal:
        with pytest.raises(RefusedError) as caught:
            numbers(*times, **limits)
        return caught.value.reason

    assert numbers(3.5, 99.0) == list(range(35, 40))
    assert numbers(None, 0.5) == list(range(5))
    assert numbers(1.0, 3.0, max_seconds=0.7) == list(range(10, 17))
    assert refusal(4.0, None) == refusal(7.0, 8.0) == refusal(1.01, 1.09) == Refusal.OUTSIDE
    assert refusal(3.5, 99.0, min_duration=0.6) == Refusal.TOO_SHORT
    assert len(numbers(3.5, 99.0, min_duration=0.5)) == 5
    assert refusal(1.0, 3.0, max_duration=1.9) == Refusal.TOO_LONG
    assert len(numbers(1.0, 3.0, max_duration=2.0)) == 20


# ---- once per file ----


def test_segments_of_a_file_share_what_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bars(tmp_path / "x.mp4", 10, 40, *X264, "-g", "10")
    other = write_bars(tmp_path / "y.mp4", 10, 20, *X264, "-g", "10")
    read, calls, sources = opened.read_source, list[Path](), LastSource()
    monkeypatch.setattr(opened, "read_source", lambda path, *more: (calls.append(path), read(path, *more))[1])
    digests = set()
    for number in range(3):
        sample = sample_of(path, tmp_path / f"x{number}", number, number + 1, sources=sources)
        digests.add(sample.source_digest)
    assert calls == [path] and len(digests) == 1
    sample_of(other, tmp_path / "other", 0, 1, sources=sources)
    assert calls == [path, other]
    write_bars(path, 10, 30, *X264, "-g", "10")
    changed = sample_of(path, tmp_path / "changed", 0, 1, sources=sources)
    assert calls == [path, other, path] and changed.source_digest not in digests
