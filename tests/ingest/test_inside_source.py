"""Videos inside files of many: only their bytes are copied, whatever holds the file, and what fails is named."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.inside import ByteRange, Inside, ParquetCell
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.listing import Listing
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.opened import LastSource
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.ingest.shard_job import record_facts
from rhofast.ingest.source import Deadline, read_source, source_states
from rhofast.storage.parquet_rows import ParquetRows
from rhofast.storage.store_path import as_path

CONTENT = np.random.default_rng(0).bytes(20_000)


def part(offset: int, size: int, name: str = "clip.mp4") -> ByteRange:
    return ByteRange(offset=offset, size=size, name=name)


def check(path: Path, scratch: Path, inside: Inside, content: bytes) -> None:
    source = read_source(path, scratch, Deadline(60), inside)
    assert source.path.read_bytes() == content
    assert source.digest == hashlib.blake2b(content, digest_size=16).digest()


def test_a_range_of_a_file_is_copied_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(CONTENT)
    for offset, size in ((0, 1), (700, 5_000), (0, len(CONTENT)), (len(CONTENT) - 3, 3)):
        check(tmp_path / "archive.tar", tmp_path, part(offset, size), CONTENT[offset : offset + size])


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_file_that_was_replaced_meanwhile_is_not_mixed_with_what_it_was(
    server: Server, tmp_path: Path, is_remote: bool
) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(CONTENT)
    path = as_path(f"{server.url}/archive.tar", signed=True) if is_remote else archive
    first, second = (
        VideoRecord(key=key, path=path, inside=part(offset, 5_000)) for key, offset in (("a", 700), ("b", 0))
    )
    (state,), sources = source_states([first]), LastSource()
    assert state is not None
    opened = sources.open(first, state, tmp_path, Deadline(60))
    assert opened.path.read_bytes() == CONTENT[700:5_700]
    server.version = "2"
    os.utime(archive, (1, 1))
    with pytest.raises(UnreadableError, match="replaced since this job began"):
        sources.open(second, state, tmp_path, Deadline(60))


@pytest.mark.parametrize(
    ("name", "inside", "reason", "says"),
    [
        ("archive.tar", part(19_990, 15), Refusal.DAMAGED, "ends 5 bytes before the video does"),
        ("archive.tar", part(100, 0), Refusal.EMPTY, "^$|empty"),
        ("gone.tar", part(0, 1), Refusal.MISSING, "No such file"),
        ("gone.parquet", ParquetCell(column="v", row=0, name="row 0"), Refusal.MISSING, "No such file"),
        ("archive.tar", ParquetCell(column="v", row=0, name="row 0"), Refusal.DAMAGED, "row 0: .*[Pp]arquet"),
    ],
)
def test_a_video_that_is_not_there_is_refused(
    tmp_path: Path, name: str, inside: Inside, reason: Refusal, says: str
) -> None:
    (tmp_path / "archive.tar").write_bytes(CONTENT)
    with pytest.raises(RefusedError, match=says) as caught:
        read_source(tmp_path / name, tmp_path, Deadline(60), inside)
    assert caught.value.reason is reason


def test_a_copy_that_cannot_be_written_is_no_refusal(tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(CONTENT)
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "archive.tar", tmp_path / "gone", Deadline(60), part(0, 1))


# ---- behind an address ----


@dataclass
class Server:
    """A web server that answers with parts of a file, as its name says, and remembers which."""

    url: str = ""
    ranges: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    version: str = "1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", f'"{self.server_state.version}"')
        self.end_headers()

    def do_GET(self) -> None:
        state, name, asked = self.server_state, self.path.strip("/"), self.headers.get("Range", "")
        state.ranges.append(asked)
        if name == "busy_once" and asked not in state.failed:
            state.failed.add(asked)
            self.send_error(503)
            return
        if name in ("gone", "forbidden"):
            self.send_error({"gone": 404, "forbidden": 403}[name])
            return
        content = CONTENT
        if asked and name != "whole":
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            content = CONTENT[int(begin) : int(end) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name == "cut" else content)
        self.close_connection = name == "cut"


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("name", ["good", "busy_once"])
def test_a_range_of_a_remote_file_is_one_request(server: Server, tmp_path: Path, name: str) -> None:
    check(as_path(f"{server.url}/{name}", signed=True), tmp_path, part(700, 5_000), CONTENT[700:5_700])
    assert server.ranges == ["bytes=700-5699"] * (1 + (name == "busy_once"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("whole", "the server ignores range requests"),
        ("cut", "broke off|received"),
        ("forbidden", "403 Forbidden"),
        ("gone", "no such file"),
    ],
)
def test_a_remote_range_that_does_not_come_is_one_line(server: Server, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises((RefusedError, UnreadableError), match=says) as caught:
        read_source(as_path(f"{server.url}/{name}", signed=True), tmp_path, Deadline(60), part(700, 5_000))
    assert (getattr(caught.value, "reason", None) is Refusal.MISSING) == (name == "gone")


# ---- cells of tables ----

VALUES = [bytes([row]) * (1_000 + row) for row in range(23)]
VALUES[11] = None  # type: ignore[call-overload]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 23 rows in row groups of 5, with videos in a column and in a field of a struct."""
    struct = pa.StructArray.from_arrays([pa.array(VALUES, pa.large_binary()), pa.array(["x"] * 23)], ["bytes", "path"])
    content = pa.table({"plain": pa.array(VALUES, pa.binary()), "video": struct, "n": list(range(23))})
    pq.write_table(content, tmp_path / "table.parquet", row_group_size=5)
    return tmp_path / "table.parquet"


