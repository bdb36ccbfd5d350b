"""Sets and sources on the Hugging Face Hub, by a server of this machine that answers as the hub does."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.sources import open_shards
from rhofast.errors import ShardMissingError
from rhofast.ingest.verify import verify_shards
from rhofast.storage.store_path import as_path
from tests.helpers.program import run as run_program
from tests.helpers.shards import encode_mjpeg, frame_pixels

pytest.importorskip("obstore")

FRAMES = np.array([[0, 5], [7, 23]], dtype=np.int32)
TOKEN = "hf_hunter2"


@dataclass
class Hub:
    """One repository of a data set.

    Attributes:
        name: Its name.
        root: The folder of its files.
        private: Whether a token is needed.
        large: Suffixes of files whose contents come from another place, as those of large files do.
        requests: How often each kind of request was made.
        leaked: Whether the other place was sent the token.
    """

    name: str
    root: Path
    url: str = ""
    private: bool = False
    large: tuple[str, ...] = (".tar", ".arrow")
    requests: Counter[str] = field(default_factory=Counter)
    leaked: bool = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any = b"", /, **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def entry(self, path: Path) -> dict[str, Any]:
        kind = {"path": path.relative_to(self.hub.root).as_posix(), "oid": f"{path.stat().st_mtime_ns:x}"}
        if path.is_dir():
            return {**kind, "type": "directory", "size": 0}
        return {**kind, "type": "file", "size": path.stat().st_size}

    def any(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path.replace("refs/convert/", "refs%2Fconvert%2F")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/elsewhere/"):
            hub.leaked |= "authorization" in self.headers
            hub.requests["elsewhere"] += 1
            return self.content(hub.root / unquote(path.removeprefix("/elsewhere/")))
        api = re.fullmatch(rf"/api/datasets/{hub.name}(?:/(revision|paths-info|tree)/([^/]+)(?:/(.*))?)?", path)
        file = re.fullmatch(rf"/datasets/{hub.name}/resolve/([^/]+)/(.*)", path)
        if not (api or file):
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if hub.private and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if file:
            hub.requests["resolve"] += 1
            name = unquote(file[2])
            if not (hub.root / name).is_file():
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            if name.endswith(hub.large):  # another host name, to which no token may go
                place = hub.url.replace("127.0.0.1", "localhost")
                return self.answer(302, Location=f"{place}/elsewhere/{file[2]}")
            return self.content(hub.root / name)
        assert api is not None
        hub.requests[api[1] or "revision"] += 1
        if api[1] == "paths-info":
            paths = [hub.root / name for name in parse_qs(body.decode())["paths"]]
            return self.answer(200, [self.entry(one) for one in paths if one.exists()])
        if api[1] == "tree":
            folder = hub.root / unquote(api[3] or "")
            if not folder.is_dir():
                return self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
            return self.answer(200, [self.entry(one) for one in sorted(folder.iterdir())])
        return self.answer(200, {"id": hub.name, "sha": "a" * 40, "private": hub.private, "siblings": []})

    do_GET = do_POST = do_HEAD = any  # noqa: N815

    def content(self, path: Path) -> None:
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, content)
        begin, end = int(asked[1]), min(len(content), int(asked[2] or len(content)) + 1)
        return self.answer(206, content[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{len(content)}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, with a repository of its own per test, since open stores are kept by their address."""
    state = Hub(f"someone/set-{uuid.uuid4().hex[:8]}", tmp_path / "repository")
    (tmp_path / "repository").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)  # read when it was imported
    template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    from rhofast.storage.open_store import _shared_folder

    _shared_folder.cache_clear()
    yield state
    _shared_folder.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("remote", ["ranges", "cache"])
