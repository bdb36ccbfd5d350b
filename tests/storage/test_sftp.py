"""A real sftp server: what is read and written, whom it trusts and who trusts it, and what happens when it is away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

pytest.importorskip("paramiko")

import paramiko
from fsspec.config import conf

from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.data.sources import open_shards
from rhofast.errors import MachineError
from rhofast.storage import network
from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.network import RetryPolicy
from rhofast.storage.request_error import Kind, RequestError
from tests.helpers.sftp_server import PASSWORD, USER, SftpServer, serving_sftp

FRAMES = np.array([[0, 5], [7, 23]], dtype=np.int32)


@pytest.fixture
def server(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SftpServer]:
    """A server whose host is known, and whose password is configured."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(conf, "sftp", {"username": USER, "password": PASSWORD, "look_for_keys": False})
    with serving_sftp(shards.root) as running:
        know(tmp_path, running, running.key)
        yield running


def know(home: Path, server: SftpServer, key: paramiko.PKey) -> None:
    (home / ".ssh").mkdir(exist_ok=True)
    line = f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n"
    (home / ".ssh" / "known_hosts").write_text(line)


def test_a_set_is_read_as_from_a_disk(server: SftpServer, shards: ShardSet, tmp_path: Path) -> None:
    for remote in ("ranges", "cache"):
        there = Reader(open_shards(server.url, data=DataConfig(cache=tmp_path / remote, remote=remote)))
        here = Reader(shards)
        for sample in range(len(shards)):
            ours, theirs = there.read(sample, FRAMES), here.read(sample, FRAMES)
            assert ours.key == theirs.key
            assert all(np.array_equal(ours.pictures[frame], theirs.pictures[frame]) for frame in (0, 5, 7, 23))


def test_files_of_any_size_are_read_from_any_byte_and_written(
    server: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CHUNK", 100_000)
    folder = FsspecFolder(server.url, 5.0)
    for size in (0, 1, 100_000, 140_000):
        content = os.urandom(size)
        (tmp_path / "new").write_bytes(content)
        folder.put("made/new", tmp_path / "new")
        assert (server.root / "made" / "new").read_bytes() == content
        assert folder.state("made/new")[0] == size
        for begin in (0, size // 2):
            with folder.stream("made/new", begin=begin) as (chunks, position):
                assert position == begin and b"".join(chunks) == content[begin:]
        spans = [(size // 3, size // 2), (0, size), (size // 2, size)]  # the last one ends behind the end
        for (begin, length), found in zip(spans, asyncio.run(folder.spans("made/new", spans)), strict=True):
            assert found == content[begin : begin + length]
    assert [entry.name for entry in folder.entries("made")] == ["new"]


@pytest.mark.parametrize(
    ("known", "said"), [("none", "is not in ~/.ssh/known_hosts"), ("another", "is another one than in")]
)
def test_a_host_that_is_not_known_gets_no_password(
    server: SftpServer, tmp_path: Path, known: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".ssh" / "known_hosts").unlink()
    if known == "another":
        know(tmp_path, server, paramiko.ECDSAKey.generate())
    with pytest.raises(RequestError, match=said) as caught:
        FsspecFolder(server.url, 5.0)
    assert caught.value.kind is Kind.DENIED and not server.logins
    conf["sftp"]["host_key_policy"] = "auto_add"
    assert FsspecFolder(server.url, 5.0).state("dataset.json")[0] > 0
    assert capfd.readouterr().err == ""


def test_a_wrong_password_is_told_at_once(server: SftpServer, capfd: pytest.CaptureFixture[str]) -> None:
    conf["sftp"]["password"] = "wrong"
    with pytest.raises(RequestError, match="Authentication failed") as caught:
        FsspecFolder(server.url, 5.0)
    assert caught.value.kind is Kind.DENIED and server.logins == ["wrong"]
    assert capfd.readouterr().err == ""


def test_a_server_that_is_away_for_a_while_is_waited_for(
    server: SftpServer,
    shards: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    policy = partial(RetryPolicy, first_pause_s=0.05, max_pause_s=0.1, failed_for_s=0.0)
    monkeypatch.setattr("rhofast.data.sources.RetryPolicy", policy)
    for remote in ("ranges", "cache"):
        data = DataConfig(cache=tmp_path / remote, remote=remote, timeout_s=3.0)
        reader, here = Reader(open_shards(server.url, data=data)), Reader(shards)
        reader.read(0, FRAMES)
        server.end()
        back = Timer(0.5, server.listen)
        back.start()
        assert np.array_equal(reader.read(6, FRAMES).pictures[23], here.read(6, FRAMES).pictures[23])
        back.join()
        server.end()
        with pytest.raises(MachineError, match=rf"{server.url}/shard-000002\.arrow: Unable to connect to port"):
            reader.read(11, FRAMES)
        server.listen()
        assert np.array_equal(reader.read(11, FRAMES).pictures[5], here.read(11, FRAMES).pictures[5])
    assert capfd.readouterr().err == ""


def test_a_server_that_takes_connections_and_says_nothing_does_not_hang_anybody(server: SftpServer) -> None:
    folder = FsspecFolder(server.url, 0.5)
    server.silent = True
    server.end()
    server.listen()
    for _ in range(2):  # a connection that was ended, and a new one
        began = time.monotonic()
        with pytest.raises(RequestError):
            folder.state("dataset.json")
        assert time.monotonic() - began < 5
