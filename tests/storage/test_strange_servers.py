"""What web servers answer that no library expects is one short line, without the parts of a library or a secret."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from rhofast.storage.loop_thread import wait_for
from rhofast.storage.object_store import ObjectFolder
from rhofast.storage.request_error import Kind, RequestError

pytest.importorskip("obstore")

BODY = b"0123456789"
SECRET = "hunter2"


class Strange(BaseHTTPRequestHandler):
    """Answers as the first folder of the address says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind in ("loop", "nowhere"):
            self.send_response(302)
            there = self.path if kind == "loop" else f"http://127.0.0.1:1/x?X-Amz-Signature={SECRET}"
            self.send_header("Location", there)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = gzip.compress(BODY) if kind == "gzip" else BODY[2:5]
        self.send_response(200 if kind == "gzip" else 206)
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if kind == "elsewhere":
            self.send_header("Content-Range", "bytes 0-2/10")
        if kind == "chunked":
            self.send_header("Content-Range", "bytes 2-4/10")
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fault_of_span(url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        wait_for(ObjectFolder(url, 5.0).spans("file", [(2, 3)]))
    return caught.value


@pytest.mark.parametrize("kind", ["silent", "elsewhere", "chunked"])
def test_a_server_whose_ranges_cannot_be_trusted_is_one_without_ranges(url: str, kind: str) -> None:
    fault = fault_of_span(f"{url}/{kind}")
    assert fault.kind is Kind.NO_RANGES and fault.text.startswith("the server answers range requests wrongly: ")


def test_a_compressed_file_is_known_as_one(url: str) -> None:
    said = r"compressed \(Content-Encoding: gzip\)"
    with pytest.raises(RequestError, match=said) as caught, ObjectFolder(f"{url}/gzip", 5.0).stream("file"):
        pass
    assert caught.value.kind is Kind.FINAL


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/loop", "error following redirect"),
        ("/nowhere", "Connection refused"),
        ("//a", "contained empty path segment"),
    ],
)
def test_a_fault_is_its_reason_alone(url: str, address: str, said: str) -> None:
    text = fault_of_span(url + address).text
    assert said in text and len(text) < 80
    assert not any(word in text for word in (SECRET, "Debug", "Generic", "\n"))
