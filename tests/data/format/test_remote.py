"""Shards behind an address: what comes is what was there, whatever the network and other processes do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.download_ahead import DownloadAhead
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import RemoteShardSet, StoppedError
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.shuffle import Order
from rhofast.data.sources import _lane_bytes, open_shards, open_training
from rhofast.errors import ConfigError, SampleError, ShardError, ShardFormatError, ShardMissingError
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.network import RetryPolicy
from tests.helpers import loaders
from tests.helpers.shards import damage_unit, write_shards

pytest.importorskip("obstore")

QUICK = RetryPolicy(attempts=4, first_pause_s=0.01, max_pause_s=0.02, timeout_s=1.0, failed_for_s=0.2)
Fault = Callable[["Handler", bytes], bool]


@dataclass
class Site:
    """An HTTP server of a folder. requests: how often a file was asked for. faults: what happens instead of an answer,
    for the next times that a file is asked for. parts: whether it answers for a part; begins: of which byte it was
    asked for then."""

    url: str
    root: Path
    requests: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    parts: bool = False
    begins: list[int] = field(default_factory=list)


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        path = self.site.root / name
        self.site.requests[name] += 1
        if not path.is_file():
            self.send_error(404)
            return
        faults = self.site.faults.get(name)
        content = path.read_bytes()
        if self.begin:
            self.site.begins.append(self.begin)
            content = content[self.begin :]
        if faults and faults.pop(0)(self, content):
            return
        self.answer(content)

    def answer(self, content: bytes, length: int | None = None) -> None:
        self.send_response(206 if self.begin else 200)
        if self.begin:
            size = (self.site.root / self.path.rpartition("/")[2]).stat().st_size
            self.send_header("Content-Range", f"bytes {self.begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    @property
    def begin(self) -> int:
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.site.parts else 0

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(shards: ShardSet) -> Iterator[Site]:
    one = Site("", shards.root)
    handler = type("Bound", (Handler,), {"site": one})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    one.url = f"http://127.0.0.1:{server.server_address[1]}/set"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    yield one
    server.shutdown()
    server.server_close()
    thread.join()


def drop(handler: Handler, content: bytes, share: int = 2) -> bool:
    """The connection ends in the middle."""
    handler.answer(content[: len(content) // share], len(content))
    handler.wfile.flush()
    time.sleep(0.25)  # what comes together with the end of the connection would be lost
    handler.close_connection = True
    return True


def short(handler: Handler, content: bytes) -> bool:
    """Less comes, and is called all."""
    handler.answer(content[:-100])
    return True


def error_500(handler: Handler, content: bytes) -> bool:
    handler.send_error(500)
    return True


def forbidden(handler: Handler, content: bytes) -> bool:
    handler.send_error(403)
    return True


def other(handler: Handler, content: bytes) -> bool:
    """As many bytes, and others."""
    handler.answer(bytes(len(content)))
    return True


def silent(handler: Handler, content: bytes) -> bool:
    """Half of it comes, and then nothing."""
    handler.answer(content[: len(content) // 2], len(content))
    handler.wfile.flush()
    time.sleep(1.5)
    handler.close_connection = True
    return True


def slow(handler: Handler, content: bytes) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    try:
        for begin in range(0, len(content), 1 << 12):
            handler.wfile.write(content[begin : begin + (1 << 12)])
            time.sleep(0.05)
    except OSError:  # the other side had enough
        handler.close_connection = True
    return True


def open_remote(
    site: Site, folder: Path, *, max_bytes: int = 10**9, retry_policy: RetryPolicy = QUICK
) -> RemoteShardSet:
    return RemoteShardSet(RemoteFolder(site.url, retry_policy), Cache(folder, max_bytes=max_bytes, stall_s=5.0))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


TAR = "shard-000001.tar"


def test_a_remote_set_reads_as_the_local_one(site: Site, shards: ShardSet, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    there, here = Reader(remote), Reader(shards)
    frames = np.array([[0, 5], [7, 23]], dtype=np.int32)
    for sample in range(len(shards)):
        ours, theirs = there.read(sample, frames), here.read(sample, frames)
        assert (ours.key, ours.label, ours.bytes_read) == (theirs.key, theirs.label, theirs.bytes_read)
        assert all(np.array_equal(ours.pictures[frame], theirs.pictures[frame]) for frame in (0, 5, 7, 23))
    assert set(site.requests.values()) == {1}
    assert remote.info.digest == shards.info.digest and remote.where == site.url


def test_the_next_run_downloads_nothing_but_the_description(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        Reader(open_remote(site, tmp_path / "cache")).read(6, np.array([0], dtype=np.int32))
    assert site.requests == {"dataset.json": 2, "shard-000001.arrow": 1, TAR: 1}


@pytest.mark.parametrize(
    "faults",
    [[drop], [error_500, error_500], [short], [silent], [other], [drop, short, other]],
    ids=lambda faults: "-".join(fault.__name__ for fault in faults),
)
def test_a_fault_of_the_network_is_overcome(site: Site, tmp_path: Path, faults: list[Fault]) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults[TAR] = list(faults)
    assert sha256(remote.local(TAR)) == remote.info.shards[1].tar_sha256
    assert site.requests[TAR] == len(faults) + 1
    assert not left_over(tmp_path / "cache")


def test_a_download_goes_on_where_the_network_failed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhofast.storage.object_store.CHUNK", 64)
    monkeypatch.setattr("rhofast.storage.download.CHUNK", 64)
    remote, size = open_remote(site, tmp_path / "cache"), (site.root / TAR).stat().st_size
    site.parts, site.faults[TAR] = True, [drop, error_500, drop]
    assert sha256(remote.local(TAR)) == remote.info.shards[1].tar_sha256
    assert site.begins == [size // 2, size // 2, size // 2 + (size - size // 2) // 2]

    # An attempt that brings a piece does not count as failed, so a file of many pieces comes over a bad network, too.
    site.faults[TAR] = [drop] * 5  # more than the attempts
    other = open_remote(site, tmp_path / "other")
    assert sha256(other.local(TAR)) == remote.info.shards[1].tar_sha256


def test_a_store_that_always_begins_again_is_given_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other attempt comes further than the one before it, and none further than the first."""
    monkeypatch.setattr("rhofast.storage.object_store.CHUNK", 64)
    monkeypatch.setattr("rhofast.storage.download.CHUNK", 64)
    remote = open_remote(site, tmp_path / "cache")
    site.faults[TAR] = [drop, partial(drop, share=4)] * 4
    with pytest.raises(ShardMissingError, match="4 attempts"):
        remote.local(TAR)
    assert site.requests[TAR] == 6  # the second attempt finds out that ranges are ignored


