"""Servers of files, such as sftp: a connection serves one thread at a time, and one that has failed is given up."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.request_error import Kind, RequestError, request_error

CONTENT = bytes(range(200))


class Connection(MemoryFileSystem):
    """A connection that mixes up answers, as paramiko's does, if two threads use it; it stays dead once it has died."""

    protocol = "smb"
    opened: ClassVar[list[Connection]] = []
    dies = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used, self._dead = threading.Lock(), False
        self.opened.append(self)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].partition("/")[2]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        assert self._used.acquire(blocking=False), "two threads use one connection"
        try:
            time.sleep(0.002)
            self._dead |= self.dies
            if self._dead:
                raise OSError("Socket is closed")
            return CONTENT[start:end]
        finally:
            self._used.release()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> FsspecFolder:
    monkeypatch.setattr(Connection, "opened", [], raising=False)
    monkeypatch.setitem(_registry, "smb", Connection)
    return FsspecFolder("smb://host/set", 1.0)


def test_many_spans_and_threads_use_few_connections_one_at_a_time(folder: FsspecFolder) -> None:
    spans = [(begin, 5) for begin in range(100)]

    def read(_: int) -> list[bytes]:
        return [bytes(one) for one in asyncio.run(folder.spans("a", spans))]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [[CONTENT[begin : begin + 5] for begin, _ in spans]] * 4
    assert 1 < len(Connection.opened) <= 8
    other = FsspecFolder("smb://host/set", 1.0)  # shares no connection
    assert all(other._store is not one for one in Connection.opened[:-1])


def test_a_connection_that_has_died_is_not_used_again(folder: FsspecFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "dies", True)
    for _ in range(20):  # more often than there are connections
        with pytest.raises(RequestError, match="Socket is closed"):
            asyncio.run(folder.spans("a", [(0, 1)]))
    monkeypatch.setattr(Connection, "dies", False)
    assert bytes(asyncio.run(folder.spans("a", [(7, 2)]))[0]) == CONTENT[7:9]


@pytest.mark.parametrize("name", ["AuthenticationException", "BadHostKeyException", "PasswordRequiredException"])
def test_who_is_not_let_in_is_not_tried_again(name: str) -> None:
    assert request_error(type(name, (Exception,), {})("no")).kind is Kind.DENIED
    assert (
        request_error(type("SSHException", (Exception,), {})("No authentication methods available")).kind is Kind.DENIED
    )
    assert request_error(type("NoValidConnectionsError", (OSError,), {})("no")).kind is Kind.AWAY
