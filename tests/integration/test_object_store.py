"""Sources and shards in an object store: the same set as on the disk. The store is moto's, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhofast.errors import ConfigError
from rhofast.storage.store_path import as_path
from tests.helpers.shards import encode_mjpeg, frame_pixels

moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment in which `s3://` means a store of our own."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


def call(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


COPY = """
import sys
import s3fs
store = s3fs.S3FileSystem()
if sys.argv[1] == "put":
    store.mkdir("made-here")
    store.put(sys.argv[2] + "/", "made-here/videos/", recursive=True)
else:
    store.get("made-here/shards/", sys.argv[2] + "/", recursive=True)
"""

READ = """
import sys
import zlib
import numpy as np
from rhofast.config.schema import DataConfig
from rhofast.data.format.reader import Reader
from rhofast.data.sources import open_training
from rhofast.errors import ShardMissingError
try:
    (shards,) = open_training(DataConfig(train=sys.argv[1], cache=sys.argv[2])).sets
except ShardMissingError as error:
    sys.exit(print(error))
for number in range(len(shards)):
    sample = Reader(shards).read(number, np.array([1, 3], dtype=np.int32))
    print(sample.key, sample.label, [zlib.crc32(picture) for picture in sample.pictures.values()])
"""


def test_a_set_made_in_an_object_store_is_the_one_made_on_the_disk(store: dict[str, str], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for number in range(3):
        folder = videos / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        frames = [frame_pixels(number, frame) for frame in range(4)]
        (folder / f"video {number}.mp4").write_bytes(encode_mjpeg(frames))
    (videos / "class 0" / "broken.mp4").write_bytes(b"no video")
    options = ["--short-side", "32", "--samples-per-shard", "2", "--workers", "1", "--name", "set"]
    call(store, "-c", COPY, "put", str(videos))
    call(store, "-m", "rhofast", "shard", "s3://made-here/videos", "s3://made-here/shards", *options)
    again = call(store, "-m", "rhofast", "shard", "s3://made-here/videos", "s3://made-here/shards", *options)
    assert "3 samples" in again and "1 not_a_video" in again
    call(store, "-m", "rhofast", "shard", videos.as_uri(), (tmp_path / "local").as_uri(), *options)
    call(store, "-c", COPY, "get", str(tmp_path / "fetched"))

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "refused.jsonl"}

    assert len(contents(tmp_path / "local")) == 8  # two shards of three files, and two descriptions
    assert contents(tmp_path / "fetched") == contents(tmp_path / "local")
    read = call(store, "-c", READ, "s3://made-here/shards", str(tmp_path / "cache"))
    assert read == call(store, "-c", READ, (tmp_path / "local").as_uri(), str(tmp_path / "unused"))
    assert len(read.splitlines()) == 3 and len(list((tmp_path / "cache").rglob("*.tar"))) == 2
    assert not (tmp_path / "unused").exists()
    missing = call(store, "-c", READ, "s3://made-here/nothing", str(tmp_path / "cache"))
    assert missing == "s3://made-here/nothing/dataset.json: no such file\n"


def test_a_bucket_that_is_not_there_is_not_created(store: dict[str, str], tmp_path: Path) -> None:
    call(store, "-c", "import s3fs; s3fs.S3FileSystem().makedirs('here', exist_ok=True)")
    (tmp_path / "a.mp4").write_bytes(encode_mjpeg([frame_pixels(1, 1)] * 4))
    command = [sys.executable, "-m", "rhofast", "shard", str(tmp_path), "s3://heer/set", "--short-side", "32"]
    done = subprocess.run(command, env=store, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "s3://heer: no such bucket" in " ".join(done.stderr.split())
    assert call(store, "-c", "import s3fs; print(s3fs.S3FileSystem().exists('heer'))") == "False\n"
    command[5] = "s3://here/set"
    call(store, *command[1:])


PUT = """
import sys
import s3fs
store = s3fs.S3FileSystem()
store.makedirs("cold", exist_ok=True)
content = open(sys.argv[1], "rb").read()
store.pipe("cold/warm.mp4", content)
store.call_s3("put_object", Bucket="cold", Key="archived.mp4", Body=content, StorageClass="GLACIER")
"""


def test_objects_that_cannot_be_read_are_refused_by_name(store: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mjpeg([frame_pixels(1, 1)] * 4))
    call(store, "-c", PUT, str(tmp_path / "a.mp4"))
    names = ("warm", "archived", "gone")
    (tmp_path / "list.txt").write_text("".join(f"s3://cold/{name}.mp4\n" for name in names))
    call(store, "-m", "rhofast", "shard", str(tmp_path / "list.txt"), str(tmp_path / "set"), "--short-side", "32")
    lines = [json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()]
    assert [(line["path"], line["reason"]) for line in lines] == [
        ("s3://cold/archived.mp4", "unreadable"),
        ("s3://cold/gone.mp4", "missing"),
    ]
    assert "storage class" in lines[0]["detail"]


def test_without_credentials_the_error_names_the_source(store: dict[str, str], tmp_path: Path) -> None:
    bare = {name: value for name, value in store.items() if not name.startswith("AWS_")}
    bare |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": store["AWS_ENDPOINT_URL"], "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rhofast", "shard", "s3://cold", str(tmp_path / "set")]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "rhofast: error: s3://cold: Unable to locate credentials" in done.stderr


def test_an_address_of_no_known_store_is_one_error() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        as_path("nosuch://bucket/folder")
    assert as_path("file:///a/b%20c") == Path("/a/b c")
