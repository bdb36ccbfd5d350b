"""What the dry run promises, on tiny videos."""

import json
import subprocess
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.cost_estimate import DryRunEstimate, interval_95, samples_per_shard, student_t_95
from rhofast.ingest.dry_run import _choose, estimate_build
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import probe
from rhofast.ingest.quality import measure_quality
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg, transcode

SETTINGS = TranscodeSettings(short_side=32)
CLIPS = ClipConfig(num_clips=2, num_frames=2, frame_stride=2, fps=10)
FRAMES, RATE = 12, 10
TIMES = ("cpu_seconds", "total_seconds", "total_seconds_95")


def write_video(path: Path, seed: int, *, frames: int = FRAMES, color_range: str = "tv") -> Path:
    """Smooth patterns that move, 48x32, nearly lossless."""
    given = av.VideoFormat("yuvj420p" if color_range == "pc" else "yuv420p").name
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:32, :48]
    shift, bend = rng.uniform(0, 6, 2)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg" if color_range == "pc" else "libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, given
        stream.options = {"qmin": "2", "qmax": "2"} if color_range == "pc" else {"crf": "4"}
        for number in range(frames):
            waves = np.sin(x / 5 + shift + number / 3) * np.cos(y / (3 + bend)) * 90 + 128
            pixels = np.stack([waves, np.roll(waves, number, 1), 255 - waves], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    """Five good videos of different lengths, and one that is none."""
    folder = tmp_path_factory.mktemp("sources")
    paths = [write_video(folder / f"v{number}.mkv", number, frames=FRAMES + 4 * number) for number in range(5)]
    bad = folder / "bad.mkv"
    bad.write_bytes(b"not a video")
    return [VideoRecord(key=path.stem, path=path) for path in [*paths[:2], bad, *paths[2:]]]


def run(
    records: list[VideoRecord], *codecs: Codec, samples: int = 6, workers: int = 1, seed: int = 0
) -> dict[str, Any]:
    with Listing(records) as listing:
        found = estimate_build(listing, codecs, SETTINGS, CLIPS, samples=samples, workers=workers, seed=seed)
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


@pytest.fixture(scope="module")
def whole(records: list[VideoRecord]) -> dict[str, Any]:
    """All videos, two processes, three codecs."""
    return run(records, JpegCodec(), H264Codec(gop=4), CopyCodec(), workers=2)


def test_totals_are_mean_times_accepted_share_times_count(whole: dict[str, Any]) -> None:
    assert (whole["videos"], whole["tried"]) == (6, 6)
    for codec in whole["codecs"]:
        metrics = codec["metrics"]
        assert codec["refused"] == {"not_a_video": 1}
        assert metrics["compared"] == (0 if codec["untouched"] else 5)
        assert metrics["total_bytes"] == pytest.approx(metrics["bytes_per_video"] * 5)
        assert metrics["total_hours"] == pytest.approx(sum(FRAMES + 4 * n for n in range(5)) / RATE / 3600)
        assert codec["total_seconds"] == pytest.approx(codec["cpu_seconds"] * 6 / 2)
        assert metrics["total_bytes_95"] == pytest.approx([metrics["total_bytes"]] * 2)  # all were tried


def test_copy_has_its_sources_bytes_and_no_quality(whole: dict[str, Any], records: list[VideoRecord]) -> None:
    metrics = whole["codecs"][2]["metrics"]
    assert metrics["total_bytes"] == sum(record.path.stat().st_size for record in records if record.key != "bad")
    assert metrics["source_ratio"] == 1
    assert metrics["psnr"] is metrics["ssim"] is None
    assert metrics["read_bytes"] == pytest.approx(metrics["bytes_per_video"])


def test_jpeg_reads_and_decodes_what_it_needs_and_groups_more(whole: dict[str, Any]) -> None:
    jpeg, h264, _ = (codec["metrics"] for codec in whole["codecs"])
    assert jpeg["read_amplification"] == jpeg["decode_amplification"] == pytest.approx(1)
    assert h264["read_amplification"] > 1 and h264["decode_amplification"] > 1


def test_the_same_seed_gives_the_same_whoever_works(records: list[VideoRecord]) -> None:
    one, two = (run(records, JpegCodec(), samples=3, workers=workers, seed=4) for workers in (1, 2))
    for found in (one, two):
        del found["workers"]
        for codec in found["codecs"]:
            for name in TIMES:
                del codec[name]
    assert one == two


def test_one_of_each_stretch_is_chosen() -> None:
    with Listing(VideoRecord(key=str(number), path=Path(str(number))) for number in range(103)) as listing:
        chosen = [int(record.key) for record in _choose(listing, 10, seed=1)]
        assert [number * 10 // 103 for number in chosen] == list(range(10))
        assert chosen != [int(record.key) for record in _choose(listing, 10, seed=2)]
        assert [int(record.key) for record in _choose(listing, 103, seed=3)] == list(range(103))


def decode_luma(path: Path, *filters: str) -> npt.NDArray[np.float64]:
    """Luma in full range, f64[N, 32, 48]."""
    chain = ",".join([*filters, "scale=out_range=full", "format=yuvj420p", "extractplanes=y"])
    command = [find_ffmpeg(), "-loglevel", "error", "-i", str(path), "-vf", chain, "-f", "rawvideo", "pipe:1"]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, 32, 48).astype(np.float64)


@pytest.mark.parametrize("color_range", ["tv", "pc"])
@pytest.mark.parametrize("name", ["jpeg", "h264"])
def test_quality_is_what_numpy_computes_and_falls_with_the_setting(tmp_path: Path, name: str, color_range: str) -> None:
    source = write_video(tmp_path / "source.mkv", 3, color_range=color_range)
    before: tuple[float, float] = (float("inf"), float("inf"))
    for quality in {"jpeg": (2, 12, 31), "h264": (0, 25, 45)}[name]:
        codec, out = build_codec({"name": name, "quality": quality}), tmp_path / f"{quality}.mp4"
        transcode(source, probe(source), codec, SETTINGS, out)
        measured = measure_quality(source, SETTINGS, out, FRAMES, tmp_path)
        assert measured is not None
        psnr, ssim = measured
        given, stored = decode_luma(source), decode_luma(out)
        assert given.shape == stored.shape == (FRAMES, 32, 48)
        error = np.mean((given - stored) ** 2, axis=(1, 2))
        with np.errstate(divide="ignore"):
            expected = np.minimum(10 * np.log10(255**2 / error), 60).mean()
        assert psnr == pytest.approx(expected, abs=0.02)
        assert 0 < ssim <= 1 and (psnr, ssim) < before
        if before[0] == float("inf"):
            assert psnr > 38 and ssim > 0.98
        before = (psnr, ssim)


def test_a_source_that_starts_late_is_compared_frame_by_frame(tmp_path: Path) -> None:
    source = tmp_path / "late.avi"  # whose B-frames make the first picture come after 0
    command = [find_ffmpeg(), "-loglevel", "error", "-i", str(write_video(tmp_path / "source.mkv", 3))]
    subprocess.run(
        [*command, "-c:v", "mpeg4", "-q:v", "2", "-bf", "2", str(source)], check=True, stdin=subprocess.DEVNULL
    )
    for codec in (JpegCodec(quality=2), H264Codec(quality=0)):
        out = transcode(source, probe(source), codec, SETTINGS, tmp_path / f"{codec.name}.mp4")
        with out.open("rb") as file:
            num_frames = codec.index_member(file).num_frames
        quality = measure_quality(source, SETTINGS, out, num_frames, tmp_path)
        assert quality is not None and quality[0] > 38


def test_members_that_lack_frames_are_not_compared(tmp_path: Path) -> None:
    source = write_video(tmp_path / "source.mkv", 3)
    out = transcode(source, probe(source), JpegCodec(), SETTINGS, tmp_path / "member.mp4")
    assert measure_quality(source, SETTINGS, out, FRAMES + 1, tmp_path) is None


def test_if_all_are_refused_it_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[VideoRecord]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bad = [record for record in records if record.key == "bad"]
    gone = VideoRecord(key="gone", path=tmp_path / "gone.mp4")
    with pytest.raises(IngestError, match=r"1 not_a_video, 1 missing.*bad\.mkv"):
        run([*bad, gone], JpegCodec())
    assert not list(tmp_path.iterdir())
    steps: list[tuple[int, int]] = []
    with Listing(records) as listing:
        codecs = [JpegCodec()]
        on_progress = lambda done, total: steps.append((done, total))  # noqa: E731
        estimate_build(listing, codecs, SETTINGS, CLIPS, samples=2, workers=1, on_progress=on_progress)
    assert not list(tmp_path.iterdir())
    assert steps[-1] == (2, 2) and steps == sorted(steps)


def test_intervals_are_students() -> None:
    assert interval_95([3.0], 10) is None
    assert interval_95([3.0, 5.0], 2) == (4.0, 4.0)
    low, high = interval_95([10.0, 12.0, 14.0], 1_000_000) or (0, 0)
    assert (low + high) / 2 == pytest.approx(12) and high - 12 == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)
    known = {11: 2.201, 15: 2.131, 30: 2.042, 100: 1.984}  # as tables print it
    assert [student_t_95(freedom) for freedom in known] == pytest.approx(list(known.values()), rel=1e-3)