@pytest.mark.parametrize("revision", ["", "@main", "@refs%2Fconvert%2Fshards"])
def test_a_set_of_the_hub_is_the_local_one(
    hub: Hub, shards: ShardSet, tmp_path: Path, remote: Any, revision: str
) -> None:
    shards.root.rename(hub.root / "set")
    local = open_shards(hub.root / "set")
    address = f"hf://datasets/{hub.name}{revision}/set"
    there = open_shards(address, data=DataConfig(cache=tmp_path / "cache", remote=remote))
    for sample in range(len(local)):
        ours, theirs = Reader(there).read(sample, FRAMES), Reader(local).read(sample, FRAMES)
        assert ours.key == theirs.key
        assert all(np.array_equal(ours.pictures[frame], theirs.pictures[frame]) for frame in (0, 5, 7, 23))
    assert bool(list((tmp_path / "cache").rglob("*.tar"))) == (remote == "cache")
    assert not hub.leaked
    if not revision.count("%"):
        assert hub.requests["tree"] == 0 and hub.requests["revision"] <= 2  # no request lists a folder


def test_commands_read_the_hub(hub: Hub, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shards.root.rename(hub.root / "set")
    local = open_shards(hub.root / "set")
    address, cache = f"hf://datasets/{hub.name}/set", ["--set", f"data.cache={tmp_path / 'cache'}"]
    assert run_program("inspect", address, *cache) == 0
    run = [*cache, "--set", "clips.num_frames=2", "--set", "augment.size=16"]
    assert run_program("show", address, "--key", "v6", "--out", tmp_path / "clips.png", *run) == 0
    data = DataConfig(cache=tmp_path / "cache")
    found, expected = (verify_shards(one, workers=1) for one in (open_shards(address, data=data), local))
    assert list(map(str, found)) == list(map(str, expected))


def test_videos_of_the_hub_become_shards(hub: Hub, tmp_path: Path) -> None:
    for number in range(3):
        folder = hub.root / "videos" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"video {number}.mp4").write_bytes(encode_mjpeg([frame_pixels(number, frame) for frame in range(4)]))
    options = ["--short-side", "32", "--workers", "1", "--name", "set"]
    source = f"hf://datasets/{hub.name}/videos"
    assert run_program("shard", source, tmp_path / "there", *options) == 0
    assert run_program("shard", hub.root / "videos", tmp_path / "here", *options) == 0
    for name in ("shard-000000.tar", "shard-000000.arrow", "dataset.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert as_path(source).is_dir() and not as_path(f"{source}/none").exists()
    video = as_path(f"{source}/class 0/video 0.mp4")
    assert video.is_file() and video.stat().st_size == len(video.read_bytes())


def test_a_private_set_needs_the_token_of_the_environment(
    hub: Hub, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hub.private = True
    shards.root.rename(hub.root / "set")
    address, cache = f"hf://datasets/{hub.name}/set", ["--set", f"data.cache={tmp_path / 'cache'}"]
    with pytest.raises(ShardMissingError, match="no such repository, or a private one"):
        open_shards(address, data=DataConfig(cache=tmp_path / "cache"))
    assert run_program("inspect", address, *cache) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()  # as a new process would
    remote = open_shards(address, data=DataConfig(cache=tmp_path / "cache", remote="ranges"))
    assert Reader(remote).read(6, FRAMES).bytes_read > 0 and not hub.leaked


def test_what_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "set").mkdir()
    data = DataConfig(cache=tmp_path / "cache")
    with pytest.raises(ShardMissingError, match=r"dataset\.json: no such file"):
        open_shards(f"hf://datasets/{hub.name}/set", data=data)
    with pytest.raises(ShardMissingError, match="no such repository"):
        open_shards("hf://datasets/someone/nothing/set", data=data)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from rhofast.errors import DependencyError

    for module in ("fsspec", "paramiko"):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, module, None)
            with pytest.raises(DependencyError, match="install") as caught:
                open_shards("sftp://host/set", data=DataConfig(cache=tmp_path / "cache"))
            assert "\n" not in str(caught.value) and "sftp://host/set" in str(caught.value)
