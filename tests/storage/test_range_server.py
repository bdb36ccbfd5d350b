"""The range server of the tests itself: what it leaves open fails another test, long after."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.data_loading import range_server
from benchmarks.data_loading.range_server import RangeServer, serving


def test_a_server_that_ends_closes_the_connections_that_it_was_just_taking(tmp_path: Path) -> None:
    for _ in range(30):  # a third of them met connections between accept and their first handler
        with serving(RangeServer(tmp_path)) as server:
            port = int(server.url.rpartition(":")[2].partition("/")[0])
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for client in clients:
            client.close()
    gc.collect()  # a connection left open is a ResourceWarning here, and so an error


def test_a_server_of_more_files_than_a_process_may_open_keeps_few_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_server, "_OPEN_FILES", 2)
    with serving(RangeServer(tmp_path)) as server:
        for number in (0, 1, 2, 0, 3, 3, 1):
            (tmp_path / f"{number}").write_text(f"content {number}")
            with urlopen(f"{server.url}/{number}") as answer:
                assert answer.read().decode() == f"content {number}"
            assert len(server.files) <= 2