@pytest.mark.parametrize(("mean_bytes", "expected"), [(10, 4096), (4e6, 256), (1e9, 1), (1e12, 1), (1e6, 1024)])
def test_shards_are_of_about_a_gigabyte(mean_bytes: float, expected: int) -> None:
    assert samples_per_shard(mean_bytes) == expected


def test_windows_and_segments_cost_their_share_of_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", 0, frames=60)

    def estimate(record: VideoRecord, **settings: float) -> DryRunEstimate:
        with Listing([record], windows="clip_seconds" in settings) as listing:
            made = TranscodeSettings(short_side=32, **settings)
            return estimate_build(listing, [JpegCodec()], made, CLIPS, samples=1, workers=1)

    whole = VideoRecord(key="x", path=path)
    one, windows = estimate(whole), estimate(whole, clip_seconds=2.0)
    overlapping, segment = estimate(whole, clip_seconds=2.0, stride=1.0), estimate(replace(whole, start=1.0, end=2.5))
    hours = [each.codecs[0].metrics.total_hours * 3600 for each in (one, windows, overlapping, segment)]  # type: ignore[union-attr]
    assert hours == pytest.approx([6.0, 6.0, 12.0, 1.5])
    assert (
        segment.source_bytes == pytest.approx(path.stat().st_size / 4, abs=1)
        and windows.source_bytes == one.source_bytes
    )
    for each in (one, windows, segment):
        metrics = each.codecs[0].metrics
        assert metrics is not None and metrics.compared == 1 and metrics.psnr is not None and metrics.psnr > 25
        assert metrics.total_bytes == pytest.approx(metrics.bytes_per_frame * metrics.total_hours * 36_000)
