"""Check the pages of an Ogg file (RFC 3533): FFmpeg says that one is damaged, but not of which stream it is.

A page begins with "OggS" and a header: version, flags, position (8 bytes), serial number of the stream (4), number of
the page (4), CRC-32 of the page (4), and the number of its segments; their sizes and they themselves follow.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = struct.Struct("<4sBBqIIIB")
_LAST = 4  # flag of the last page of a stream
_VIDEO = (b"\x80theora", b"OVP80", b"BBCD", b"\x01video")  # how the first page of a video stream begins
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(slots=True)
class _Stream:
    """The undamaged pages of one stream.

    Attributes:
        is_video: Whether its first page says that it holds pictures.
        numbers: The numbers of its pages.
        ended: Whether its last page is there.
    """

    is_video: bool = False
    numbers: list[int] = field(default_factory=list)
    ended: bool = False


def video_pages_are_whole(path: Path) -> bool:
    """Return whether the file has one video stream, of which no page is damaged or missing."""
    streams = defaultdict[int, _Stream](_Stream)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(b"OggS")
        while 0 <= at <= len(content) - _HEADER.size:
            _, _, flags, _, serial, number, crc, segments = _HEADER.unpack_from(content, at)
            begin = at + _HEADER.size + segments
            size = begin + sum(content[at + _HEADER.size : begin]) - at
            page = content[at : at + size]
            if len(page) == size and _checksum(page) == crc:
                stream = streams[serial]
                stream.is_video |= not stream.numbers and page[begin - at :].startswith(_VIDEO)
                stream.numbers.append(number)
                stream.ended |= bool(flags & _LAST)
                at = content.find(b"OggS", at + size)
            else:
                at = content.find(b"OggS", at + 4)
    videos = [stream for stream in streams.values() if stream.is_video]
    return len(videos) == 1 and videos[0].ended and videos[0].numbers == list(range(len(videos[0].numbers)))


def _checksum(page: bytes) -> int:
    """Return the CRC-32 of a page whose own field counts as zero.

    It is that of zlib with the bits of each byte, and of the result, in reverse order, and without inversion.
    """
    blank = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(blank.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")
