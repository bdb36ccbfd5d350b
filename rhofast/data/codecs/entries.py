"""At which packets of a stream decoding can begin, so that every picture shown from there on is the right one.

    in the order of decoding   I  P  B  B  I' b  b  P  B  ...      b: leading pictures, shown before I'
    in the order of showing    I  B  B  P  b  b  I' B  P  ...

At a closed entry a decoder forgets all that was before (IDR), and no leading pictures follow: nothing behind it needs
anything before it, and whatever is put before it, it decodes to the same pictures. Any other is an open entry. Its
leading pictures may refer to what is before it (an open group), so they have to be left out, and nothing may be put
before it:

- H.265, 3.69 and 7.4.2.2: no picture that is shown after a CRA refers to what is before it, or to a leading picture.
- MPEG-1, MPEG-2 and MPEG-4: leading pictures are B-pictures, to which no picture refers.
- H.264, D.2.8: what is shown from a recovery point on is exact if its message says so (`exact_match_flag`, and a
  `recovery_frame_cnt` of 0) and all that is decoded behind it is there. To leave out leading pictures that others may
  refer to makes a gap in the numbers of frames; nothing but decoding tells whether one of them was needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN = -(1 << 63)  # a time that a container does not tell

_START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)  # of a NAL unit, and its first byte
_B_PICTURES = {"mpeg1video", "mpeg2video", "mpeg4"}  # codecs in which leading pictures are B-pictures
_RESTARTING = {*_B_PICTURES, "av1", "mjpeg", "vp8", "vp9"}  # their key frames never depend on the past
_SETS = {"h264": {7, 8}, "hevc": {32, 33, 34}}  # types of units that are parameter sets
_PICTURES = {"h264": set(range(1, 6)), "hevc": set(range(32))}  # ... that are slices of pictures
_REFRESHES = {"h264": {5}, "hevc": {19, 20}}  # ... of pictures at which a decoder begins anew
_RANDOM_ACCESS = set(range(16, 22))  # ... of HEVC's pictures at which it can begin
_LEADING, _SKIPPED = {6, 7, 8, 9}, {8, 9}  # ... of HEVC's leading ones, and of those that no decoder shows behind a
# first random access point
_RECOVERY_POINT = 6  # type of a message


@dataclass(frozen=True, slots=True)
class Entries:
    """Where decoding of N packets can begin.

    Attributes:
        closed: Whether each packet is a closed entry, bool[N].
        open: Whether it is an open one, whose leading pictures can be left out, bool[N].
        gap: Whether it is one if no picture refers to those of its leading ones to which some might, bool[N].
    """

    closed: npt.NDArray[np.bool_]
    open: npt.NDArray[np.bool_]
    gap: npt.NDArray[np.bool_]

    @property
    def any(self) -> npt.NDArray[np.bool_]:
        """Whether each packet is a closed or an open entry, bool[N]."""
        return self.closed | self.open

    def undecodable(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which packets are leading pictures of the first one: what they refer to is not in the stream.

        Args:
            times: When each packet is shown, in ticks, i64[N].

        Returns:
            bool[N]. No decoder shows them, but those of H.264 may show anything: then the first packet is no entry.
        """
        return times < times[:1]


