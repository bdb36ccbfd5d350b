"""A web server of one folder that answers range requests late and can misbehave: what an object store looks like.

    python -m benchmarks.data_loading.range_server FOLDER --latency-ms 50

Every answer comes `latency_s` after its request; requests of different connections wait side by side, so that the
server adds time and takes nearly none. Tests hand it functions that turn chosen requests into faults; `GET /_counts`
tells what was asked for and sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_MATCH = re.compile(rb"\r\nif-match: *([^\r]+)", re.IGNORECASE)
_OPEN_FILES = 1_000  # whose descriptors are kept; a set may have more files than a process may open
_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 404: "Not Found", 412: "Precondition Failed"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request for bytes [begin, end) of a file; end is None for a request without a range."""

    name: str
    begin: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """How an answer differs from the right one.

    Attributes:
        status: This status and an empty body, in place of the content.
        headers: Lines to add, such as "Retry-After: 1".
        send: Bytes of the body after which the connection is cut.
        short: Bytes that are left out at the end, and of the announced length, too.
        damage: Position in the body at which a bit is flipped.
        whole: Whether the range is ignored: 200 and the whole file.
        etag: Another ETag.
        late_s: Seconds by which the answer is later.
    """

    status: int | None = None
    headers: tuple[str, ...] = ()
    send: int | None = None
    short: int = 0
    damage: int | None = None
    whole: bool = False
    etag: str | None = None
    late_s: float = 0.0


@dataclass
class RangeServer:
    """The folder, what happens to requests, and what they were.

    Attributes:
        root: The folder.
        latency_s: Seconds between a request and its answer.
        fault: Returns what goes wrong with a request, or None.
        url: Its address, while it runs.
        requests: How often each file was asked for.
        sent: Bytes of each file that were sent.
        together: The most requests that waited at the same time.
    """

    root: Path
    latency_s: float = 0.0
    fault: Callable[[Request], Fault | None] = lambda _: None
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    together: int = 0
    waiting: int = 0
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    connections: set[asyncio.Transport] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop | None = None
    listening: asyncio.Server | None = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """End all connections and refuse new ones, within this context."""
        assert self.loop is not None and self.listening is not None
        port = self.listening.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result()
        yield
        asyncio.run_coroutine_threadsafe(self.listen(port), self.loop).result()

    async def listen(self, port: int = 0) -> int:
        """Take connections and return the port at which that is."""
        loop = asyncio.get_running_loop()
        self.listening = await loop.create_server(lambda: _Connection(self, loop), "127.0.0.1", port, backlog=1024)
        return int(self.listening.sockets[0].getsockname()[1])

    async def end(self) -> None:
        """Take no more connections and end those that are open."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # each takes a connection
            await asyncio.wait(others)
        if self.listening is not None:  # after them: asyncio drops, unclosed, what it takes for a closed server
            self.listening.close()
        for connection in list(self.connections):
            connection.abort()
        while self.connections:
            await asyncio.sleep(0)

    def open(self, name: str) -> tuple[int, int, str] | None:
        """Return descriptor, size and ETag of a file; None if there is none."""
        path = self.root / name
        try:
            status = path.stat()
        except OSError:
            return None
        if not path.is_file():
            return None
        known = self.files.pop(name, None)
        etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}"'
        if known is not None and known[2] != etag:
            os.close(known[0])
            known = None
        while len(self.files) >= _OPEN_FILES:
            os.close(self.files.pop(next(iter(self.files)))[0])
        self.files[name] = known = known or (os.open(path, os.O_RDONLY), status.st_size, etag)
        return known

    def close(self) -> None:
        for descriptor, _, _ in self.files.values():
            os.close(descriptor)
        self.files.clear()

    def counts(self) -> bytes:
        counted = {"requests": self.requests, "sent": self.sent, "together": self.together}
        return json.dumps({**counted, "cpu_s": time.process_time()}).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, server: RangeServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop, self._content = server, loop, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._content += data
        while (end := self._content.find(b"\r\n\r\n")) >= 0:
            head, self._content = self._content[: end + 2], self._content[end + 4 :]
            self._ask(head)

    def _ask(self, head: bytes) -> None:
        server = self._server
        method, path, _ = head.split(b" ", 2)
        name = path.decode().rpartition("/")[2].partition("?")[0]
        if name == "_counts":
            self._answer(200, server.counts())
            return
        asked = _RANGE.search(head)
        begin, end = (int(asked[1]), int(asked[2]) + 1 if asked[2] else None) if asked else (0, None)
        server.requests[name] += 1
        server.waiting += 1
        server.together = max(server.together, server.waiting)
        fault = server.fault(Request(name, begin, end)) or Fault()
        match = _MATCH.search(head)
        arguments = (method == b"HEAD", name, asked is not None, begin, end, match and match[1].decode(), fault)
        if late_s := server.latency_s + fault.late_s:
            self._loop.call_later(late_s, self._serve, *arguments)
        else:
            self._serve(*arguments)

    def _serve(
        self, is_head: bool, name: str, ranged: bool, begin: int, end: int | None, match: str | None, fault: Fault
    ) -> None:
        server = self._server
        server.waiting -= 1
        if self._transport.is_closing():
            return
        if fault.status is not None:
            self._answer(fault.status, b"", fault.headers)
            return
        file = server.open(name)
        if file is None:
            self._answer(404, b"no such file")
            return
        descriptor, size, etag = file
        etag = fault.etag or etag
        if match is not None and match != etag:
            self._answer(412, b"")
            return
        ranged = ranged and not fault.whole
        begin, end = (begin, min(size, end or size)) if ranged else (0, size)
        headers = [f"ETag: {etag}", "Accept-Ranges: bytes", *fault.headers]
        if ranged:
            headers.append(f"Content-Range: bytes {begin}-{end - 1}/{size}")
        body = b"" if is_head else os.pread(descriptor, end - begin, begin)
        if fault.damage is not None and body:
            place = fault.damage % len(body)
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        body = body[: len(body) - fault.short]
        server.sent[name] += len(body)
        length = end - begin if is_head else len(body)
        self._answer(206 if ranged else 200, body, headers, length=length, cut=fault.send)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: list[str] | tuple[str, ...] = (),
        *,
        length: int | None = None,
        cut: int | None = None,
    ) -> None:
        length = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", f"Content-Length: {length}", *headers]
        self._transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body if cut is None else body[:cut]))
        if cut is not None:
            self._transport.close()


@contextmanager
def serving(server: RangeServer) -> Iterator[RangeServer]:
    """Run a server in a thread of this process."""
    loop = server.loop = asyncio.new_event_loop()
    server.url = f"http://127.0.0.1:{loop.run_until_complete(server.listen())}/set"
    thread = threading.Thread(target=loop.run_forever, name="range-server", daemon=True)
    thread.start()

    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        server.close()


@contextmanager
def serving_elsewhere(root: Path, latency_s: float, cores: Sequence[int] | None = None) -> Iterator[str]:
    """Run a server in a process of its own, on some cores; yield its address."""
    command = [sys.executable, "-m", "benchmarks.data_loading.range_server", str(root)]
    command += ["--latency-ms", str(1000 * latency_s)]
    command += ["--cores", *map(str, cores)] if cores else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--cores", type=int, nargs="*", help="cores that it may use (default: all)")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, arguments.cores)
    with serving(RangeServer(arguments.root, arguments.latency_ms / 1e3)) as server:
        print(server.url, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
