"""From video files to a shard set: every promise of ingest, on tiny videos made once a session."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.dataset_json import DatasetInfo
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest import transcode as transcoding
from rhofast.ingest import writer
from rhofast.ingest.array_task import ArrayTask
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import Executor, LocalProcesses
from rhofast.ingest.existing_set import known_classes, stored_keys
from rhofast.ingest.job_result import REFUSED_FILE, read_refused
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import Refusal, RefusedError, probe
from rhofast.ingest.transcode import TranscodeSettings, transcode
from rhofast.ingest.verify import verify_shards

FRAMES, RATE = 6, 6
SETTINGS = TranscodeSettings(short_side=32)
LABELS = [0, 1, 0, 1, 0]


UNEVEN = (0, 1, 5, 6, 11, 19)  # times of a variable rate, in frames


def write_video(
    path: Path,
    *,
    size: tuple[int, int] = (80, 48),
    sar: Fraction | None = None,
    first: int = 0,
    times: Sequence[int] = range(FRAMES),
) -> Path:
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
            frame.pts, frame.time_base = first + times[number], Fraction(1, RATE)
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


class InProcess:
    """An executor that runs the jobs here, one after another."""

    def run(self, function, jobs, *, on_ticks=None):  # type: ignore[no-untyped-def]
        yield from map(function, jobs)


def build(
    records: list[VideoRecord],
    out: Path,
    *,
    executor: Executor | None = None,
    side: int = 32,
    codec: Codec | None = None,
    task: ArrayTask | None = None,
    append: bool = False,
    fallback: Codec | None = None,
) -> DatasetInfo | None:
    existing = open_folder(out) if append else None
    stored, known = (stored_keys(existing), known_classes(existing)) if existing is not None else ((), {})
    settings = BuildSettings(
        name="tiny",
        split="train",
        codec=codec or JpegCodec(),
        transcode=TranscodeSettings(short_side=side),
        samples_per_shard=2,
        fallback=fallback,
    )
    with Listing(iter(records), stored=stored, known=known) as listing:
        return build_shards(listing, out, settings, executor or InProcess(), task=task, append_to=existing)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def built(sources: list[VideoRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(sources, out)
    return out


def test_what_goes_in_and_what_is_refused(built: Path, sources: list[VideoRecord]) -> None:
    shards = open_folder(built)
    assert [shards.row(sample).key for sample in range(len(shards))] == ["v0", "v1", "v2", "v3", "v4"]
    assert [shards.row(sample).label for sample in range(len(shards))] == LABELS
    assert shards.info.classes == ["run", "jump"]
    assert shards.info.refused == {"empty": 1, "missing": 1}
    lines = [json.loads(line) for line in (built / "refused.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [("bad0", "empty"), ("bad1", "missing")]
    assert not list(built.glob(".*"))
    assert not list(verify_shards(shards, deep=True))


def test_two_workers_make_the_same_bytes(built: Path, sources: list[VideoRecord], tmp_path: Path) -> None:
    build(sources, tmp_path / "again", executor=LocalProcesses(2))
    assert contents(tmp_path / "again") == contents(built)


def test_a_killed_build_continues_and_ends_with_the_same_bytes(
    built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    class Dies(InProcess):
        def run(self, function, jobs, *, on_ticks=None):  # type: ignore[no-untyped-def]
            yield from map(function, islice(jobs, 1))
            (out / ".job-000001.x.tmp").mkdir()  # what a kill -9 in the next job leaves
            (out / ".job-000001.x.tmp" / "shard-000001.tar").write_bytes(b"half")
            raise KeyboardInterrupt

    out = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        build(sources, out, executor=Dies())
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    build(sources, out)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before  # not made again
    assert contents(out) == contents(built)


def test_a_complete_set_is_left_alone_and_another_one_is_refused(
    built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    (out / ".job-000003.jsonl").write_text("{}")  # left by a run that was killed after dataset.json was written
    build(sources, out)
    assert contents(out) == contents(built)
    for records, side, says in (
        (sources, 48, "the set has short_side=32, requested is 48"),
        (sources[:-1], 32, "holds a set of other videos"),
    ):
        with pytest.raises(IngestError, match=says):
            build(records, out, side=side)
    assert contents(out) == contents(built)


def test_the_same_videos_in_another_folder_make_the_same_set(
    built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    moved = []
    for record in sources:
        path = tmp_path / record.path.name
        if record.path.exists():
            shutil.copyfile(record.path, path)  # another folder, another time
        moved.append(replace(record, path=path))
    build(moved, tmp_path / "set")
    new, old = contents(tmp_path / "set"), contents(built)
    assert new.pop("refused.jsonl") != old.pop("refused.jsonl")  # it names the paths
    assert new == old


def test_tasks_of_a_job_array_make_the_same_set(built: Path, sources: list[VideoRecord], tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert build(sources, out, task=ArrayTask(number=1, count=3)) is None
    assert sorted(path.name for path in out.glob("*.tar")) == []  # job 1: both refused
    assert build(sources, out, task=ArrayTask(number=0, count=3)) is None
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000000.tar", "shard-000003.tar"]
    assert not (out / "dataset.json").exists()
    (out / ".job-000002.y.tmp").mkdir()  # another task is at work
    build(sources, out, task=ArrayTask(number=0, count=3))
    assert (out / ".job-000002.y.tmp").exists()
    build(sources, out)  # makes what is missing, and merges
    assert contents(out) == contents(built)


def test_appending_adds_shards_and_leaves_the_old_ones_alone(sources: list[VideoRecord], tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = build(sources[:3], out)
    before = contents(out)
    grown = build(sources, out, append=True)
    assert first is not None and grown is not None
    assert grown.shards[: len(first.shards)] == first.shards
    shards = open_folder(out)
    assert [shards.row(sample).key for sample in range(len(shards))] == ["v0", "v1", "v2", "v3", "v4"]
    assert all(contents(out)[name] == content for name, content in before.items() if name.startswith("shard-"))
    assert grown.refused == {"empty": 1, "missing": 1}  # tried again, and listed once
    assert len((out / "refused.jsonl").read_text().splitlines()) == 2
    assert not list(verify_shards(shards))
    after = contents(out)
    assert build(sources, out, append=True) == grown
    assert contents(out) == after


RESULT = {"states": [], "refused": [], "end": {"digest": "0" * 64, "shard": None}}


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"\xff", json.dumps({**RESULT, "refused": 3}).encode(), json.dumps({"states": []}).encode()],
)
def test_a_result_file_that_is_none_is_made_again(
    content: bytes, built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build(sources, out, task=ArrayTask(number=0, count=2))
    (out / ".job-000000.jsonl").write_bytes(content)
    build(sources, out)
    assert contents(out) == contents(built)


def test_other_files_named_like_results_are_left_alone(sources: list[VideoRecord], tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = build(sources[:2], out)
    (out / ".job-of-mine.jsonl").write_text("{}")
    os.mkfifo(out / ".job-000000.jsonl")
    assert build(sources[:2], out) == first
    assert (out / ".job-of-mine.jsonl").exists() and not (out / ".job-000000.jsonl").exists()


@pytest.mark.parametrize("line", ['{"key": 3}', "[]", '{"key": "a", "path": "b", "reason": "c"', "\x00"])
def test_a_list_of_refused_videos_that_does_not_fit_is_said_before_the_work(
    line: str, built: Path, sources: list[VideoRecord], tmp_path: Path
) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    with (out / "refused.jsonl").open("a") as file:
        file.write(f"{line}\n")
    before = contents(out)
    with pytest.raises(IngestError, match=r"refused\.jsonl: line 3: "):
        build(sources, out, append=True)
    assert contents(out) == before


def test_a_set_whose_shards_are_named_otherwise_can_be_appended_to(sources: list[VideoRecord], tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = build(sources[:2], out)
    assert first is not None
    for path in out.glob("shard-000000.*"):
        path.rename(path.with_stem("train_a"))
    text = (out / "dataset.json").read_text().replace("shard-000000", "train_a")
    (out / "dataset.json").write_text(text)
    (out / "sizes.json").write_text((out / "sizes.json").read_text().replace("shard-000000", "train_a"))
    build(sources, out, append=True)
    shards = open_folder(out)
    names = [shard.name for shard in shards.info.shards]
    assert names[0] == "train_a" and len(set(names)) == len(names) and len(shards) == 5
    assert not list(verify_shards(shards))


def test_what_is_appended_must_be_of_the_same_kind(built: Path, sources: list[VideoRecord], tmp_path: Path) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    with pytest.raises(IngestError, match="the set has short_side=32, requested is 48"):
        build(sources, out, append=True, side=48)
    with pytest.raises(IngestError, match="the set has codecs="):
        build(sources, out, append=True, codec=JpegCodec(quality=5))
    renamed = [replace(record, key=f"{record.key}x", label_name="swim") for record in sources]
    with pytest.raises(IngestError, match="'swim' here and 'run' before"):
        build(renamed, out, append=True)
    assert contents(out) == contents(built)


def test_two_commands_do_not_work_in_one_folder(sources: list[VideoRecord], tmp_path: Path) -> None:
    class Checks(InProcess):
        def run(self, function, jobs, *, on_ticks=None):  # type: ignore[no-untyped-def]
            with pytest.raises(IngestError, match="running in this folder"):
                build(sources, tmp_path / "set")
            return super().run(function, jobs)

    build(sources, tmp_path / "set", executor=Checks())


@pytest.mark.parametrize("codec", [H264Codec(gop=4), HevcCodec(gop=4, preset="ultrafast"), CopyCodec()])
def test_every_codec_makes_a_set_that_webdataset_reads_and_pyav_plays(
    codec: Codec, sources: list[VideoRecord], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build(sources, out, codec=codec)
    shards = open_folder(out)
    assert len(shards) == 5 and not list(verify_shards(shards, deep=True))
    row = shards.row(3)
    with (out / shards.info.shards[-1].tar).open("rb") as file:
        file.seek(shards.row(4).offset)
        content = file.read(shards.row(4).size)
    if codec.name == "copy":
        assert content == sources[-1].path.read_bytes()
    else:
        assert (row.width, row.height) == (48, 32)
        assert row.units.frame.tolist() == [0, 0, 4]  # a header, a group of four, the rest
    with av.open(BytesIO(content)) as container:
        reds = [frame.to_ndarray(format="rgb24")[:, :20, 1].mean() for frame in container.decode(video=0)]
    assert len(reds) == FRAMES and np.all(np.diff(reds) > 15)


def test_a_copied_video_must_need_no_change(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mkv")
    write_video(tmp_path / "wide.mkv", sar=Fraction(2))
    write_video(tmp_path / "uneven.mkv", times=UNEVEN)
    records = [VideoRecord(key=name, path=tmp_path / f"{name}.mkv") for name in ("good", "wide", "uneven")]
    info = build(records, tmp_path / "set", codec=CopyCodec())
    assert info is not None and info.refused == {"not_copyable": 1}
    shards = open_folder(tmp_path / "set")
    assert [shards.row(sample).pixel_aspect for sample in range(2)] == [1.0, 2.0]
    assert not list(verify_shards(shards, deep=True))


def test_what_a_codec_does_not_take_goes_to_its_fallback(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mkv")
    write_video(tmp_path / "uneven.mkv", times=UNEVEN)
    (tmp_path / "broken.mkv").write_bytes((tmp_path / "good.mkv").read_bytes()[:300])
    records = [VideoRecord(key=name, path=tmp_path / f"{name}.mkv") for name in ("good", "uneven", "broken")]
    out = tmp_path / "set"
    info = build(records, out, codec=CopyCodec(), fallback=H264Codec(gop=4))
    assert info is not None and len(info.refused) == 1  # what is damaged goes nowhere
    assert [settings["name"] for settings in info.codecs] == ["copy", "h264"]
    assert info.transcode["short_side"] == 32
    shards = open_folder(out)
    assert [shards.row(sample).codec for sample in range(2)] == [0, 1] and not list(verify_shards(shards, deep=True))
    with pytest.raises(IngestError, match="the set has codecs="):
        build(records, out, append=True, codec=CopyCodec())
    more = write_video(tmp_path / "more.mkv", times=UNEVEN)
    added = build([VideoRecord(key="more", path=more)], out, append=True, codec=CopyCodec(), fallback=H264Codec(gop=4))
    assert added is not None and open_folder(out).row(2).codec == 1


def test_a_full_disk_is_one_error_and_what_was_finished_stays(
    built: Path, sources: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = writer.publish

    def full(aside: Path, target: Path) -> None:
        if target.name == "shard-000002.idx":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        publish(aside, target)

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish", full)
        with pytest.raises(IngestError, match="No space left on device"):
            build(sources, out)
    assert (out / "shard-000000.tar").exists() and not list(out.glob(".job-*.tmp"))
    build(sources, out)
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
            transcode(sources[0].path, probe(sources[0].path), JpegCodec(), SETTINGS, tmp_path / "member")


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


def test_where_every_video_is_refused_all_of_them_are_listed(tmp_path: Path) -> None:
    records = [VideoRecord(key=key, path=Path(f"none/{key}.mp4")) for key in ("a", "b")]
    with pytest.raises(IngestError) as caught:
        build(records, tmp_path / "set")
    refused = tmp_path / "set" / REFUSED_FILE
    assert caught.value.message.endswith("(2 missing); for example none/a.mp4: missing: No such file or directory")
    assert [source.key for source in read_refused(refused)] == ["a", "b"] and str(refused) in (caught.value.hint or "")


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
    with av.open(str(transcode(path, probe(path), JpegCodec(quality=2), settings, scratch / "member"))) as container:
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


def test_tars_have_one_owner_and_no_time(built: Path) -> None:
    for path in built.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(entry.mtime, entry.uid, entry.gid, entry.mode) for entry in tar} == {(0, 0, 0, 0o644)}
