"""Long videos become windows: every frame once, under keys that stay, in builds that resume, share work and append."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rhofast.config.section import parse_section
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.types import VideoRecord
from rhofast.errors import ConfigError, IngestError
from rhofast.evaluation.leakage import check_held_out, overlap
from rhofast.ingest import opened, shard_job
from rhofast.ingest.array_task import parse_task
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.existing_set import known_classes, stored_keys
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo
from rhofast.ingest.segments import check_cutting, record_key, window_key, windows_of
from rhofast.ingest.transcode import TranscodeSettings
from rhofast.ingest.verify import verify_shards
from tests.helpers.bars import numbers_in, write_bars

RATE, COUNT = 10, 45
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "10")


class InProcess:
    """An executor that runs the jobs here, one after another."""

    def run(self, function, jobs, *, on_ticks=None):  # type: ignore[no-untyped-def]
        yield from map(function, jobs)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("long")
    paths = [write_bars(folder / f"{number}.mp4", RATE, COUNT - 10 * number, *X264) for number in range(3)]
    labels = [(1, 0.5, 1.5), (2, 3.0, None)]
    return [
        VideoRecord(key=f"v{number}", path=path, label=0, labels=labels, extra={"number": number})
        for number, path in enumerate(paths)
    ]


def build(
    records: Iterable[VideoRecord],
    out: Path,
    *,
    task: str | None = None,
    append: bool = False,
    codec: Codec | None = None,
    **settings: Any,
) -> ShardSet | None:
    existing = open_folder(out) if append else None
    stored, known = (stored_keys(existing), known_classes(existing)) if existing is not None else ((), {})
    made = BuildSettings(
        name="long",
        split="train",
        codec=codec or JpegCodec(),
        transcode=TranscodeSettings(short_side=64, **settings),
        samples_per_shard=2,
    )
    windows = "clip_seconds" in settings
    with Listing(iter(records), stored=stored, known=known, windows=windows) as listing:
        array_task = None if task is None else parse_task(task)
        info = build_shards(listing, out, made, InProcess(), task=array_task, append_to=existing)
    return None if info is None else open_folder(out)


def stored(shards: ShardSet, folder: Path) -> dict[str, list[int]]:
    """The numbers of the frames of each sample."""
    found = {}
    for shard in shards.info.shards:
        with tarfile.open(shards.root / shard.tar) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    path = folder / member.name
                    path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                    found[path.stem] = numbers_in(path)
    return found


def metadata(shards: ShardSet) -> dict[str, Any]:
    found = {}
    for shard in shards.info.shards:
        with tarfile.open(shards.root / shard.tar) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name[:-5]] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_windows_share_out_the_frames_and_the_labels(videos: list[VideoRecord], tmp_path: Path) -> None:
    shards = build(videos, tmp_path / "set", clip_seconds=2.0)
    assert shards is not None and not shards.info.refused
    numbers, said = stored(shards, tmp_path), metadata(shards)
    assert list(numbers) == [*(f"v0_{k:05d}" for k in range(3)), "v1_00000", "v1_00001", "v2_00000", "v2_00001"]
    for video, count in enumerate((45, 35, 25)):
        held = [shown for key, frames in numbers.items() if record_key(key) == f"v{video}" for shown in frames]
        assert held == list(range(count))
    assert [len(shown) for shown in numbers.values()] == [20, 20, 5, 20, 15, 20, 5]
    assert {key: each["labels"] for key, each in said.items() if key.startswith("v0")} == {
        "v0_00000": [[1, 0.5, 1.5]],
        "v0_00001": [[2, 1.0, None]],
        "v0_00002": [[2, None, None]],
    }
    assert said["v0_00001"] | {"start": 2.0, "end": 4.0, "label": 0, "extra": {"number": 0}} == said["v0_00001"]
    assert len({each["source_digest"] for each in said.values()}) == 3
    assert not list(verify_shards(shards, deep=True, workers=1))
    assert shards.info.transcode["clip_seconds"] == 2.0


def test_windows_overlap_by_their_stride_and_short_ones_are_refused(videos: list[VideoRecord], tmp_path: Path) -> None:
    kept = build(videos[:1], tmp_path / "kept", clip_seconds=2.0, stride=1.5, min_duration=1.5)
    shown = {"v0_00000": list(range(20)), "v0_00001": list(range(15, 35)), "v0_00002": list(range(30, 45))}
    assert kept is not None and not kept.info.refused and stored(kept, tmp_path) == shown
    shards = build(videos[:1], tmp_path / "set", clip_seconds=2.0, stride=1.5, min_duration=1.6)
    assert shards is not None and shards.info.refused == {"too_short": 1}
    del shown["v0_00002"]
    assert stored(shards, tmp_path) == shown


def source(seconds: float, fps: Fraction = Fraction(10)) -> SourceInfo:
    frames = round(seconds * float(fps))
    return SourceInfo(
        container="mov", codec="h264", decoder="h264", stream=0, fps=fps, frames=frames, seconds=frames / float(fps)
    )


def test_a_window_behind_the_last_frame_is_none() -> None:
    record, settings = VideoRecord(key="x", path=Path("x")), TranscodeSettings(clip_seconds=3.0, stride=2.0)
    # 300 frames at 29.97 fps last 10.01 s, and none is shown from 10 s on.
    starts = [window.start for window in windows_of(record, source(10.01, Fraction(30000, 1001)), settings)]
    assert starts == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert len(list(windows_of(record, source(10.1), settings))) == 6
    assert len(list(windows_of(record, source(10.0), settings))) == 5


def test_windows_of_a_segment_stay_in_it() -> None:
    record = VideoRecord(key="x", path=Path("x"), start=1.0, end=4.5)
    settings = TranscodeSettings(clip_seconds=2.0)
    assert [(w.key, w.start, w.end) for w in windows_of(record, source(99.0), settings)] == [
        ("x_00000", 1.0, 3.0),
        ("x_00001", 3.0, 4.5),
    ]
    assert len(list(windows_of(record, source(2.9), settings))) == 1  # the video ends before the second window
    with pytest.raises(RefusedError) as caught:
        list(windows_of(record, source(1.0), settings))
    assert caught.value.reason == Refusal.OUTSIDE
    assert list(windows_of(record, 99.0, TranscodeSettings())) == [record]


def test_times_of_windows_are_written_as_short_as_those_that_were_given() -> None:
    record, settings = VideoRecord(key="x", path=Path("x")), TranscodeSettings(clip_seconds=0.1)
    times = [(w.start, w.end) for w in windows_of(record, source(0.6), settings)]
    assert times == [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6)]


@pytest.mark.parametrize("name", ["clip_seconds", "stride"])
def test_windows_that_are_fewer_than_a_frame_apart_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}\n.* 0\.001 "):
        TranscodeSettings(**{"clip_seconds": 1.0, name: 1e-7})


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_duration": 5.0, "max_duration": 1.0}, "min_duration=5 is above max_duration=1"),
        ({"clip_seconds": 1.0, "max_duration": 0.5}, "clip_seconds=1 with max_duration=0.5: every whole window"),
        ({"clip_seconds": 1.0, "min_duration": 2.0}, "clip_seconds=1 with min_duration=2: every whole window"),
    ],
)
def test_limits_that_refuse_everything_are_said_before_the_work(limits: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_section(TranscodeSettings, limits, where="shard")
    TranscodeSettings(clip_seconds=1.0, min_duration=1.0, max_duration=1.0)


def test_keys_of_windows_name_their_record() -> None:
    keys = ["a", "a_1", "a_00001", "a-b_2"]
    numbers = (0, 1, 99_999, 100_000)
    made = {window_key(key, number): key for key in keys for number in numbers}
    assert len(made) == len(keys) * len(numbers) and all(record_key(made_key) == key for made_key, key in made.items())
    with (
        pytest.raises(IngestError, match="1 to 72"),
        Listing([VideoRecord(key="k" * 75, path=Path("x"))], windows=True),
    ):
        pass


def test_a_build_that_was_stopped_or_shared_ends_with_the_same_bytes(
    videos: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(videos, tmp_path / "whole", clip_seconds=2.0)
    with monkeypatch.context() as patch:
        made, count = shard_job.make_sample, Counter[str]()

        def die(*arguments: Any, **options: Any) -> Any:
            count["made"] += 1
            if count["made"] == 7:  # in the second job, after windows of its video
                raise KeyboardInterrupt
            return made(*arguments, **options)

        patch.setattr(shard_job, "make_sample", die)
        with pytest.raises(KeyboardInterrupt):
            build(videos, tmp_path / "stopped", clip_seconds=2.0)
    build(videos, tmp_path / "stopped", clip_seconds=2.0)
    for part in ("2/2", "1/2"):
        assert build(videos, tmp_path / "shared", task=part, clip_seconds=2.0) is None
    build(videos, tmp_path / "shared", clip_seconds=2.0)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "stopped") == whole == contents(tmp_path / "shared")


def test_appending_adds_the_videos_that_have_no_window_yet(videos: list[VideoRecord], tmp_path: Path) -> None:
    first = build(videos[:2], tmp_path / "set", clip_seconds=2.0)
    assert first is not None
    before = contents(tmp_path / "set")
    grown = build(videos, tmp_path / "set", append=True, clip_seconds=2.0)
    assert grown is not None and len(grown) == 7
    after = contents(tmp_path / "set")
    assert all(after[name] == before[name] for name in before if name.startswith("shard-"))
    with pytest.raises(IngestError, match="clip_seconds"):
        build(videos, tmp_path / "set", append=True, clip_seconds=3.0)


def test_a_video_that_cannot_be_read_is_refused_once_and_tried_again(videos: list[VideoRecord], tmp_path: Path) -> None:
    late = tmp_path / "late.mp4"
    records = [videos[2], VideoRecord(key="late", path=late, label=0)]
    shards = build(records, tmp_path / "set", clip_seconds=2.0)
    assert shards is not None and shards.info.refused == {"missing": 1}
    late.write_bytes(videos[1].path.read_bytes())
    grown = build(records, tmp_path / "set", append=True, clip_seconds=2.0)
    assert grown is not None and grown.info.refused == {} and len(grown) == 4


def test_a_video_of_many_windows_is_read_once(
    videos: list[VideoRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = opened.read_source, list[Path]()
    monkeypatch.setattr(opened, "read_source", lambda path, *more: (calls.append(path), read(path, *more))[1])
    monkeypatch.setattr(shard_job, "_sources", opened.LastSource())
    build(videos[:2], tmp_path / "set", clip_seconds=0.5)
    assert calls == [videos[0].path, videos[1].path]


def test_codec_copy_cuts_nothing(videos: list[VideoRecord]) -> None:
    segment = VideoRecord(key="x", path=videos[0].path, start=1.0, where="list.csv:7")
    with Listing([videos[0], segment]) as listing:
        with pytest.raises(IngestError, match=r"list\.csv:7.*codec copy keeps files whole"):
            check_cutting([CopyCodec()], listing.segment)
        check_cutting([CopyCodec(), JpegCodec()], listing.segment)
    with Listing(videos) as listing:
        check_cutting([CopyCodec()], listing.segment)


def test_segments_of_one_file_overlap_in_source(videos: list[VideoRecord], tmp_path: Path) -> None:
    def piece(number: int, start: float, end: float) -> VideoRecord:
        return VideoRecord(key=f"p{number}-{start:g}".replace(".", "_"), path=videos[number].path, start=start, end=end)

    train = build([piece(0, 0.0, 1.0), piece(1, 0.0, 1.0)], tmp_path / "train")
    test = build([piece(0, 3.0, 4.0), piece(2, 0.0, 1.0)], tmp_path / "test")
    assert train is not None and test is not None
    assert overlap(train, test) == ["p0-3"]
    with pytest.raises(ConfigError, match=r"1 of 2 test samples .* is cut from a video that is .*: p0-3"):
        check_held_out([train], test, allow=False)
