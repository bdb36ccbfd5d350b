"""Sources behind addresses: what servers do wrong is retried, then refused by name; nothing shows a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rhofast.storage.fetch import FetchError, fetch, remote_state
from rhofast.storage.network import RetryPolicy
from tests.helpers.shards import encode_mjpeg, frame_pixels

pytest.importorskip("aiohttp")

QUICK = RetryPolicy(attempts=3, first_pause_s=0.01, max_pause_s=0.02, timeout_s=0.5)
SECRET = "hunter2"


@dataclass
class Server:
    """A web server whose files misbehave as their names say."""

    url: str
    content: bytes
    requests: Counter[str] = field(default_factory=Counter)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.begin(len(self.server_state.content))

    def begin(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self) -> None:
        state = self.server_state
        name = self.path.partition("?")[0].rpartition("/")[2].partition(".")[0]
        state.requests[name] += 1
        content, first = state.content, state.requests[name] == 1
        if name.isdigit() and len(name) == 3:
            return self.begin(0, int(name))
        if name == "busy_once" and first:
            return self.begin(0, 503)
        if name == "later" and first:
            return self.begin(0, 429, Retry_After="1")
        if name == "cut" or (name == "cut_once" and first):
            self.begin(len(content))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        if name == "cut_chunked":
            self.begin(None, Transfer_Encoding="chunked")
            self.wfile.write(b"%x\r\n%s\r\n" % (100, content[:100]))
            self.close_connection = True
            return None
        if name == "garbled":
            self.begin(None, Transfer_Encoding="chunked")
            self.wfile.write(b"%x\r\n%s\r\nnonsense\r\n" % (100, content[:100]))
            return None
        if name in ("stall", "stall_in_the_middle"):
            if name == "stall_in_the_middle":
                self.begin(len(content))
                self.wfile.write(content[:100])
            time.sleep(20)
            return None
        if name == "loop":
            return self.begin(0, 302, Location=f"/{name}.mp4")
        if name == "no_length":
            self.begin(None, Connection="close")
            self.close_connection = True
        else:
            self.begin(len(content))
        self.wfile.write(content)
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    state = Server("", encode_mjpeg([frame_pixels(0, frame) for frame in range(4)]))
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("name", ["good", "busy_once", "later", "cut_once", "no_length", "with space", "a%2Bb"])
def test_a_source_arrives_whole_after_what_passes(server: Server, tmp_path: Path, name: str) -> None:
    fetch(f"{server.url}/{name}.mp4?X-Amz-Signature={SECRET}", tmp_path / "copy", QUICK)
    assert (tmp_path / "copy").read_bytes() == server.content


@pytest.mark.parametrize(
    ("name", "said", "requests"),
    [
        ("503", "503 Service Unavailable, in 3 attempts", 3),
        ("429", "429 Too Many Requests, in 3 attempts", 3),
        ("500", "500 Internal Server Error, in 3 attempts", 3),
        ("403", "403 Forbidden", 1),
        ("404", "no such file", 1),
        ("410", "no such file", 1),
        ("cut", "the answer broke off", 3),
        ("cut_chunked", "the answer broke off", 6),  # without a length, a second library is asked
        ("garbled", "the answer is garbled", 6),
        ("stall", "[Tt]ime", 3),
        ("stall_in_the_middle", "[Tt]ime", 3),
    ],
)
def test_a_source_that_does_not_arrive_is_one_line(
    server: Server, tmp_path: Path, name: str, said: str, requests: int
) -> None:
    server.requests.clear()
    begun = time.monotonic()
    with pytest.raises(FetchError, match=said) as caught:
        fetch(f"{server.url}/{name}.mp4?X-Amz-Signature={SECRET}", tmp_path / "copy", QUICK)
    text = str(caught.value)
    assert "\n" not in text and SECRET not in text and caught.value.missing == (name in ("404", "410"))
    assert server.requests[name] == requests and time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x.mp4", "http://no-such-host.invalid/x.mp4", "https://127.0.0.1:1/x.mp4"]
)
def test_a_server_that_is_not_there_is_one_line(address: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="Cannot connect"):
        fetch(f"{address}?sig={SECRET}", tmp_path / "copy", QUICK)
    assert remote_state(address, QUICK) is None


def test_a_copy_that_cannot_be_written_is_not_the_server_s_fault(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fetch(f"{server.url}/good.mp4", tmp_path / "gone" / "copy", QUICK)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(f"{server.url}/good.mp4", Path("/dev/full"), QUICK)


def test_the_state_of_a_source_is_its_size_and_version(server: Server) -> None:
    assert remote_state(f"{server.url}/good.mp4", QUICK) == [len(server.content), ""]


# ---- the whole command ----


def shard(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhofast", "shard", *map(str, arguments), "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_one_bad_address_in_a_list_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    names = ("stall", "good", "cut", "503", "404", "more")
    query = f"?X-Amz-Expires=60&X-Amz-Signature={SECRET}"
    (tmp_path / "list.txt").write_text("".join(f"{server.url}/{name}.mp4{query}\n" for name in names))
    begun = time.monotonic()
    options = ("--timeout", "5", "--codec", "copy", "--samples-per-shard", "1", "--workers", "2")
    done = shard(tmp_path / "list.txt", tmp_path / "set", *options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - begun < 60
    lines = [json.loads(line) for line in (tmp_path / "set" / "refused.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [f"{server.url}/{name}.mp4" for name in ("stall", "cut", "503", "404")]
    assert [line["reason"] for line in lines] == ["timeout", "unreadable", "unreadable", "missing"]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "set").iterdir())
    assert SECRET.encode() not in everything and SECRET not in done.stdout + done.stderr
    assert b'"source": "good.mp4"' in everything and b".mp4\0" in everything  # the suffix is the video's

    (tmp_path / "list.txt").write_text((tmp_path / "list.txt").read_text().replace(SECRET, "signed-again.x"))
    again = shard(tmp_path / "list.txt", tmp_path / "set", *options)
    assert again.returncode == 0 and "2 samples" in again.stdout, again.stderr


DEAD, MALFORMED = "http://127.0.0.1:1", "not an endpoint"


@pytest.mark.parametrize(
    ("source", "out", "endpoint", "said"),
    [
        (f"https://user:{SECRET}@host/list.csv", "set", DEAD, "SOURCE=https://host/list.csv: the address holds a user"),
        ("http://127.0.0.1:1/list.csv", "set", DEAD, "http://127.0.0.1:1/list.csv: Cannot connect"),
        ("nosuch://bucket", "set", DEAD, "SOURCE=nosuch://bucket: nosuch:// is not supported"),
        ("s3://bucket/videos", "set", DEAD, "s3://bucket/videos: Cannot connect"),
        ("s3://bucket/videos", "set", MALFORMED, "s3://bucket/videos: AWS_ENDPOINT_URL='not an endpoint' is no"),
        ("videos", f"s3://{SECRET}@bucket/set", DEAD, "OUT=s3://bucket/set: the address holds a user"),
        ("videos", "s3://bucket/set", DEAD, "s3://bucket: Cannot connect"),
        ("videos", "s3://bucket/set", MALFORMED, "s3://bucket: AWS_ENDPOINT_URL='not an endpoint' is no"),
        ("videos", "http://127.0.0.1:1/set", DEAD, "OUT=http://127.0.0.1:1/set: shards cannot be written"),
    ],
)  # fmt: skip
def test_a_source_or_an_output_that_cannot_be_reached_is_one_line(
    source: str, out: str, endpoint: str, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    (tmp_path / "videos").mkdir()
    places = [place if "://" in place else str(tmp_path / place) for place in (source, out)]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    done = shard(*places, AWS_ENDPOINT_URL=endpoint, **keys)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"rhofast: error: {said}" in done.stderr and SECRET not in done.stderr
