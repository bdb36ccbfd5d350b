"""Stores behind s3://, gs:// and az://: files, folders, uploads as a whole or not at all, and sets to train from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sources import open_shards
from rhofast.errors import MachineError
from rhofast.ingest.verify import verify_shards
from rhofast.storage import store_path
from rhofast.storage.network import RetryPolicy
from rhofast.storage.span_file import open_anywhere
from rhofast.storage.store_path import StorePath, as_path, check_store
from tests.helpers.loaders import open_loader
from tests.helpers.object_server import ObjectServer, serving
from tests.helpers.program import run as run_program
from tests.helpers.shards import encode_mjpeg, frame_pixels

pytest.importorskip("obstore")

LARGE = np.random.default_rng(0).bytes((20 << 20) + 17)  # three parts of an upload
QUICK = RetryPolicy(attempts=3, first_pause_s=0.01, max_pause_s=0.02, timeout_s=5.0)
SECRET = "hunter2"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server of a bucket with a name of its own, since open stores are kept by their address."""
    with serving(f"bucket-{uuid.uuid4().hex[:8]}") as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request: pytest.FixtureRequest, store: ObjectServer) -> StorePath:
    path = as_path(f"{request.param}://{next(iter(store.buckets))}")
    assert isinstance(path, StorePath)
    return path


def put(folder: Path, to: Any) -> None:
    for path in folder.iterdir():
        (to / path.name).upload(path)


# ---- files and folders ----


def test_files_and_folders_are_found_as_on_a_disk(store: ObjectServer, bucket: StorePath, tmp_path: Path) -> None:
    names = ("a.mp4", "videos/x y.mp4", "videos/é#1?%20[b].mp4", "videos/deep/z.mkv", "videos/deep/.hidden")
    for number, name in enumerate(names):
        store.objects[f"{bucket.name or next(iter(store.buckets))}/{name}"] = bytes(number)
        (tmp_path / "disk" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "disk" / name).write_bytes(bytes(number))
    disk = tmp_path / "disk"

    def shape(root: Any) -> list[tuple[str, bool, int]]:
        found = sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix())
        return [
            (path.relative_to(root).as_posix(), path.is_dir(), 0 if path.is_dir() else path.stat().st_size)
            for path in found
        ]

    for store.page in (1000, 1):  # one page, and many
        assert shape(bucket) == shape(disk)
        for pattern in ("*.mp4", "*/*.mp4", "**/*.mp4", "videos/*/z.*", "videos/deep/z.mkv", "nothing/*"):
            here = sorted(path.relative_to(disk).as_posix() for path in disk.glob(pattern))
            assert sorted(path.relative_to(bucket).as_posix() for path in bucket.glob(pattern)) == here
    nothing = bucket / "videos" / "nothing"
    assert not nothing.exists() and list(nothing.iterdir()) == [] and (bucket / "videos" / "deep").is_dir()
    odd = bucket / names[2]
    assert odd.is_file() and odd.read_bytes() == bytes(2) and str(odd) == f"{bucket}/{names[2]}"
    odd.unlink()
    odd.unlink()
    assert not odd.exists() and len(store.objects) == len(names) - 1
    assert check_store(bucket) and not check_store(StorePath(f"{bucket}-other")) and not nothing.exists()


def test_a_listing_costs_a_request_per_thousand_files_and_none_for_each(store: ObjectServer, bucket: StorePath) -> None:
    name = next(iter(store.buckets))
    store.objects = {f"{name}/v/{number:06d}.mp4": b"" for number in range(2_500)}
    found = [path for path in (bucket / "v").iterdir() if path.is_file() and path.stat().st_size == 0]
    assert len(found) == 2_500 and sum(store.requests.values()) <= 4


def test_a_text_is_read_in_large_pieces(store: ObjectServer, bucket: StorePath) -> None:
    text = "".join(f"line {number}\n" for number in range(400_000))
    store.objects[f"{next(iter(store.buckets))}/list.txt"] = text.encode()
    with (bucket / "list.txt").open(encoding="utf-8") as file:
        assert sum(1 for _ in file) == 400_000
    assert (bucket / "list.txt").read_text() == text
    assert sum(store.requests.values()) <= 8
    with open_anywhere(bucket / "list.txt") as file:  # type: ignore[arg-type]
        file.seek(-7, 2)
        assert file.read() == text[-7:].encode() and file.tell() == len(text)


# ---- uploads ----


def of_parts(count: int, fault: Any) -> Any:
    """The first writing requests go wrong."""
    left = [fault] * count
    return lambda method, target: left.pop() if method in ("PUT", "POST") and left else None


