"""Check one stored member: its units' positions and checksums, and what comes out of the decoders.

Videos are read in chunks and never held in memory. A decoder gets only bytes whose checksum is right. Pictures are
decoded by DALI, as in training; video streams are decoded on the host.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs.codec import Codec
from rhofast.data.format.index import IndexRow
from rhofast.data.types import Units
from rhofast.data.units import MEASURED, colors_of, frames_in, measured_frames

if TYPE_CHECKING:
    from rhofast.data.decode.picture_decoder import PictureDecoder

_COLOR_TOLERANCE = 1.0  # of 255, between two measurements of the same mean color
_RATE_TOLERANCE = 0.01  # share of the frame rate: containers round it
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatProblem:
    """One violation of the shard format.

    Attributes:
        file: Name of the file.
        what: What is wrong.
        key: Key of the sample; None if the problem concerns the whole file.
        offset: Byte position in the file; None if the problem concerns the whole file.
    """

    file: str
    what: str
    key: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = self.file if self.key is None else f"{self.file}, key {self.key}"
        return f"{where}{'' if self.offset is None else f', byte {self.offset}'}: {self.what}"


def unit_problems(file: str, row: IndexRow, tar: io.BufferedReader) -> Iterator[FormatProblem]:
    """Check the checksums of a member's units.

    Args:
        file: Name of the tar, for the problems.
        row: The sample's row of the index.
        tar: The tar, opened for reading.

    Yields:
        What is wrong.
    """
    units, faults = row.units, dict[int, str]()
    for unit in range(len(units.frame)):
        if _checksum(tar, row.offset + int(units.offset[unit]), int(units.size[unit])) != int(units.crc[unit]):
            faults[unit] = "checksum mismatch"
    yield from _first_problem(file, row, faults)


def _checksum(file: io.BufferedReader, offset: int, size: int) -> int:
    file.seek(offset)
    crc = 0
    while size and (chunk := file.read(min(size, _CHUNK_BYTES))):
        crc = crc32(chunk, crc)
        size -= len(chunk)
    return crc


def decoding_problems(
    file: str, row: IndexRow, tar: io.BufferedReader, codec: Codec, decoder: PictureDecoder | None
) -> Iterator[FormatProblem]:
    """Decode a member, whose checksums are right, and check container, frames and colors against the index.

    Args:
        file: Name of the tar, for the problems.
        row: The sample's row of the index.
        tar: The tar, opened for reading.
        codec: Codec of the sample.
        decoder: DALI's picture decoder, if the codec stores pictures; None for video streams.

    Yields:
        What is wrong.
    """
    faults = _picture_faults(row, tar, codec, decoder) if decoder is not None else {}
    if faults:
        yield from _first_problem(file, row, faults)
        return
    with io.BufferedReader(_FileSection(tar, row.offset, row.size)) as content:
        try:
            member = codec.index_member(content, deep=decoder is None)
        except ValueError as error:
            faults = _group_faults(row, tar, codec)
            yield from _first_problem(file, row, faults)
            if not faults:
                yield FormatProblem(file=file, key=row.key, offset=row.offset, what=str(error))
            return
    units, found = row.units, member.units
    held = int(frames_in(units, row.num_frames).sum())
    lead = -int(units.frame[0])
    same_rate = row.num_frames < 2 or abs(float(member.fps) - row.fps) <= _RATE_TOLERANCE * row.fps
    shape, indexed = ((one.width, one.height, one.pixel_aspect) for one in (member, row))
    if member.num_frames != held or shape != indexed or not same_rate:
        what = f"{member.num_frames} frames of {member.width}x{member.height} at {float(member.fps):g} fps"
        yield FormatProblem(file=file, key=row.key, offset=row.offset, what=f"holds {what}; the index disagrees")
    elif (len(found.frame), len(found.rgb)) != (len(units.frame), len(units.rgb)):
        listed = f"the index lists {len(units.frame)} and {len(units.rgb)}"
        what = f"has {len(found.frame)} units and {len(found.rgb)} measured colors; {listed}"
        yield FormatProblem(file=file, key=row.key, offset=row.offset, what=what)
    else:
        pairs = [(getattr(found, column), getattr(units, column)) for column in ("offset", "size", "crc")]
        pairs.append((found.frame - lead, units.frame))
        moved = np.flatnonzero(np.any([actual != listed for actual, listed in pairs], axis=0))
        yield from _first_problem(file, row, {int(unit): "the container has it at another position" for unit in moved})
        if not len(moved):
            yield from _first_problem(file, row, _color_faults(row, found))


def _color_faults(row: IndexRow, found: Units) -> dict[int, str]:
    """Compare the colors of a member with those of its index, which are as many; return what is wrong, by unit."""
    distance = np.abs(found.rgb - row.units.rgb).max(axis=1)
    if distance.max() <= _COLOR_TOLERANCE:
        return {}
    place = int(distance.argmax())
    unit = place if len(distance) == len(found.frame) else int(measured_frames(row.num_frames)[place])
    return {unit: "its mean color differs from the stored one"}


def _picture_faults(row: IndexRow, tar: io.BufferedReader, codec: Codec, decoder: PictureDecoder) -> dict[int, str]:
    """Decode each picture as training does; return what is wrong, by unit."""
    faults: dict[int, str] = {}
    shape = (row.height, row.width, 3)
    for first in range(0, row.num_frames, decoder.batch):
        encoded: dict[int, npt.NDArray[np.uint8]] = {}
        for unit in range(first, min(first + decoder.batch, row.num_frames)):
            tar.seek(row.offset + int(row.units.offset[unit]))
            picture = tar.read(int(row.units.size[unit]))
            if fault := codec.find_fault(unit, memoryview(picture), row.width, row.height):
                faults[unit] = fault
            else:
                encoded[unit] = np.frombuffer(picture, dtype=np.uint8)
        for (unit, content), pixels in zip(encoded.items(), decoder.decode(list(encoded.values())), strict=True):
            if pixels is None:
                faults[unit] = "the decoder rejects it"
            elif pixels.shape != shape:
                faults[unit] = f"it decodes to shape {pixels.shape}, expected {shape}"
            elif unit % MEASURED == 0 and _is_far(pixels, colors_of(row.units, row.num_frames, np.array([unit]))[0]):
                # Thin bright lines differ too: the stored color was measured at an eighth of the size.
                frame = np.array([unit], dtype=np.int32)
                try:
                    host = codec.decode(row.part(frame, frame.astype(np.int64), [content]))[unit]
                except ValueError as error:
                    faults[unit] = str(error)
                else:
                    if _is_far(pixels, _mean_color(host)):
                        faults[unit] = "its mean color differs from the stored one"
    return faults


def _mean_color(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    total = pixels.sum(axis=0, dtype=np.uint32).sum(axis=0, dtype=np.int64)  # row by row: 14 times faster than mean
    return np.asarray(total / (pixels.shape[0] * pixels.shape[1]), dtype=np.float64)


def _is_far(pixels: npt.NDArray[np.uint8], color: npt.NDArray[Any]) -> bool:
    return bool(np.abs(_mean_color(pixels) - color).max() > _COLOR_TOLERANCE)


def _group_faults(row: IndexRow, tar: io.BufferedReader, codec: Codec) -> dict[int, str]:
    """Decode each group of frames alone; return why it fails, by unit.

    The result is empty if all groups decode, or if each frame needs the whole member anyway.
    """
    faults: dict[int, str] = {}
    counts = frames_in(row.units, row.num_frames)
    for unit in np.flatnonzero(counts).tolist():
        frame = np.array([int(row.units.frame[unit] + counts[unit]) - 1], dtype=np.int32)
        rows = codec.units_for(row.units, row.num_frames, frame)
        if len(rows) == len(row.units.frame):
            break
        pieces = []
        for other in rows.tolist():
            tar.seek(row.offset + int(row.units.offset[other]))
            pieces.append(tar.read(int(row.units.size[other])))
        try:
            codec.decode(row.part(frame, rows, pieces))
        except ValueError as error:
            faults[unit] = str(error)
    return faults


def _first_problem(file: str, row: IndexRow, faults: dict[int, str]) -> Iterator[FormatProblem]:
    """Yield the first bad unit of a member with its position, and the number of others."""
    if not faults:
        return
    unit = min(faults)
    first, count = int(row.units.frame[unit]), int(frames_in(row.units, row.num_frames)[unit])
    name = f"frame {first}" if count == 1 else f"frames {first}-{first + count - 1}" if count else f"unit {unit}"
    more = f" ({len(faults) - 1} more of the {len(row.units.frame)} units are bad)" if len(faults) > 1 else ""
    offset = row.offset + int(row.units.offset[unit])
    yield FormatProblem(file=file, key=row.key, offset=offset, what=f"{name}: {faults[unit]}{more}")


class _FileSection(io.RawIOBase):
    """A read-only view of `size` bytes of a file, from `start` on; closing it leaves the file open."""

    def __init__(self, file: io.BufferedReader, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count