@pytest.mark.parametrize("column", ["plain", "video.bytes"])
def test_cells_are_read_in_any_order(table: Path, tmp_path: Path, column: str) -> None:
    for row in [3, 4, 5, 6, 22, 0, 12, 12, 13]:  # in and across row groups, forward, backward, again
        check(table, tmp_path, ParquetCell(column=column, row=row, name=f"row {row}"), VALUES[row])


@pytest.mark.parametrize(
    ("column", "row", "reason", "says"),
    [
        ("plain", 11, Refusal.EMPTY, "row 11 has no value in column plain"),
        ("plain", 23, Refusal.DAMAGED, "row 23 of 23"),
        ("n", 1, Refusal.DAMAGED, "column 'n' does not hold bytes"),
        ("video.path", 1, Refusal.DAMAGED, "column 'video.path' does not hold bytes"),
        ("none", 1, Refusal.DAMAGED, "column 'none' does not hold bytes"),
    ],
)
def test_a_cell_without_a_video_is_refused(
    table: Path, tmp_path: Path, column: str, row: int, reason: Refusal, says: str
) -> None:
    with pytest.raises(RefusedError, match=says) as caught:
        read_source(table, tmp_path, Deadline(60), ParquetCell(column=column, row=row, name="x"))
    assert caught.value.reason is reason
    check(table, tmp_path, ParquetCell(column="plain", row=12, name="x"), VALUES[12])  # the next one is not lost


def test_a_damaged_page_is_refused(table: Path, tmp_path: Path) -> None:
    place = pq.ParquetFile(table).metadata.row_group(0).column(0)
    content = bytearray(table.read_bytes())
    begin = min(filter(None, (place.dictionary_page_offset, place.data_page_offset)))
    content[begin : begin + 40] = bytes(40)
    table.write_bytes(content)
    with pytest.raises(RefusedError) as caught:
        read_source(table, tmp_path, Deadline(60), ParquetCell(column="plain", row=2, name="x"))
    assert caught.value.reason is Refusal.DAMAGED and "\n" not in caught.value.detail


def test_rows_of_small_columns_come_as_objects(table: Path) -> None:
    rows = ParquetRows(table)
    assert rows.num_rows == 23
    assert list(rows.rows(["n"])) == [{"n": row} for row in range(23)]
    rows.close()


# ---- in the listing ----


def record(inside: Inside | None, key: str = "k", path: str = "a.tar") -> VideoRecord:
    return VideoRecord(key=key, path=Path(path), inside=inside)


def test_places_come_out_of_the_listing_as_they_went_in() -> None:
    odd = os.fsdecode(b"a\xffb.mp4")
    places = [part(1, 2), None, ParquetCell(column="v.b", row=2**40, name="row"), part(0, 2**40, odd)]
    records = [record(place, f"k{number}") for number, place in enumerate(places)]
    with Listing(records) as listing:
        assert list(listing) == records
    facts = [record_facts(record(place)) for place in places]
    assert len({repr(each) for each in facts}) == len(places)  # another place makes another job


@pytest.mark.parametrize(
    "inside", [part(-1, 2), part(0, -1), part(True, 1), ByteRange(offset=0, size=1, name=None), (0, 1)]
)  # type: ignore[arg-type]
def test_a_place_that_is_none_is_one_error(inside: Inside) -> None:
    with pytest.raises(IngestError, match="is not a place in a file"):
        Listing([record(inside)])


def test_a_key_that_occurs_twice_names_both_members() -> None:
    records = [VideoRecord(key="k", path=Path("a.tar"), inside=part(0, 1, "x.mp4"))]
    records += [VideoRecord(key="k", path=Path("b.tar"), inside=part(0, 1, "y.mp4"))]
    with pytest.raises(IngestError, match=r"b\.tar: y\.mp4: key 'k' occurs twice, first in a\.tar: x\.mp4"):
        Listing(records)


def test_the_state_of_an_archive_is_asked_for_once_for_its_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("rhofast.ingest.source.source_state", lambda path: asked.append(path) or [path.name])
    paths = ["a", "a", "b", "b", "a"]
    assert list(source_states(record(None, path=path) for path in paths)) == [[path] for path in paths]
    assert list(map(str, asked)) == ["a", "b", "a"]