@pytest.mark.parametrize("size", [0, 1_000, len(LARGE)])
@pytest.mark.parametrize("fault", [None, (503, {"Retry-After": "1"}, b""), (429, {}, b""), (500, {}, b""), "cut"])
def test_an_upload_arrives_whole_after_what_passes(
    store: ObjectServer, bucket: StorePath, tmp_path: Path, size: int, fault: Any
) -> None:
    (tmp_path / "file").write_bytes(LARGE[:size])
    store.fault = of_parts(0 if fault is None else 2, fault)
    (bucket / "set" / "a.tar").upload(tmp_path / "file")
    assert (bucket / "set" / "a.tar").read_bytes() == LARGE[:size]
    assert not store.parts or bucket.protocol == "az"  # what was sent again may leave parts, which are no object


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ((403, {}, b"<Error><Code>AccessDenied</Code></Error>"), OSError, "403"),
        ((400, {}, b"<Error><Code>ExpiredToken</Code><Message>old</Message></Error>"), OSError, "ExpiredToken"),
        ((503, {}, b""), MachineError, "503.* in 3 attempts"),
        ("cut", MachineError, "in 3 attempts"),
    ],
)
def test_an_upload_that_fails_leaves_no_object(
    store: ObjectServer, bucket: StorePath, tmp_path: Path, fault: Any, kind: type, said: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(store_path, "_WRITING", QUICK)
    monkeypatch.setattr("rhofast.storage.object_store._PART_RETRIES", 0)
    (tmp_path / "file").write_bytes(LARGE)
    sent = 0

    def after_the_first_part(method: str, target: str) -> Any:
        nonlocal sent
        sent += method == "PUT"
        return fault if method == "PUT" and sent > 1 else None

    store.fault = after_the_first_part
    with pytest.raises(kind, match=said) as caught:
        (bucket / "a.tar").upload(tmp_path / "file")
    assert "\n" not in str(caught.value) and str(bucket / "a.tar") in str(caught.value)
    assert store.objects == {}


UPLOAD = """
import sys
from pathlib import Path
from rhofast.storage.store_path import as_path
as_path(sys.argv[1]).upload(Path(sys.argv[2]))
"""


def test_a_killed_upload_leaves_no_object(store: ObjectServer, bucket: StorePath, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    begun: list[str] = []

    def slow(method: str, target: str) -> Any:
        if method == "PUT":
            begun.append(target)
            time.sleep(0.2 if len(begun) == 1 else 30)

    store.fault = slow
    command = [sys.executable, "-c", UPLOAD, str(bucket / "a.tar"), str(tmp_path / "file")]
    process = subprocess.Popen(command, env=dict(os.environ))
    while len(begun) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.objects == {} and not (bucket / "a.tar").exists()


def test_a_store_without_whole_writes_shows_no_half_of_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    """Servers of files, such as sftp: the file gets its name when all of it is there."""
    monkeypatch.setattr("rhofast.storage.fsspec_store._SERVERS", {"memory"})
    (tmp_path / "file").write_bytes(b"0123456789")
    path: Any = as_path(f"memory://made-{uuid.uuid4().hex}/set/a.tar")
    path.parent.mkdir()
    seen: list[list[str]] = []
    from fsspec.implementations.memory import MemoryFileSystem

    put_file = MemoryFileSystem.put_file

    def watched(self: Any, source: str, target: str, **options: Any) -> None:
        put_file(self, source, target, **options)
        seen.append([one.name for one in path.parent.iterdir()])

    monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
    path.upload(tmp_path / "file")
    path.upload(tmp_path / "file")
    assert seen == [[".a.tar.tmp"], [".a.tar.tmp", "a.tar"]]
    assert [one.name for one in path.parent.iterdir()] == ["a.tar"] and path.read_bytes() == b"0123456789"


# ---- sets ----


def test_a_set_is_made_in_a_store_and_read_from_it(store: ObjectServer, bucket: StorePath, tmp_path: Path) -> None:
    """Sources, shards, checking, looking and the same bytes as on the disk; errors of the store on the way."""
    videos = tmp_path / "videos"
    for number in range(3):
        (videos / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        frames = [frame_pixels(number, frame) for frame in range(4)]
        (videos / f"class {number % 2}" / f"video {number}.mp4").write_bytes(encode_mjpeg(frames))
    for path in videos.rglob("*.mp4"):
        (bucket / "videos" / path.relative_to(videos).as_posix()).upload(path)
    options = ["--short-side", "32", "--samples-per-shard", "2", "--workers", "1", "--name", "set"]
    faults = iter([(503, {}, b""), (429, {}, b""), (500, {}, b""), "cut"] * 3)
    store.fault = lambda method, target: next(faults, None) if sum(store.requests.values()) % 5 == 4 else None
    assert run_program("shard", bucket / "videos", bucket / "set", *options) == 0
    assert next(faults, "used up") == "used up"
    store.fault = lambda method, target: None
    assert run_program("shard", videos, tmp_path / "set", *options) == 0
    here = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir() if path.name != "refused.jsonl"}
    there = {path.name: path.read_bytes() for path in (bucket / "set").iterdir() if path.name != "refused.jsonl"}
    assert here == there and len(here) == 8
    cache = ["--set", f"data.cache={tmp_path / 'cache'}"]
    assert run_program("inspect", bucket / "set", *cache) == 0
    shown = ["--set", "clips.num_frames=2", "--set", "augment.size=16", *cache]
    assert run_program("show", bucket / "set", "--out", tmp_path / "clips.png", *shown) == 0
    data = DataConfig(cache=tmp_path / "cache")
    assert list(verify_shards(open_shards(str(bucket / "set"), data=data), workers=1)) == []


def take(where: str, folder: Path, **data: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with open_loader(where, folder, **data) as loader:
        return [(views.sample, views.pixels) for views in (next(loader) for _ in range(7))]


def same(left: list[tuple[torch.Tensor, torch.Tensor]], right: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) for one, other in pairs)


@pytest.mark.parametrize("remote", ["ranges", "cache"])
def test_batches_from_a_store_are_those_of_the_local_set(
    bucket: StorePath, shards: ShardSet, tmp_path: Path, remote: str
) -> None:
    put(shards.root, bucket / "set")
    local = take(str(shards.root), tmp_path)
    there = take(str(bucket / "set"), tmp_path / "cache", remote=remote)
    assert same(local, there)
    assert bool(list((tmp_path / "cache").rglob("*.tar"))) == (remote == "cache")


def test_batches_from_moto_s_s3_are_those_of_the_local_set(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    try:
        for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        import boto3

        name = f"bucket-{uuid.uuid4().hex[:8]}"
        boto3.client("s3").create_bucket(Bucket=name)
        address = f"s3://{name}/set"
        put(shards.root, as_path(address))
        local = take(str(shards.root), tmp_path)
        there = take(address, tmp_path / "cache", remote="ranges")
        assert same(local, there)
        run = ["--set", f"data.cache={tmp_path / 'cache'}", "--set", "clips.num_frames=2", "--set", "augment.size=16"]
        assert run_program("show", address, "--key", "v6", "--out", tmp_path / "clips.png", *run) == 0
        assert run_program("inspect", address, *run[:2]) == 0
        assert not list((tmp_path / "cache").rglob("*.tar"))
    finally:
        moto.stop()


def test_an_ingest_that_loses_its_store_is_continued(
    store: ObjectServer, bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One line, the exit code of what can be continued, and no half of a set; the next run makes the rest."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        (videos / f"{number}.mp4").write_bytes(encode_mjpeg([frame_pixels(number, frame) for frame in range(4)]))
    options = ["--short-side", "32", "--samples-per-shard", "1", "--workers", "1", "--name", "set"]
    monkeypatch.setattr(store_path, "_WRITING", QUICK)
    monkeypatch.setattr("rhofast.storage.object_store._PART_RETRIES", 0)
    store.fault = lambda method, target: (503, {}, b"") if method == "PUT" and "refused" in target else None
    assert run_program("shard", videos, bucket / "set", *options) == 75
    said = capsys.readouterr().err
    assert "503" in said and "run the same command again" in said and "Traceback" not in said
    assert not (bucket / "set" / "dataset.json").exists()
    store.fault = lambda method, target: None
    before = {name: content for name, content in store.objects.items() if name.endswith(".tar")}
    assert run_program("shard", videos, bucket / "set", *options) == 0
    assert before.items() <= store.objects.items() and len(before) == 3
    assert json.loads((bucket / "set" / "sizes.json").read_text()) == {f"shard-{n:06d}.tar": 1 for n in range(3)}


# ---- web servers ----


@dataclass
class Site:
    url: str
    sent: int = 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A web server that shows a folder as a page of links; a large file without a suffix lies there, too."""
    (tmp_path / "site" / "videos" / "class 0").mkdir(parents=True)
    frames = [frame_pixels(0, frame) for frame in range(4)]
    (tmp_path / "site" / "videos" / "class 0" / "a b.mp4").write_bytes(encode_mjpeg(frames))
    (tmp_path / "site" / "large").write_bytes(LARGE * 4)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with suppress(ConnectionError):
                while chunk := source.read(1 << 16):
                    outputfile.write(chunk)
                    running.sent += len(chunk)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "site")))
    server.daemon_threads = True
    running = Site(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield running
    server.shutdown()
    server.server_close()


def test_a_page_of_links_is_a_folder_and_a_file_is_not_read_to_find_out(site: Site, tmp_path: Path) -> None:
    root = as_path(f"{site.url}/videos")
    assert root.is_dir() and not root.is_file() and not (root / "none").exists()
    assert [(found.name, found.is_dir()) for found in root.iterdir()] == [("class%200", True)]
    large = as_path(f"{site.url}/large")
    assert large.is_file() and not large.is_dir() and list(large.iterdir()) == []
    assert site.sent < len(LARGE)
    options = ["--short-side", "32", "--workers", "1", "--name", "set"]
    assert run_program("shard", root, tmp_path / "there", *options) == 0
    assert json.loads((tmp_path / "there" / "dataset.json").read_text())["shards"][0]["samples"] == 1
