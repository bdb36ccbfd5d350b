"""Tell from the messages of ffmpeg whether a picture is damaged, or only something that is not kept.

    [mp3float @ 0x1] [error] Header missing              before "Input #0": ffmpeg looks into all streams of the file
    [info] Input #0, avi, from 'file:x.avi':
    [h264 @ 0x2] [error] SEI type 128 truncated          behind it: it decodes the one stream that is kept
    [in#0/avi @ 0x3] [error] File ended prematurely      the container, in both parts

A message about another stream says nothing about the pictures. One of the decoder of the pictures is a doubt: it may be
about a picture, or about what comes along with it (captions, EXIF). `pictures_are_whole` settles it with the decoder's
own flags. Everything else counts: ffmpeg conceals damage and goes on.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.logging
from av.bitstream import BitStreamFilterContext

from rhofast.data.codecs.containers import demux, open_source
from rhofast.ingest.ogg_pages import video_pages_are_whole
from rhofast.ingest.probe import SourceInfo

LOG_LEVEL = "level+info"  # the level of each message, and the line that ends the opening of the input
_SERIOUS = re.compile(rb"^(?P<context>(\[[^\]]* @ [^\]]*\] )*)\[(error|fatal|panic)\] (?P<text>.*)$")
_ADDRESS = re.compile(rb" @ 0x[0-9a-f]+(?=\])")
_OPENED = re.compile(rb"^\[info\] Input #0, ", re.MULTILINE)
_NOWHERE = "null"  # the muxer of decoding without output, which complains of timestamps
_MAX_LENGTH = 200  # characters of a message
_OTHER_STREAM = re.compile(rb"\bstream #?(?:0:)?(\d+)", re.IGNORECASE)
_NO_DECODER = re.compile(
    rb"no decoder found for|Decoder \(codec \S+\) not found|doesn't support hardware accelerated", re.IGNORECASE
)
# H.264 says which pictures are no longer needed; behind an entry in the middle, some of them were never there.
_FORGOTTEN = re.compile(rb"^mmco: unref short failure")
# Parts of a stream that no picture is made of, by FFmpeg's filter `filter_units`: SEI, delimiters, filler, user data,
# and units that the standard leaves open (Dolby Vision).
_ATTACHED = {
    "h264": "6|9|12|24-31",
    "hevc": "35|38-40|48-63",
    "vvc": "20|23-25",
    "av1": "5|15",
    "mpeg2video": "178",
}
_JPEG_ATTACHED = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP13, APP15 and comments; APP0 and APP14 tell the format
_SCAN = 0xDA  # the marker behind which a JPEG has its picture


@dataclass(frozen=True, slots=True)
class Messages:
    """What ffmpeg said of a file.

    Attributes:
        serious: All messages that count as errors, one per line, without their level.
        damage: The first that tells of damage; empty without one.
        doubt: The first that may be about something else than pictures; empty without one.
        no_decoder: Whether ffmpeg has no decoder for the pictures.
    """

    serious: bytes
    damage: str
    doubt: str
    no_decoder: bool


def read_messages(output: bytes, source: SourceInfo, *, inside: bool = False) -> Messages:
    """Sort the messages of an ffmpeg process that ran at `LOG_LEVEL`.

    Args:
        output: What it wrote to standard error.
        source: What is inside its input.
        inside: Whether its input begins at an open entry of a stream (data.codecs.entries).
    """
    opened = _OPENED.search(output)
    serious, damage, doubt = [], "", ""
    position = 0
    for line in output.splitlines(keepends=True):
        opening = opened is None or position < opened.start()
        position += len(line)
        found = _SERIOUS.match(line.rstrip())
        if found is None:
            continue
        if inside and _FORGOTTEN.match(found["text"]):
            continue
        said = found["context"] + found["text"]
        serious.append(said)
        speaker = found["context"].split(b" @ ")[-2].rpartition(b"[")[2].decode() if found["context"] else ""
        if speaker.startswith("in#") or speaker == source.container:
            other = _OTHER_STREAM.search(found["text"])
            if other is not None and int(other[1]) != source.stream:
                continue
            if source.container == "ogg" and found["text"].startswith(b"CRC mismatch"):
                doubt = doubt or _shown(said)
            else:
                damage = damage or _shown(said)
        elif (opening and speaker and opened is not None) or speaker == _NOWHERE:
            continue
        elif speaker in (source.codec, source.decoder):
            doubt = doubt or _shown(said)
        else:
            damage = damage or _shown(said)
    return Messages(b"\n".join(serious), damage, doubt, _NO_DECODER.search(b"\n".join(serious)) is not None)


class Heard:
    """What FFmpeg says in this thread while PyAV calls it, in the form in which the ffmpeg program says it."""

    def __init__(self, logs: list[tuple[int, str, str]]) -> None:
        """Take the growing list of (level, speaker, message) of a Capture."""
        self._logs, self._opening = logs, 0

    def opened(self) -> None:
        """Note that the input is open: what was said before may be about any of its streams."""
        self._opening = len(self._logs)

    def messages(self, source: SourceInfo, *, inside: bool = False) -> Messages:
        """Sort the messages.

        Args:
            source: What is inside the input.
            inside: As for `read_messages`.
        """
        lines = [
            f"[{speaker} @ 0x0] [error] {message.strip()}" if level <= av.logging.ERROR else ""
            for level, speaker, message in self._logs
        ]
        lines.insert(self._opening, "[info] Input #0, ")
        return read_messages("\n".join(lines).encode(), source, inside=inside)


@contextmanager
def captured() -> Iterator[Heard]:
    """Hear what FFmpeg says in this thread, and print nothing."""
    with _logging(), av.logging.Capture() as logs:
        yield Heard(logs)


def _shown(line: bytes) -> str:
    line = _ADDRESS.sub(b"", line)  # another one in each run, and `refused.jsonl` is to be the same
    return line.decode("utf-8", "replace").strip()[:_MAX_LENGTH]


def pictures_are_whole(path: Path, source: SourceInfo) -> bool:
    """Return whether the pictures are whole, and the decoder complains only of what comes along with them.

    Without that, the decoder must have nothing to say, although it is told to conceal nothing. The pictures must be
    those that a tolerant decoder makes of everything.

    Args:
        path: The file.
        source: What is inside it.
    """
    try:
        if source.container == "ogg" and not video_pages_are_whole(path):
            return False
        with _logging():
            strict = list(_digests(path, source, strict=True))
        return strict == list(_digests(path, source, strict=False))
    except (av.error.FFmpegError, ValueError):
        return False


def _digests(path: Path, source: SourceInfo, *, strict: bool) -> Iterator[tuple[int, int, int]]:
    """Yield width, height and CRC-32 of each picture.

    Raises:
        FFmpegError: A packet cannot be decoded.
        ValueError: `strict`, and a picture is damaged, or no picture at all.
    """
    with open_source(path) as container:
        stream = container.streams[source.stream]
        decoder = stream.codec_context
        stream.thread_count = 1
        if strict:
            clean = _cleaner(stream)
            decoder.options = {**decoder.options, "err_detect": "explode"}
        shown = 0
        for packet in demux(container, stream):
            for part in clean(packet) if strict and packet.size else [packet]:
                with av.logging.Capture() as errors:
                    frames = decoder.decode(part)
                if strict and (errors or packet.is_corrupt or any(frame.is_corrupt for frame in frames)):
                    raise ValueError("a picture is damaged")
                for frame in frames:
                    shown += 1
                    yield frame.width, frame.height, zlib.crc32(frame.to_ndarray(format="rgb24"))
        if not shown:
            raise ValueError("no pictures")


@contextmanager
def _logging() -> Iterator[None]:
    """Let PyAV capture what FFmpeg logs as an error, each time anew, and print nothing."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture():
            yield
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def _cleaner(stream: Any) -> Callable[[Any], list[Any]]:
    """Return a function that removes from a packet what no picture is made of; the stream's header loses it at once."""
    codec = stream.codec_context.codec.canonical_name
    if codec == "mjpeg":
        return lambda packet: [av.Packet(_without_attachments(bytes(packet)))]
    if codec not in _ATTACHED:
        return lambda packet: [packet]
    with av.open(io.BytesIO(), "w", format="matroska") as unused:
        header = unused.add_stream_from_template(stream)
        cleaner = BitStreamFilterContext(f"filter_units=remove_types={_ATTACHED[codec]}", stream, header)
        stream.codec_context.extradata = header.codec_context.extradata
    return lambda packet: list(cleaner.filter(packet))


def _without_attachments(picture: bytes) -> bytes:
    """Remove the segments that no picture is made of from a JPEG (ITU-T T.81, B.1.1.4)."""
    kept, at = [picture[:2]], 2
    while picture[at : at + 1] == b"\xff" and len(picture) >= at + 4 and picture[at + 1] != _SCAN:
        end = at + 2 + int.from_bytes(picture[at + 2 : at + 4], "big")
        if picture[at + 1] not in _JPEG_ATTACHED:
            kept.append(picture[at:end])
        at = end
    return b"".join([*kept, picture[at:]])