class EntryFinder:
    """Finds the entries of a stream while its packets are read.

    Parameter sets that are sent inside the stream, and not only in its header, are valid until they are sent again. An
    entry behind such a set has to bring it along.
    """

    def __init__(self, decoder: Any) -> None:
        """Take the codec context of the stream."""
        self._decoder, self._codec = decoder, str(decoder.codec.canonical_name)
        self._keys, self._fresh, self._skippable = bytearray(), bytearray(), bytearray()
        self._first, self._changed = set[bytes](), set[bytes]()
        self._lost = 0  # packets behind the first one that refer to what is not in the stream

    def add(self, packet: Any) -> None:
        """Note the next packet."""
        skippable, repeated = self._codec in _B_PICTURES, True
        if self._codec in _SETS:
            skippable, sets = self._look_into(packet)
            if not self._keys:
                self._first = sets
            elif sets:
                header = self._decoder.extradata or b""
                self._changed |= {each for each in sets - self._first if each not in header}
            repeated = self._changed <= sets
        self._keys.append(repeated and bool(packet.is_keyframe) and recovers(self._decoder, packet))
        self._fresh.append(self._keys[-1] and restarts(self._decoder, packet))
        self._skippable.append(skippable)

    def times(self, told: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return when packets are shown.

        A file that was cut out of another may have no times for the first leading pictures, which nobody can decode.

        Args:
            told: When each is shown, in ticks, as the container tells; UNKNOWN where it does not, i64[N].

        Returns:
            i64[N]; None if a picture has no time.
        """
        missing = told == UNKNOWN
        count = int(missing.sum())
        if count != missing[1 : 1 + self._lost].sum():
            return None
        times = told.copy()
        first = int(times[~missing].min()) if count < len(times) else 0
        times[missing] = np.arange(first - count, first)
        return times

    def _look_into(self, packet: Any) -> tuple[bool, set[bytes]]:
        """Return whether no picture refers to this one if it is a leading one, and its parameter sets."""
        sets = set[bytes]()
        for unit in _units(self._codec, self._decoder.extradata or b"", packet):
            kind = _kind(self._codec, unit[0])
            if kind in _SETS[self._codec]:
                sets.add(_alone(unit).rstrip(b"\x00"))
            elif self._codec == "h264" and 1 <= kind <= 5:
                return unit[0] >> 5 == 0, sets  # nal_ref_idc
            elif self._codec == "hevc" and kind < 32:
                self._lost += kind in _SKIPPED and 0 < len(self._keys) == self._lost + 1
                return kind in _LEADING, sets
        return False, sets

    def find(self, times: npt.NDArray[np.int64]) -> Entries:
        """Return the entries.

        Args:
            times: When each packet is shown, in ticks, in the order of decoding, i64[N].
        """
        keys, skippable, fresh = (np.array(each, dtype=bool) for each in (self._keys, self._skippable, self._fresh))
        closed = fresh & parted(times)
        opened, gap = np.zeros_like(keys), np.zeros_like(keys)
        earlier, later = _extremes(times)
        for place in np.flatnonzero(keys & ~closed & (earlier < times)).tolist():
            following = place + 1  # the leading pictures are before the first packet behind which all is shown later
            while following < len(times) and min(times[following], later[following]) < times[place]:
                following += 1
            leading = place + 1 + np.flatnonzero(times[place + 1 : following] < times[place])
            opened[place] = skippable[leading].all()
            gap[place] = not opened[place] and self._codec == "h264"
        if opened[:1].any() and self._codec == "h264" and (times < times[0]).any():
            opened[0] = False
        return Entries(closed, opened, gap)


def parted(pts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return before which packets a stream can be cut in two, as far as the times of its pictures tell.

    Args:
        pts: When each packet is shown, in ticks, in the order of decoding, i64[N].

    Returns:
        Whether all packets that are decoded before each packet are shown before it, and all others behind it, bool[N].
    """
    earlier, later = _extremes(pts)
    return (earlier < pts) & (pts < later)


def _extremes(pts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the latest time of all packets before each one, and the earliest of all behind it, i64[N] each."""
    limits = np.iinfo(np.int64)
    later = np.append(np.minimum.accumulate(pts[::-1])[::-1][1:], limits.max)
    earlier = np.insert(np.maximum.accumulate(pts)[:-1], 0, limits.min) if len(pts) else pts
    return earlier, later


def restarts(decoder: Any, packet: Any) -> bool:
    """Return whether a decoder forgets all that was before a key frame.

    In H.264 and HEVC the packet must be an instantaneous refresh (ITU-T H.264, 7.4.1.2.4; H.265, 7.4.2.2).

    Args:
        decoder: The codec context of the packet's stream.
        packet: A key frame.
    """
    codec = str(decoder.codec.canonical_name)
    if codec not in _SETS:
        return codec in _RESTARTING
    kinds = {_kind(codec, unit[0]) for unit in _units(codec, decoder.extradata or b"", packet)}
    pictures = kinds & _PICTURES[codec]
    return bool(pictures) and pictures <= _REFRESHES[codec]


def recovers(decoder: Any, packet: Any) -> bool:
    """Return whether a decoder that begins at a key frame gives the same pictures from it on as one that began earlier.

    This holds for what is shown from it on, if all that is decoded behind it is there. In H.264 the packet must be an
    instantaneous refresh or say that it is an exact point of recovery, in HEVC a random access point.

    Args:
        decoder: The codec context of the packet's stream.
        packet: A key frame.
    """
    codec = str(decoder.codec.canonical_name)
    if restarts(decoder, packet) or codec not in _SETS:
        return codec in _RESTARTING or codec in _SETS
    units = list(_units(codec, decoder.extradata or b"", packet))
    pictures = {_kind(codec, unit[0]) for unit in units} & _PICTURES[codec]
    if codec == "hevc":
        return bool(pictures) and pictures <= _RANDOM_ACCESS
    return pictures == {1} and any(_kind(codec, unit[0]) == 6 and _says_so(_alone(unit)) for unit in units)


def _kind(codec: str, head: int) -> int:
    return head & 31 if codec == "h264" else head >> 1 & 63


def _says_so(unit: bytes) -> bool:
    """Return whether supplemental information (ITU-T H.264, D.1.8) says that pictures are exact from here on."""
    content, at = unit.replace(b"\x00\x00\x03", b"\x00\x00"), 1
    while at + 2 < len(content):
        kind, at = _sum_of_bytes(content, at)
        size, at = _sum_of_bytes(content, at)
        if kind == _RECOVERY_POINT and at < len(content):
            return content[at] & 0xC0 == 0xC0  # recovery_frame_cnt, of which 1 bit is number 0, and exact_match_flag
        at += size
    return False


def _sum_of_bytes(content: bytes, at: int) -> tuple[int, int]:
    """Return a number that is a sum of bytes, of which only the last one is not 255, and what follows it."""
    total = 0
    while at < len(content):
        total, at = total + content[at], at + 1
        if content[at - 1] != 0xFF:
            break
    return total, at


def _alone(unit: memoryview) -> bytes:
    """Return a NAL unit without the next ones, if it was cut out by start codes."""
    content = bytes(unit)
    end = content.find(b"\x00\x00\x01")
    return content if end < 0 else content[:end]


def _units(codec: str, extradata: bytes, packet: Any) -> Iterator[memoryview]:
    """Yield the NAL units of a packet of H.264 or HEVC; some with what follows them in the packet.

    Units follow their sizes in MP4 and Matroska (ISO/IEC 14496-15, 5.3.2), and start codes elsewhere (ITU-T H.264,
    annex B). Nothing is yielded of a packet of neither form.
    """
    content = memoryview(packet)
    if extradata[:1] != b"\x01":
        yield from (content[found.start(1) :] for found in _START_CODE.finditer(content))
    elif len(extradata) >= 23 or (codec == "h264" and len(extradata) >= 5):
        length, offset = (extradata[4 if codec == "h264" else 21] & 3) + 1, 0  # bytes of the size before each unit
        while offset + length < len(content):
            size = int.from_bytes(content[offset : offset + length], "big")
            if size:
                yield content[offset + length : offset + length + size]
            offset += length + size
