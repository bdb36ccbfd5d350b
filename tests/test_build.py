"""From video files to a shard set: every promise of ingest, on tiny videos made once a session."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import tarfile
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from rhofast.data.codecs import JpegCodec
from rhofast.data.index import DatasetInfo, open_shards
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest import transcode as transcoding
from rhofast.ingest.build import build_shards
from rhofast.ingest.executors import run_units
from rhofast.ingest.probe import Refusal, RefusedError, probe
from rhofast.ingest.transcode import TranscodeSettings, transcode
from rhofast.ingest.verify import Problem, verify_shards

FRAMES, RATE = 6, 6
SETTINGS = TranscodeSettings(short_side=32)
LABELS = [0, 1, 0, 1, 0]


def write_video(path: Path, *, size: tuple[int, int] = (80, 48), sar: Fraction | None = None, first: int = 0) -> Path:
    """A video whose left half is dark and whose green grows with the frame's number; pts begin at `first`."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        for number in range(FRAMES):
            pixels = np.full((size[1], size[0], 3), 30 * number, dtype=np.uint8)
            pixels[:, size[0] // 2 :, 0] = 250
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    """Five good videos and two bad ones among them."""
    folder = tmp_path_factory.mktemp("videos")
    names = ["a.mkv", "-b #&()!.mkv", "c%03d.mkv", "ü.mkv", os.fsdecode(b"raw\xff.mkv")]
    paths = [write_video(folder / name) for name in names]
    records = [
        VideoRecord(key=f"v{number}", path=path, label=label, label_name=("run", "jump")[label])
        for number, (path, label) in enumerate(zip(paths, LABELS, strict=True))
    ]
    (folder / "zero.mp4").touch()
    bad = [
        VideoRecord(key=f"bad{n}", path=folder / f"{name}.mp4", label=0, label_name="run")
        for n, name in enumerate(("zero", "nowhere"))
    ]
    return [*records[:2], *bad, *records[2:]]


def build(
    records: list[VideoRecord], out: Path, *, workers: int = 1, side: int = 32, per_shard: int = 2
) -> DatasetInfo:
    return build_shards(
        iter(records),
        out,
        name="tiny",
        split="train",
        codec=JpegCodec(),
        settings=TranscodeSettings(short_side=side),
        samples_per_shard=2,
        workers=workers,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def built(sources: list[VideoRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(sources, out)
    return out


def test_what_goes_in_and_what_is_refused(built: Path, sources: list[VideoRecord]) -> None:
    shards = open_shards(built)
    assert [shards.row(sample).key for sample in range(len(shards))] == ["v0", "v1", "v2", "v3", "v4"]
    assert [shards.row(sample).label for sample in range(len(shards))] == LABELS
    assert shards.info.classes == ["run", "jump"]
    assert shards.info.refused == {"empty": 1, "missing": 1}
    lines = [json.loads(line) for line in (built / "refused.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [("bad0", "empty"), ("bad1", "missing")]
    assert not list(built.glob(".*"))
    assert not list(verify_shards(shards, deep=True))


def test_two_workers_make_the_same_bytes(built: Path, sources: list[VideoRecord], tmp_path: Path) -> None:
    build(sources, tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(built)


def test_a_killed_build_continues_and_ends_with_the_same_bytes(
    built: Path, sources: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_then_die(function, units, *, workers, on_ticks):  # type: ignore[no-untyped-def]
        yield from map(function, islice(units, 1))
        (out / ".shard-000001.tar.tmp").write_bytes(b"half")  # what a kill -9 in the next unit leaves
        (out / ".scratch-x.tmp").mkdir()
        raise KeyboardInterrupt

    out = tmp_path / "set"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rhofast.ingest.build.run_units", first_then_die)
        build(sources, out)
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    build(sources, out)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before  # not made again
    assert contents(out) == contents(built)


def test_a_complete_set_is_left_alone_and_another_one_is_refused(
    built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    build(sources, out)
    for records, side in ((sources, 48), (sources[:-1], 32)):
        with pytest.raises(IngestError, match="another"):
            build(records, out, side=side)
    assert contents(out) == contents(built)


def test_a_stopped_ffmpeg_does_not_refuse_the_video(
    sources: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in (f"kill -{signal.SIGKILL} $$", "exit 255"):
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!/bin/sh\n{stop}\n")
        program.chmod(0o755)
        monkeypatch.setattr(transcoding, "find_ffmpeg", lambda program=program: str(program))
        with pytest.raises(IngestError, match="stopped"):
            transcode(sources[0].path, probe(sources[0].path), JpegCodec(), SETTINGS, tmp_path)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "no videos"),
        ([VideoRecord(key="a", path=Path("x")), VideoRecord(key="a", path=Path("y"))], "twice"),
        ([VideoRecord(key="a/b", path=Path("x"))], "key"),
        ([VideoRecord(key="a", path=Path("x"))], "every video was refused"),
        (
            [
                VideoRecord(key="a", path=Path("x"), label=0, label_name="p"),
                VideoRecord(key="b", path=Path("y"), label=0, label_name="q"),
            ],
            "label 0",
        ),
    ],
)
def test_records_that_cannot_become_a_set_are_one_error(tmp_path: Path, records: list[VideoRecord], says: str) -> None:
    with pytest.raises(IngestError, match=says):
        build(records, tmp_path / "set")
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_a_folder_with_other_things_in_it_is_not_touched(sources: list[VideoRecord], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(IngestError, match="not empty"):
        build(sources, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


# ---- what others read ----


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tar_and_pyav_plays_the_member(built: Path) -> None:
    import webdataset as wds

    tars = [str(path) for path in sorted(built.glob("*.tar"))]
    samples = list(wds.WebDataset(tars, shardshuffle=False, empty_check=False).to_tuple("mp4", "json"))
    gc.collect()  # webdataset leaves its files open: let it be warned about here, not in the next test
    assert len(samples) == 5
    for member, note in samples:
        facts = json.loads(note)
        with av.open(BytesIO(member)) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == facts["frames"] == FRAMES
        assert shown[0].shape == (facts["height"], facts["width"], 3)


@pytest.mark.filterwarnings("default")
def test_the_idx_file_is_what_wds2idx_makes(built: Path, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    for tar in built.glob("*.tar"):
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "x.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "x.idx").read_bytes() == tar.with_suffix(".idx").read_bytes()


# ---- transcoding ----


def member_of(path: Path, settings: TranscodeSettings, scratch: Path) -> list[np.ndarray]:
    content = transcode(path, probe(path), JpegCodec(quality=2), settings, scratch)
    with av.open(BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_frames_keep_their_order_their_sides_and_their_color(sources: list[VideoRecord], tmp_path: Path) -> None:
    frames = member_of(sources[0].path, SETTINGS, tmp_path)
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * FRAMES  # 80x48 -> 53x32 -> multiples of 16
    for number, frame in enumerate(frames):
        assert frame[:, :20, 1].mean() == pytest.approx(30 * number, abs=6)
        assert frame[:, 28:, 0].mean() == pytest.approx(250, abs=8)


@pytest.mark.parametrize(("rate", "count"), [(3.0, 3), (12.0, 12)])
def test_another_rate_picks_frames_by_time(sources: list[VideoRecord], tmp_path: Path, rate: float, count: int) -> None:
    settings = TranscodeSettings(short_side=32, fps=rate)
    frames = member_of(sources[0].path, settings, tmp_path)
    assert len(frames) == count
    shown = [frame[:, :20, 1].mean() / 30 for frame in frames]
    half_a_step = max(RATE / rate, 1) / 2  # in frames of the source
    assert np.all(np.abs(shown - np.arange(count) * RATE / rate) < half_a_step + 0.1)


def test_only_the_beginning_of_a_long_video_is_kept(sources: list[VideoRecord], tmp_path: Path) -> None:
    settings = TranscodeSettings(short_side=32, max_seconds=0.5)
    assert len(member_of(sources[0].path, settings, tmp_path)) == 3


@pytest.mark.parametrize(
    ("size", "sar", "shape"),
    [
        ((48, 80), None, (48, 32)),
        ((64, 64), Fraction(2), (32, 64)),
        ((64, 64), Fraction(1, 2), (64, 32)),
        ((16, 16), None, (32, 32)),
        ((33, 17), None, (32, 64)),
    ],
)
def test_pixels_become_square_and_sides_multiples_of_16(
    tmp_path: Path, size: tuple[int, int], sar: Fraction | None, shape: tuple[int, int]
) -> None:
    frames = member_of(write_video(tmp_path / "x.mkv", size=size, sar=sar), SETTINGS, tmp_path)
    assert frames[0].shape[:2] == shape


def test_a_video_that_begins_late_loses_nothing(tmp_path: Path) -> None:
    frames = member_of(write_video(tmp_path / "x.mkv", first=30), SETTINGS, tmp_path)
    assert len(frames) == FRAMES and frames[0][:, :20].mean() < 10


def test_every_bad_file_is_refused_for_its_reason(
    sources: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    expected = {
        tmp_path / "nowhere.mp4": Refusal.MISSING,
        tmp_path / "zero.mp4": Refusal.EMPTY,
        tmp_path / "text.mp4": Refusal.NOT_A_VIDEO,
        write_audio(tmp_path / "audio.wav"): Refusal.NO_VIDEO_STREAM,
    }
    for path, reason in expected.items():
        with pytest.raises(RefusedError) as refused:
            probe(path)
        assert refused.value.reason == reason

    good = bytearray(sources[0].path.read_bytes())
    start, end = len(good) * 6 // 10, len(good) * 7 // 10
    good[start:end] = b"\xff" * (end - start)
    (tmp_path / "damaged.mkv").write_bytes(good)
    with pytest.raises(RefusedError) as refused:
        member_of(tmp_path / "damaged.mkv", SETTINGS, tmp_path)
    assert refused.value.reason == Refusal.DAMAGED

    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 20\n")
    slow.chmod(0o755)
    monkeypatch.setattr(transcoding, "find_ffmpeg", lambda: str(slow))
    with pytest.raises(RefusedError) as refused:
        member_of(sources[0].path, TranscodeSettings(timeout=0.1), tmp_path)
    assert refused.value.reason == Refusal.TIMEOUT


# ---- executors ----


def test_a_dead_worker_is_one_error() -> None:
    with pytest.raises(IngestError, match="worker process died"):
        list(run_units(os._exit, [3], workers=1))


def test_units_are_drawn_as_they_are_needed_and_all_are_run() -> None:
    drawn: list[int] = []
    results = run_units(abs, (drawn.append(n) or -n for n in range(40)), workers=1)
    first = next(results)
    assert len(drawn) <= 4
    assert sorted([first, *results]) == list(range(40))


# ---- verify ----


def damage_tar(root: Path) -> None:
    shards = open_shards(root)
    row = shards.row(0)
    with (root / "shard-000000.tar").open("r+b") as file:
        file.seek(row.offset + int(row.units.offset[2]) + 100)
        file.write(b"\x00\x01\x02\x03")


def truncate_tar(root: Path) -> None:
    with (root / "shard-000000.tar").open("r+b") as file:
        file.truncate(5000)


def damage_index(root: Path) -> None:
    path = root / "shard-000000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_note(root: Path) -> None:
    path = root / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"frames": 6', b'"frames": 7', 1))


DAMAGE = {
    "checksum": (damage_tar, "frame 2: checksum mismatch"),
    "short tar": (truncate_tar, "bytes long"),
    "no tar": (lambda root: (root / "shard-000000.tar").unlink(), "no such file"),
    "index": (damage_index, "digest"),
    "no index": (lambda root: (root / "shard-000000.arrow").unlink(), "no such file"),
    "KEY.json": (damage_note, "KEY.json says frames 7"),
    "idx": (lambda root: (root / "shard-000000.idx").write_text("v1.2 0\n"), "wds2idx"),
    "sizes": (lambda root: (root / "sizes.json").unlink(), "does not list"),
    "refused": (lambda root: (root / "refused.jsonl").unlink(), "does not list"),
    "leftover": (lambda root: (root / ".scratch-x.tmp").mkdir(), "left over"),
    "stray": (lambda root: (root / "shard-000009.tar").touch(), "not listed"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_finds_injected_damage(built: Path, tmp_path: Path, kind: str) -> None:
    injure, says = DAMAGE[kind]
    root = shutil.copytree(built, tmp_path / "set")
    injure(root)
    problems: list[Problem] = list(verify_shards(open_shards(root, check_files=False)))
    assert any(says in str(problem) for problem in problems), problems


def test_tars_have_one_owner_and_no_time(built: Path) -> None:
    for path in built.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(entry.mtime, entry.uid, entry.gid, entry.mode) for entry in tar} == {(0, 0, 0, 0o644)}
