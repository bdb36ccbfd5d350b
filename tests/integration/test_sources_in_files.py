"""Videos in tars and tables become the same set as loose files, from the disk and from an object store, with a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.ingest.executors import set_tick_handler
from rhofast.ingest.recipes import find_records
from rhofast.ingest.shard_job import ShardJob, run_shard_job
from rhofast.ingest.transcode import TranscodeSettings
from tests.helpers.program import run
from tests.helpers.shards import encode_mjpeg, frame_pixels

OPTIONS = ("--short-side", "32", "--samples-per-shard", "2", "--workers", "1", "--name", "set")
KEYS = [f"{number:03d}" for number in range(5)]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rhofast", "shard", *map(str, arguments)]


def shard(*arguments: object, env: dict[str, str] | None = None) -> None:
    if env is None:
        assert run("shard", *arguments, *OPTIONS) == 0
        return
    done = subprocess.run(command(*arguments, *OPTIONS), capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(folder: Path) -> dict[str, bytes]:
    """Return the shards and their indices: all that training reads."""
    return {name: content for name, content in contents(folder).items() if name.startswith("shard-")}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five videos, the lines that describe them, and two tars and a table that hold them."""
    folder = tmp_path_factory.mktemp("videos")
    lines, tars = [], [tarfile.open(folder / f"t-{number}.tar", "w") for number in range(2)]  # noqa: SIM115
    for number, key in enumerate(KEYS):
        content = encode_mjpeg([frame_pixels(number, frame) for frame in range(6)])
        (folder / f"{key}.mp4").write_bytes(content)
        lines.append({"path": f"{key}.mp4", "key": key, "label": number % 2, "extra": {"number": number}})
        fields = {"cls": str(number % 2).encode(), "json": json.dumps({"number": number}).encode(), "mp4": content}
        for suffix, field in fields.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = len(field)
            tars[number >= 3].addfile(info, io.BytesIO(field))
    for tar in tars:
        tar.close()
    table = {
        "video": [{"bytes": (folder / f"{key}.mp4").read_bytes(), "path": f"{key}.mp4"} for key in KEYS],
        "key": KEYS,
        "label": [number % 2 for number in range(5)],
        "number": list(range(5)),
    }
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=3)
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def loose(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that is made of the loose files."""
    out = tmp_path_factory.mktemp("loose") / "set"
    shard(videos / "list.jsonl", out)
    assert json.loads((out / "sizes.json").read_text()) == {f"shard-00000{n}.tar": min(2, 5 - 2 * n) for n in range(3)}
    return out


def test_a_set_made_of_tars_is_that_of_the_loose_files(videos: Path, loose: Path, tmp_path: Path) -> None:
    shard(videos / "t-{0..1}.tar", tmp_path / "set")
    assert samples(tmp_path / "set") == samples(loose)
    shard(videos, tmp_path / "set", "--recipe", "webdataset_tars")  # another way to say the same
    assert samples(tmp_path / "set") == samples(loose)


def test_windows_of_members_are_those_of_files(videos: Path, tmp_path: Path) -> None:
    for source, out in (("list.jsonl", "loose"), ("t-{0..1}.tar", "tars")):
        shard(videos / source, tmp_path / out, "--clip-seconds", "0.25", "--stride", "0.25")
    assert samples(tmp_path / "tars") == samples(tmp_path / "loose")
    assert sum(json.loads((tmp_path / "tars" / "sizes.json").read_text()).values()) == 10


def test_segments_of_json_lines_and_of_a_table_are_the_same(videos: Path, tmp_path: Path) -> None:
    spans = [("000", 0.0, 0.25), ("000", 0.25, None), ("001", None, 0.3)]
    lines = [
        {"path": str(videos / f"{key}.mp4"), "key": f"s{n}", "start": start, "end": end}
        for n, (key, start, end) in enumerate(spans)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    contents = [{"bytes": (videos / f"{key}.mp4").read_bytes(), "path": f"{key}.mp4"} for key, _, _ in spans]
    columns = {name: [line[name] for line in lines] for name in ("key", "start", "end")}
    pq.write_table(pa.table({"video": contents, **columns}), tmp_path / "table.parquet")
    shard(tmp_path / "list.jsonl", tmp_path / "lines")
    shard(tmp_path / "table.parquet", tmp_path / "table", "--option", "key_column=key")
    assert samples(tmp_path / "table") == samples(tmp_path / "lines")
    with tarfile.open(tmp_path / "table" / "shard-000000.tar") as tar:
        assert json.load(tar.extractfile("s0.json"))["frames"] == 3  # type: ignore[arg-type]


TABLE = ("--option", "key_column=key", "--option", "fields=number")


def test_a_set_made_of_a_table_is_that_of_the_loose_files(videos: Path, loose: Path, tmp_path: Path) -> None:
    shard(videos / "table.parquet", tmp_path / "set", *TABLE)
    assert samples(tmp_path / "set") == samples(loose)


def test_tars_that_come_later_are_appended(videos: Path, loose: Path, tmp_path: Path) -> None:
    shard(videos / "t-0.tar", tmp_path / "set")
    shard(videos / "t-*.tar", tmp_path / "set", "--append")
    names: list[str] = []
    for path in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert [name for name in names if name.endswith(".json")] == [f"{key}.json" for key in KEYS]


def test_a_dry_run_and_parts_read_tars_too(videos: Path, loose: Path, tmp_path: Path) -> None:
    shard(videos / "t-0.tar", tmp_path / "set", "--dry-run", "3", "--report", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tried"] == 3 and not report["codecs"][0]["refused"] and not (tmp_path / "set").exists()
    sizes = [(videos / f"{key}.mp4").stat().st_size for key in KEYS[:3]]
    assert report["source_bytes"] == pytest.approx(sum(sizes) / 3)
    for part in ("1/2", "2/2"):
        shard(videos / "t-{0,1}.tar", tmp_path / "set", "--task", part)
    shard(videos / "t-{0,1}.tar", tmp_path / "set")
    assert samples(tmp_path / "set") == samples(loose)


def test_a_killed_build_of_tars_ends_with_the_same_bytes(videos: Path, loose: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for name in (".job-000000.jsonl", ".job-000001.jsonl"):
        process = subprocess.Popen(command(videos / "t-{0..1}.tar", out, *OPTIONS), stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / name).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    shard(videos / "t-{0..1}.tar", out)
    assert samples(out) == samples(loose)
    assert not [name for name in contents(out) if ".job-" in name]


def test_what_is_wrong_in_a_tar_is_refused_by_tar_and_member(videos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(videos / "000.mp4", "good.mp4")
        for name, content in (("dir/bad.mp4", b"no video" * 50), ("empty.mp4", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shard(tmp_path / "a.tar", tmp_path / "set")
    refused = [json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()]
    assert [(each["path"], each["reason"]) for each in refused] == [
        (f"{tmp_path}/a.tar: dir/bad.mp4", "not_a_video"),
        (f"{tmp_path}/a.tar: empty.mp4", "empty"),
    ]


def test_a_bad_tar_ends_the_command_with_one_line_and_nothing_lost(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "t-1.tar").read_bytes()
    (tmp_path / "t-1.tar").write_bytes(whole[: len(whole) // 2])
    os.link(videos / "t-0.tar", tmp_path / "t-0.tar")
    done = subprocess.run(
        command(tmp_path / "t-{0,1}.tar", tmp_path / "set", *OPTIONS), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"rhofast: error: {tmp_path}/t-1.tar: cut short: it ends within" in " ".join(done.stderr.split())
    assert not (tmp_path / "set").exists()


def test_clips_of_a_curation_pipeline_that_pass_a_condition(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("clips", "metas/v0"):
        (tmp_path / "output" / folder).mkdir(parents=True)
    for number, key in enumerate(KEYS):
        os.link(videos / f"{key}.mp4", tmp_path / "output" / "clips" / f"{key}.mp4")
        metadata = {"motion_score": {"global_mean": number / 10}, "aesthetic_score": 5.5 - number}
        (tmp_path / "output" / "metas/v0" / f"{key}.json").write_text(json.dumps(metadata))
    where = "where=motion_score>=0.1 and aesthetic_score > 2"
    shard(tmp_path / "output", tmp_path / "set", "--recipe", "curator", "--option", where)
    assert "2 clips that `where` leaves out" in " ".join(capsys.readouterr().out.split())
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        content = json.load(tar.extractfile("001.json"))  # type: ignore[arg-type]
    assert content["extra"] == {"motion_score": {"global_mean": 0.1}, "aesthetic_score": 4.5}
    assert list(json.loads((tmp_path / "set" / "sizes.json").read_text()).values()) == [2, 1]


def test_progress_counts_the_bytes_of_videos_in_tables(videos: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    job = ShardJob(
        number=0,
        records=tuple(find_records(videos / "table.parquet", None, ["key_column=key"])),
        out=tmp_path,
        codecs=(codec_settings(CopyCodec()),),
        settings=TranscodeSettings(),
        encoder="none",
    )
    set_tick_handler(seen.append)
    try:
        assert run_shard_job(job)[0] == 0
    finally:
        set_tick_handler(lambda _: None)
    assert seen == [(videos / f"{key}.mp4").stat().st_size for key in KEYS]


# ---- in an object store ----

PUT = """
import sys
import s3fs
store = s3fs.S3FileSystem()
store.makedirs("bucket", exist_ok=True)
for path in sys.argv[1:]:
    store.put(path, "bucket/" + path.rpartition("/")[2])
"""


@pytest.fixture(scope="module")
def store(videos: Path) -> Iterator[dict[str, str]]:
    """The environment in which `s3://` means a store of our own, which holds the tars."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    paths = [str(path) for path in sorted(videos.glob("t-*.tar"))] + [str(videos / "table.parquet")]
    subprocess.run([sys.executable, "-c", PUT, *paths], env=environment, check=True, timeout=120)
    yield environment
    server.stop()


LISTED = """
import sys
from pathlib import Path
from rhofast.ingest.recipes import find_records
from rhofast.storage.store_path import as_path
for source in sys.argv[1:]:
    found = find_records(as_path(source), "webdataset_tars", [])
    print(*((record.key, str(record.path), record.inside.offset, record.label, record.extra) for record in found))
"""


def test_tars_of_a_store_become_the_same_set(store: dict[str, str], loose: Path, tmp_path: Path) -> None:
    shard("s3://bucket/t-{0..1}.tar", tmp_path / "set", env=store)
    assert samples(tmp_path / "set") == samples(loose)
    (tmp_path / "list.txt").write_text("s3://bucket/t-0.tar\ns3://bucket/t-1.tar\n")
    sources = ("s3://bucket/t-{0..1}.tar", "s3://bucket/t-*.tar", "s3://bucket", str(tmp_path / "list.txt"))
    listed = subprocess.run(
        [sys.executable, "-c", LISTED, *sources], env=store, capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    assert len(listed) == 4 and len(set(listed)) == 1 and "'004'" in listed[0] and "s3://bucket/t-1.tar" in listed[0]


def test_a_table_of_a_store_becomes_the_same_set(store: dict[str, str], loose: Path, tmp_path: Path) -> None:
    shard("s3://bucket/table.parquet", tmp_path / "set", *TABLE, env=store)
    assert samples(tmp_path / "set") == samples(loose)


def test_a_tar_that_a_store_lacks_is_named(store: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        command("s3://bucket/t-{0..2}.tar", tmp_path / "set"), capture_output=True, text=True, timeout=120, env=store
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "rhofast: error: s3://bucket/t-2.tar: no such file" in " ".join(done.stderr.split())