def test_a_store_that_can_seek_is_read_on_from_there(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = RemoteFolder(shards.root.as_uri(), QUICK), shards.info.shards[0].tar
    content, begins = (shards.root / name).read_bytes(), list[int]()

    class Failing(io.BytesIO):
        """Gives a thousand bytes, then fails."""

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() != (begins[-1] if begins else 0) and len(begins) < 3:
                raise OSError("the network is gone")
            return super().read(1000)

        def seek(self, place: int, whence: int = 0, /) -> int:
            begins.append(place)
            return super().seek(place, whence)

    assert isinstance(folder.store, FsspecFolder)
    monkeypatch.setattr(folder.store._store, "open", lambda *_, **__: Failing(content))
    with (tmp_path / "copy").open("w+b") as file:
        folder.download(name, file, size=len(content), sha256=shards.info.shards[0].tar_sha256, sleep=lambda _: None)
    assert (tmp_path / "copy").read_bytes() == content and begins == [1000, 2000, 3000]


def test_a_part_of_something_else_is_noticed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhofast.storage.object_store.CHUNK", 64)

    def other_part(handler: Handler, content: bytes) -> bool:
        handler.answer(bytes(len(content)))
        return True

    remote = open_remote(site, tmp_path / "cache")
    site.parts, site.faults[TAR] = True, [drop, other_part]
    assert sha256(remote.local(TAR)) == remote.info.shards[1].tar_sha256
    assert len(site.begins) == 1 and site.requests[TAR] == 3  # then again from the beginning


@pytest.mark.parametrize(
    ("fault", "requests", "said"),
    [(error_500, 4, "500 Internal Server Error, in 4 attempts"), (short, 4, "4 attempts"), (forbidden, 1, "403")],
)
def test_a_fault_that_stays_is_one_error_naming_the_address(
    site: Site, tmp_path: Path, fault: Fault, requests: int, said: str
) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults[TAR] = [fault] * 100
    with pytest.raises(ShardMissingError, match=f"{site.url}/{TAR}: .*{said}"):
        remote.local(TAR)
    assert site.requests[TAR] == requests
    with pytest.raises(ShardMissingError, match=said):  # known for a while, without asking again
        remote.local(TAR)
    assert site.requests[TAR] == requests
    time.sleep(QUICK.failed_for_s)
    site.faults.clear()
    assert remote.local(TAR).is_file()


def test_another_content_is_fetched_once_more_and_then_refused(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults[TAR] = [other] * 100
    with pytest.raises(ShardFormatError, match=f"{TAR}: its SHA-256 differs .* in 2 downloads"):
        remote.local(TAR)
    assert site.requests[TAR] == 2 and not left_over(tmp_path / "cache")


def test_what_is_not_there_is_said_at_once(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    (site.root / TAR).unlink()
    reader = Reader(remote)
    with pytest.raises(SampleError, match=f"{site.url}/{TAR}: no such file"):
        reader.read(6, np.array([0], dtype=np.int32))
    assert site.requests[TAR] == 1
    (site.root / "dataset.json").unlink()
    with pytest.raises(ShardMissingError, match=r"dataset\.json: no such file"):
        open_remote(site, tmp_path / "cache")


def test_a_damaged_index_in_the_cache_is_fetched_again(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    path = remote.local("shard-000001.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert remote.row(6).key == "v6"
    assert site.requests["shard-000001.arrow"] == 2


def test_a_rotten_tar_in_the_cache_is_fetched_again(site: Site, shards: ShardSet, tmp_path: Path) -> None:
    frames = np.array([3], dtype=np.int32)
    remote = open_remote(site, tmp_path / "cache")
    cached = remote.local(TAR)
    before = cached.stat()
    whole = cached.read_bytes()
    cached.write_bytes(bytes(len(whole)))  # the disk gives other bytes, and nothing else tells
    os.utime(cached, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Reader(remote).read(6, frames).bytes_read == Reader(shards).read(6, frames).bytes_read
    assert site.requests[TAR] == 2 and sha256(remote.local(TAR)) == remote.info.shards[1].tar_sha256


def test_a_tar_of_another_content_is_fetched_again_before_it_is_read(site: Site, tmp_path: Path) -> None:
    cached = open_remote(site, tmp_path / "cache").local(TAR)
    cached.write_bytes(bytes(cached.stat().st_size))
    again = open_remote(site, tmp_path / "cache")
    assert sha256(again.local(TAR)) == again.info.shards[1].tar_sha256 and site.requests[TAR] == 2


def test_a_set_with_the_same_indices_and_other_pictures_shares_nothing(
    site: Site, shards: ShardSet, tmp_path: Path
) -> None:
    described, tar = shards.root / "dataset.json", shards.root / TAR
    honest, whole = described.read_text(), tar.read_bytes()
    forged = whole[:-1] + b"x"
    tar.write_bytes(forged)
    info = json.loads(honest)
    info["shards"][1]["tar_sha256"] = sha256(tar)
    described.write_text(json.dumps(info))
    stranger = open_remote(site, tmp_path / "cache")
    assert stranger.local(TAR).read_bytes() == forged
    described.write_text(honest)
    tar.write_bytes(whole)
    mine = open_remote(site, tmp_path / "cache")
    assert mine.info.digest == stranger.info.digest
    assert mine.local(TAR).read_bytes() == whole


def test_a_sample_damaged_at_its_origin_is_one_bad_sample(shards: ShardSet, site: Site, tmp_path: Path) -> None:
    damage_unit(shards, 6, 3)
    info = json.loads((shards.root / "dataset.json").read_text())
    info["shards"][1]["tar_sha256"] = sha256(shards.root / TAR)
    (shards.root / "dataset.json").write_text(json.dumps(info))
    reader = Reader(open_remote(site, tmp_path / "cache"))
    with pytest.raises(SampleError, match="frame 3: checksum"):
        reader.read(6, np.array([3], dtype=np.int32))
    reader.read(7, np.array([3], dtype=np.int32))


CLIENT = """
import sys
from pathlib import Path
from rhofast.storage.cache import Cache
from rhofast.storage.download import RemoteFolder
from rhofast.storage.network import RetryPolicy
from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.data.format.remote import RemoteShardSet
url, folder, name = sys.argv[1:]
remote = RemoteShardSet(RemoteFolder(url, RetryPolicy(attempts=2)), Cache(Path(folder), max_bytes=10**9))
print("began", flush=True)
print(remote.local(name), flush=True)
"""


def client(site: Site, folder: Path, name: str = TAR) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, site.url, str(folder), name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "began\n"
    return process


def rest_of_output(process: subprocess.Popen[str]) -> str:
    """Read what follows the first line. `communicate` with a timeout would lose what is already in the buffer."""
    assert process.stdout is not None
    with process:  # closes the pipe and waits for the process
        return process.stdout.read()


def test_processes_share_one_download(site: Site, tmp_path: Path) -> None:
    site.faults[TAR] = [slow]
    clients = [client(site, tmp_path / "cache") for _ in range(2)]
    assert [rest_of_output(process).strip().endswith(TAR) for process in clients] == [True, True]
    assert site.requests[TAR] == 1


def test_threads_share_one_download(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults[TAR] = [slow]
    threads = [threading.Thread(target=remote.local, args=(TAR,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert site.requests[TAR] == 1


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_file(site: Site, tmp_path: Path) -> None:
    site.faults[TAR] = [slow]
    process = client(site, tmp_path / "cache")
    while not any(path.stat().st_size for path in tmp_path.rglob("*.part")):
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert left_over(tmp_path / "cache") == [f".{TAR}.part"]
    remote = open_remote(site, tmp_path / "cache")
    assert sha256(remote.local(TAR)) == remote.info.shards[1].tar_sha256
    assert not left_over(tmp_path / "cache")


def test_the_bound_holds_and_what_was_asked_for_last_stays(site: Site, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in open_remote(site, tmp_path / "cache").info.shards]
    bound = sizes[0] + max(sizes[1:]) + 10
    remote = open_remote(site, tmp_path / "cache", max_bytes=bound)
    for name in ("shard-000000.tar", "shard-000001.tar", "shard-000000.tar", "shard-000002.tar", "shard-000000.tar"):
        remote.local(name)
        assert remote.cache.num_bytes() <= bound
        time.sleep(0.005)
    assert [site.requests[f"shard-00000{number}.tar"] for number in range(3)] == [1, 1, 1]
    remote.local("shard-000001.tar")
    assert site.requests["shard-000001.tar"] == 2


def test_what_a_killed_process_left_makes_room(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache", max_bytes=10**6)
    stale = tmp_path / "cache" / "another set" / ".shard-000007.tar.part"
    stale.parent.mkdir()
    stale.touch()
    os.truncate(stale, 10**6)
    remote.local(TAR)
    assert not stale.exists()


def test_a_shard_above_the_bound_is_one_error(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache", max_bytes=1000)
    with pytest.raises(ConfigError, match=r"data\.cache_gb=1e-06 is too small: shard-000001\.tar alone needs"):
        remote.local(TAR)


def test_a_full_disk_is_one_error(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = open_remote(site, tmp_path / "cache")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        Reader(remote).read(6, np.array([0], dtype=np.int32))
    assert not left_over(tmp_path / "cache")


def test_a_cache_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache=.* cannot be used: Not a directory"):
        Cache(tmp_path / "file" / "cache", max_bytes=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is neither a cache nor empty"):
        Cache(tmp_path / "mine", max_bytes=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_shards_are_there_before_they_are_needed(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    ahead = DownloadAhead([(remote, iter([2, 0, 1]))], threads=2)
    wait_for(lambda: len(list((tmp_path / "cache").rglob("shard-*"))) == 6)
    before = site.requests.copy()
    for sample in range(len(remote)):
        Reader(remote).read(sample, np.array([0], dtype=np.int32))
    assert site.requests == before
    close(ahead)


def test_downloads_ahead_stop_at_their_bound_and_go_on_with_use(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    remote.ahead_bytes = remote.info.shards[0].bytes + remote.info.shards[0].index_bytes + 10
    ahead = DownloadAhead([(remote, iter([0, 1, 2]))], threads=2)
    wait_for(lambda: site.requests["shard-000000.tar"] == 1)
    time.sleep(0.1)
    assert site.requests[TAR] == 0
    Reader(remote).read(0, np.array([0], dtype=np.int32))
    wait_for(lambda: site.requests[TAR] == 1)
    close(ahead)


def test_closing_ends_a_download_under_way(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults = {TAR: [slow] * 9}
    ahead = DownloadAhead([(remote, iter([1]))], threads=1)
    errors: list[Exception] = []

    def read() -> None:
        try:
            remote.local(TAR)
        except StoppedError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: site.requests[TAR] == 1)
    began = time.monotonic()
    close(ahead)
    reader.join(5)
    assert time.monotonic() - began < 10 and TAR in str(errors[0])
    site.faults.clear()
    assert remote.local(TAR).is_file()


def test_closing_one_loader_leaves_the_downloads_of_another(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    site.faults = {TAR: [slow]}
    training = DownloadAhead([(remote, iter([1]))], threads=1)
    wait_for(lambda: site.requests[TAR] == 1)
    evaluation = DownloadAhead([(remote, iter([0]))], threads=1)
    wait_for(lambda: site.requests["shard-000000.tar"] == 1)
    evaluation.close()
    assert remote.local(TAR).is_file() and site.requests[TAR] == 1
    close(training)


def test_a_set_that_is_being_closed_starts_no_download(site: Site, tmp_path: Path) -> None:
    remote = open_remote(site, tmp_path / "cache")
    ahead = DownloadAhead([(remote, iter([0]))], threads=1)
    wait_for(lambda: site.requests["shard-000000.tar"] == 1)
    ahead.stop()
    with pytest.raises(StoppedError, match=TAR):
        remote.local(TAR)
    close(ahead)
    assert remote.local(TAR).is_file()


def test_a_set_larger_than_its_cache_is_gone_through_block_by_block(
    tmp_path: Path, members: list[bytes], shards: ShardSet, site: Site
) -> None:
    shutil.rmtree(site.root)
    shards = write_shards(site.root, members, per_shard=1)
    total = sum(shard.bytes + shard.index_bytes for shard in shards.info.shards)
    data = DataConfig(train=site.url, cache=tmp_path / "cache", cache_gb=0.5 * total / 1e9, block_shards=3)
    (remote,) = open_training(data).sets
    assert isinstance(remote, RemoteShardSet)
    order = Order(remote.starts, seed=1, block_shards=3)
    ahead = DownloadAhead([(remote, order.shards_from(0, 0))], threads=2)
    reader, seen = Reader(remote), []
    for position in range(len(remote)):
        sample = int(order.at(0, position))
        seen.append(reader.read(sample, np.array([3], dtype=np.int32)).key)
        assert remote.cache.num_bytes() <= 0.5 * total
    close(ahead)
    assert sorted(seen) == sorted(f"v{sample}" for sample in range(len(members)))
    assert site.requests["shard-000000.tar"] <= 3


def open_loader(rank: int = 0, world_size: int = 1, *, train: Any, cache: Path, **data: Any) -> TrainLoader:
    """Open a loader with blocks of one shard. data: more options of the `data` config."""
    return loaders.open_loader(train, cache, rank, world_size, seed=0, **{"block_shards": 1, "prefetch": 1, **data})


def test_a_loader_gives_the_batches_of_the_local_set(site: Site, shards: ShardSet, tmp_path: Path) -> None:
    def batches(train: str) -> list[torch.Tensor]:
        with open_loader(train=train, cache=tmp_path / "cache") as loader:
            return [next(loader).pixels for _ in range(5)]

    pairs = zip(batches(site.url), batches(str(shards.root)), strict=True)
    assert all(torch.equal(remote, local) for remote, local in pairs)
    assert not [thread for thread in threading.enumerate() if thread.name == "rhofast-download"]


def test_with_lanes_each_rank_fetches_shards_of_its_own(
    tmp_path: Path, members: list[bytes], shards: ShardSet, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(DownloadAhead):
        def __init__(self, needed: Iterable[tuple[ShardSet, Iterator[int]]], *, threads: int) -> None:
            first = [(one, list(islice(names, 6))) for one, names in needed]
            ahead.extend(first[0][1])
            super().__init__([(one, iter(names)) for one, names in first], threads=threads)

    ahead: list[int] = []
    monkeypatch.setattr("rhofast.data.loader.staged_loader.DownloadAhead", Recording)
    shutil.rmtree(site.root)
    shards = write_shards(site.root, members, per_shard=1)

    def samples(train: str, rank: int, world_size: int, cache: str, lanes: int = 4) -> list[int]:
        """Of an epoch's batches."""
        with open_loader(rank, world_size, train=train, cache=tmp_path / cache, lanes=lanes) as loader:
            return [sample for _ in range(loader.steps_per_epoch) for sample in next(loader).sample.tolist()]

    whole = samples(str(shards.root), 0, 1, "none")
    ahead.clear()
    for rank in (0, 1):  # two lanes of the four
        mine = samples(site.url, rank, 2, f"cache{rank}")
        assert mine == [sample for step in range(0, len(whole), 4) for sample in whole[step + 2 * rank :][:2]]
        assert len(mine) == 6 and set(mine) == set(ahead)  # a shard holds one sample
        ahead.clear()
    with pytest.raises(ConfigError, match=r"data\.lanes=16: 13 samples cannot be divided among 16 lanes"):
        samples(str(shards.root), 0, 1, "none", lanes=16)
    with pytest.raises(ConfigError, match=r"batch of 4 cannot be divided among data\.lanes=3"):
        samples(str(shards.root), 0, 1, "none", lanes=3)


def test_a_node_with_fixed_lanes_fetches_its_part_of_the_shards_once(
    tmp_path: Path, members: list[bytes], site: Site
) -> None:
    shutil.rmtree(site.root)
    write_shards(site.root, members, per_shard=1)
    with open_loader(1, 2, train=site.url, cache=tmp_path / "cache", lanes=4, fixed_lanes=True) as loader:
        epochs = [
            [sample for _ in range(loader.steps_per_epoch) for sample in next(loader).sample.tolist()] for _ in range(4)
        ]
    assert epochs[0] != epochs[1] and all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    tars = {name: count for name, count in site.requests.items() if name.endswith(".tar")}
    assert tars == {f"shard-{sample:06d}.tar": 1 for sample in epochs[0]}  # a shard holds one sample


@pytest.mark.parametrize(
    "listed", ["v1\nv2\nv12\nv0\n", "key,weight\nv1,2\nv2,1\nv12,0.5\nv0,0.5\n"], ids=["equal", "weighted"]
)
def test_a_part_of_a_remote_set_needs_only_its_shards(
    site: Site, shards: ShardSet, tmp_path: Path, listed: str
) -> None:
    keep = tmp_path / ("k.csv" if "," in listed else "k.txt")
    keep.write_text(listed)

    def batches(where: str) -> list[list[int]]:
        data = [{"shards": where, "keep": keep}]
        with open_loader(train=data, cache=tmp_path / "cache") as loader:
            return [next(loader).sample.tolist() for _ in range(6)]

    remote = batches(site.url)
    assert remote == batches(str(shards.root)) and {sample for batch in remote for sample in batch} == {0, 1, 2, 3}
    assert site.requests == {
        "dataset.json": 1,
        **{f"shard-{number:06d}.arrow": 1 for number in range(3)},  # for the keys
        **{f"shard-{number:06d}.tar": 1 for number in (0, 2)},
    }


def test_a_lane_of_a_part_may_need_the_shards_with_few_samples(site: Site, shards: ShardSet, tmp_path: Path) -> None:
    keep = tmp_path / "k.txt"
    keep.write_text("".join(f"v{number}\n" for number in (0, 1, 2, 3, 5, 10)))  # 4, 1 and 1 of the three shards
    sizes = [shard.bytes + shard.index_bytes for shard in shards.info.shards]
    part = open_shards(site.url, keep=keep, data=DataConfig(cache=tmp_path / "cache"))
    assert isinstance(part, RemoteShardSet)
    assert _lane_bytes(part, [0, 1, 2], 1) == sum(sizes)
    whole = open_shards(site.url, data=DataConfig(cache=tmp_path / "cache"))
    assert isinstance(whole, RemoteShardSet)
    assert _lane_bytes(whole, [0, 1, 2], 13) == 2 * max(sizes)  # one sample, at most in two shards
    assert _lane_bytes(part, [0, 1, 2], 3) == sum(sizes)  # two samples: both small shards, and the edges


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "all remote shards need"),
        ({"block_shards": 2}, "two blocks of 2 shards need"),
        ({"block_shards": 2, "lanes": 4}, "two blocks of 2 shards of 4 lanes need"),
    ],
)
def test_a_cache_too_small_for_the_order_is_refused(
    site: Site, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"data.cache_gb=1e-06 is too small: {said} .*block_shards"):
        open_training(DataConfig(train=site.url, cache=tmp_path / "cache", cache_gb=1e-6, **change))


def test_sets_of_all_kinds_are_opened_together(site: Site, tmp_path: Path, members: list[bytes]) -> None:
    local = write_shards(tmp_path / "other", members[:4])
    data = DataConfig(
        train=[{"shards": site.url, "weight": 2}, local.root.as_uri()],  # type: ignore[arg-type]
        cache=tmp_path / "cache",
    )
    sources = open_training(data)
    assert [len(one) for one in sources.sets] == [13, 4] and sources.weights == (2.0, 1.0)
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        open_training(DataConfig())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://user:secret@host/set", "shards=http://host/set: the address holds a user name or a password"),
        ("http://host/set?token=1", "query"),
        ("simplecache::http://host/set", "not a scheme"),
        ("pipe://cat%20file", "pipe:// is not supported"),
        ("http://[host/set", "IPv6"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_shards(address)
    assert "secret" not in str(caught.value)


def stall(handler: Handler, content: bytes) -> bool:
    handler.answer(content[:10], len(content))
    time.sleep(5)
    return True


def drip(handler: Handler, content: bytes) -> bool:
    """A byte at a time, which no limit on a single wait ends."""
    handler.answer(content[:1], len(content))
    with contextlib.suppress(OSError):
        for position in range(1, 50):
            time.sleep(0.1)
            handler.wfile.write(content[position : position + 1])
    return True


def endless(handler: Handler, content: bytes) -> bool:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * (1 << 20))
    return True


@pytest.mark.parametrize(
    ("fault", "timeout_s", "said"),
    [
        (stall, 1.0, r"dataset\.json: .*[Tt]ime"),
        (drip, 1.0, r"dataset\.json: timed out"),
        (endless, 60.0, r"dataset\.json: larger than"),
    ],
)
def test_the_description_of_a_set_comes_in_time_or_is_one_line(
    fault: Callable[[Handler, bytes], bool], timeout_s: float, said: str, site: Site, tmp_path: Path
) -> None:
    site.faults["dataset.json"] = [fault] * 9
    begun = time.monotonic()
    with pytest.raises(ShardError, match=said) as caught:
        open_shards(site.url, data=DataConfig(cache=tmp_path / "cache", timeout_s=timeout_s))
    assert time.monotonic() - begun < timeout_s + 7 and "\n" not in caught.value.message


def test_a_description_that_stalls_once_is_read_again(site: Site, tmp_path: Path) -> None:
    site.faults["dataset.json"] = [drop, error_500]
    assert len(open_shards(site.url, data=DataConfig(cache=tmp_path / "cache"))) == 13


def test_a_download_that_drips_ends(site: Site, tmp_path: Path) -> None:
    policy = RetryPolicy(attempts=2, first_pause_s=0.01, timeout_s=1.0, total_s=0.5, min_rate=1e9)
    site.faults[TAR] = [drip] * 9
    begun = time.monotonic()
    with pytest.raises(ShardMissingError, match=r"tar: .*too slow|tar: timed out"):
        open_remote(site, tmp_path / "cache", retry_policy=policy).local(TAR)
    assert time.monotonic() - begun < 5


def test_a_name_that_leads_out_of_the_cache_is_refused(site: Site, tmp_path: Path) -> None:
    info = json.loads((site.root / "dataset.json").read_text())
    info["shards"][0]["name"] = "../../shard"
    (site.root / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ShardFormatError, match="is not a name of a shard"):
        open_remote(site, tmp_path / "cache")


def close(ahead: DownloadAhead) -> None:
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "rhofast-download"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def test_a_download_that_hangs_in_a_library_holds_up_no_end(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhofast.data.format.download_ahead._FAREWELL_S", 0.2)
    shards, begun, released = open_remote(site, tmp_path / "cache"), threading.Event(), threading.Event()

    def hang(*given: object) -> None:
        begun.set()
        released.wait()

    monkeypatch.setattr(RemoteShardSet, "fetch", hang)
    ahead = DownloadAhead([(shards, iter(range(3)))], threads=2)
    try:
        assert begun.wait(10)
        began = time.monotonic()
        ahead.close()
        assert time.monotonic() - began < 5
    finally:
        released.set()
