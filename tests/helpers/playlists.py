"""Files that name other files and addresses, and a port that notices who connects."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def listening() -> Iterator[tuple[int, list[Any]]]:
    """A port of this machine, and the connections that were made to it."""
    seen: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    seen.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            stop.set()
            thread.join()
    for connection, _ in seen:
        connection.close()


def playlists(port: int, file: Path) -> dict[str, bytes]:
    """Texts that make FFmpeg open other files, addresses or sockets if it takes them for a format."""
    address = f"http://127.0.0.1:{port}/a.mp4"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="x"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1"><BaseURL>'
        f"{address}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXTINF:10,\n{file}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{file}'\nfile '{address}'\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": dash,
        "ram": f"rtsp://127.0.0.1:{port}/a\n",
        "asx": f'<asx version="3.0"><entry><ref href="{address}"/></entry></asx>',
    }
    return {kind: text.encode() for kind, text in texts.items()}
