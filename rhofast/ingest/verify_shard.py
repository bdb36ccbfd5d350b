"""One shard, checked: its files against `dataset.json`, its samples against its index; and with `deep`, all of it
against what comes out of the decoders. Made to run in a process of its own, which a decoder may kill (verify.py).

Videos are read piece by piece and never held in memory. A decoder sees only bytes whose checksum is right. Pictures are
decoded by DALI, as in training; video streams on the host.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import MEASURED, Codec, Part
from rhofast.data.format.dataset import ShardInfo
from rhofast.data.format.index import IndexRow, ShardIndex, open_index
from rhofast.data.types import frames_in
from rhofast.errors import ShardError
from rhofast.ingest.executors import tick
from rhofast.ingest.writer import file_digest, tar_members, wds2idx_text

if TYPE_CHECKING:
    from rhofast.data.decode.picture_decoder import PictureDecoder

_COLOR_TOLERANCE = 1.0  # of 255, between two measurements of the same mean color
_RATE_TOLERANCE = 0.01  # of the frame rate: containers round it
_PIECE = 1 << 22  # bytes read at once
_NOTE_BYTES = 1 << 20  # a KEY.json longer than this is none of ours

Place = tuple[int, int]  # offset of the first byte in the tar, size


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One broken promise. key and offset (in the file) are None where the whole file is meant."""

    file: str
    what: str
    key: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = self.file if self.key is None else f"{self.file}, key {self.key}"
        return f"{where}{'' if self.offset is None else f', byte {self.offset}'}: {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to check. mark: a file that is there while it is being checked; it holds key and offset of the member
    that is being decoded."""

    number: int
    root: Path
    shard: ShardInfo
    codec: dict[str, Any]
    classes: tuple[str, ...]
    deep: bool
    mark: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a shard is like. keys: u64 digests of its keys, in the order of its index; none if that cannot be read."""

    number: int
    problems: tuple[Problem, ...]
    keys: npt.NDArray[np.uint64]


def check_shard(task: Task) -> Report:
    """Everything that is wrong with a shard. Raises DependencyError where it needs DALI and there is none."""
    task.mark.write_text("")
    shard, index, problems = task.shard, None, list[Problem]()
    path = task.root / shard.index
    try:
        index = open_index(path, digest=shard.index_sha256)
    except ShardError as error:
        problems.append(Problem(file=shard.index, what=error.message.removeprefix(f"{path}: ")))
    except ValueError as error:
        problems.append(Problem(file=shard.index, what=str(error)))
    try:
        for problem in _shard_problems(task, index):
            problems.append(problem)  # one by one: those before a read error stay
    except OSError as error:
        problems.append(Problem(file=shard.tar, what=f"cannot be read: {error.strerror or error}"))
    task.mark.unlink()
    return Report(number=task.number, problems=tuple(problems), keys=_key_digests(index))


def _key_digests(index: ShardIndex | None) -> npt.NDArray[np.uint64]:
    keys = (index.key(row).encode() for row in range(len(index))) if index is not None else ()
    return np.array([int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) for key in keys], dtype=np.uint64)


def _shard_problems(task: Task, index: ShardIndex | None) -> Iterator[Problem]:
    shard, tar, idx = task.shard, task.root / task.shard.tar, f"{task.shard.name}.idx"
    if index is not None:
        with np.errstate(all="ignore"):
            frames, seconds = int(index.num_frames.sum()), float((index.num_frames / index.fps).sum())
        if (len(index), frames) != (shard.samples, shard.frames) or not np.isclose(seconds, shard.seconds):
            facts = f"{len(index)} samples, {frames} frames, {seconds:.2f} s"
            yield Problem(file=shard.index, what=f"{facts}; dataset.json says otherwise")
    if not tar.is_file():
        yield Problem(file=shard.tar, what="no such file, although dataset.json names it")
        return
    if (size := tar.stat().st_size) != shard.bytes:
        yield Problem(file=shard.tar, what=f"is {size} bytes long, dataset.json says {shard.bytes}")
    elif file_digest(tar) != shard.tar_sha256:
        yield Problem(file=shard.tar, what="its digest is not the one in dataset.json")
    try:
        places = tar_members(tar)
    except tarfile.TarError as error:
        yield Problem(file=shard.tar, what=f"is not a whole tar file: {error}")
        return
    if not (task.root / idx).is_file() or (task.root / idx).read_bytes() != wds2idx_text(places).encode():
        yield Problem(file=idx, what="is not the wds2idx index of the tar")
    if index is not None:
        yield from _sample_problems(task, index, places)


def _sample_problems(task: Task, index: ShardIndex, places: dict[str, Place]) -> Iterator[Problem]:
    name, codec = task.shard.tar, build_codec(task.codec)
    decoder = _picture_decoder() if task.deep and codec.pictures else None
    members: dict[str, dict[str, Place]] = {}
    for member, place in places.items():
        key, _, suffix = member.partition(".")
        members.setdefault(key, {})[suffix] = place
    with (task.root / name).open("rb") as file:
        for number in range(len(index)):
            row = index.row(number)
            found = members.pop(row.key, {})
            note = found.pop("json", None)
            named = codec.suffix is None or codec.suffix in found
            if note is None or not named or list(found.values()) != [(row.offset, row.size)]:
                yield Problem(file=name, key=row.key, what="the tar has no such member where the index says")
            else:
                yield from _note_problems(name, row, file, note, codec, task.classes)
                problems = list(_member_problems(name, row, file, codec))
                if task.deep and not problems:  # nothing is given to a decoder whose checksum is wrong
                    task.mark.write_text(f"{row.key} {row.offset}")
                    problems += _decoding_problems(name, row, file, codec, decoder)
                    task.mark.write_text("")
                yield from problems
            if row.label is not None and row.label >= len(task.classes):
                what = f"label {row.label} of {len(task.classes)} classes"
                yield Problem(file=task.shard.index, key=row.key, what=what)
            tick(row.size)
    for key in members:
        yield Problem(file=name, key=ascii(key)[1:-1], what="the index does not know this sample")


def _picture_decoder() -> PictureDecoder:
    """Imported where it is needed: DALI and torch take seconds to load."""
    from rhofast.data.decode.picture_decoder import PictureDecoder

    return PictureDecoder()


def _note_problems(
    file: str, row: IndexRow, tar: io.BufferedReader, place: Place, codec: Codec, classes: Sequence[str]
) -> Iterator[Problem]:
    """KEY.json against the index."""
    offset, size = place
    tar.seek(offset)
    try:
        note = json.loads(tar.read(min(size, _NOTE_BYTES)))
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        yield Problem(file=file, key=row.key, offset=offset, what="KEY.json is not a JSON object")
        return
    expected = {
        "label": row.label,
        "fps": row.fps,
        "frames": row.num_frames,
        "width": row.width,
        "height": row.height,
        "source_digest": row.source_digest.hex(),
        "codec": codec.name,
    }
    if row.label is not None and row.label < len(classes) and note.get("label_name") is not None:
        expected["label_name"] = classes[row.label]
    for name, value in expected.items():
        if note.get(name) != value:
            what = f"KEY.json says {name} {note.get(name)!r}, the index {value!r}"
            yield Problem(file=file, key=row.key, offset=offset, what=what)


# ---- one member ----


def _member_problems(file: str, row: IndexRow, tar: io.BufferedReader, codec: Codec) -> Iterator[Problem]:
    """Units against the index: where they lie, and their bytes."""
    units, counts = row.units, frames_in(row.units, row.num_frames)
    ends = units.offset + units.size
    if row.num_frames < 1 or not row.fps > 0 or min(row.width, row.height) < 1:
        what = f"{row.num_frames} frames of {row.width}x{row.height} at {row.fps} fps"
        yield Problem(file=file, key=row.key, offset=row.offset, what=what)
    elif not len(counts) or units.frame[0] != 0 or (counts < 0).any() or (codec.pictures and (counts != 1).any()):
        yield Problem(file=file, key=row.key, offset=row.offset, what="its units do not hold its frames")
    elif (units.offset < 0).any() or (units.size < 0).any() or (ends > row.size).any():
        yield Problem(file=file, key=row.key, offset=row.offset, what="a unit reaches beyond it")
    else:
        faults = {}
        for unit in range(len(counts)):
            if _checksum(tar, row.offset + int(units.offset[unit]), int(units.size[unit])) != int(units.crc[unit]):
                faults[unit] = "checksum mismatch"
        yield from _unit_problems(file, row, faults)


def _checksum(file: io.BufferedReader, offset: int, size: int) -> int:
    file.seek(offset)
    crc = 0
    while size and (piece := file.read(min(size, _PIECE))):
        crc = zlib.crc32(piece, crc)
        size -= len(piece)
    return crc


def _decoding_problems(
    file: str, row: IndexRow, tar: io.BufferedReader, codec: Codec, decoder: PictureDecoder | None
) -> Iterator[Problem]:
    """What the container, the decoder and the colors say against the index. The checksums are right."""
    faults = _picture_faults(row, tar, codec, decoder) if decoder is not None else {}
    if faults:
        yield from _unit_problems(file, row, faults)
        return
    with io.BufferedReader(_Part(tar, row.offset, row.size)) as content:
        try:
            member = codec.index_member(content, deep=decoder is None)
        except ValueError as error:
            faults = _group_faults(row, tar, codec)
            yield from _unit_problems(file, row, faults)
            if not faults:
                yield Problem(file=file, key=row.key, offset=row.offset, what=str(error))
            return
    units, found = row.units, member.units
    same_rate = row.num_frames < 2 or abs(float(member.fps) - row.fps) <= _RATE_TOLERANCE * row.fps
    if (member.num_frames, member.width, member.height) != (row.num_frames, row.width, row.height) or not same_rate:
        what = f"{member.num_frames} frames of {member.width}x{member.height} at {float(member.fps):g} fps"
        yield Problem(file=file, key=row.key, offset=row.offset, what=f"holds {what}; the index says otherwise")
    elif len(found.frame) != len(units.frame):
        what = f"consists of {len(found.frame)} units; the index lists {len(units.frame)}"
        yield Problem(file=file, key=row.key, offset=row.offset, what=what)
    else:
        pairs = [(getattr(found, part), getattr(units, part)) for part in ("frame", "offset", "size", "crc")]
        moved = np.flatnonzero(np.any([mine != theirs for mine, theirs in pairs], axis=0))
        yield from _unit_problems(file, row, {int(unit): "the container has it elsewhere" for unit in moved})
        distance = np.abs(found.rgb - units.rgb).max(axis=1)
        if not len(moved) and not distance.max() <= _COLOR_TOLERANCE:
            # The farthest, not the first: colors between measured frames are interpolated, and follow a wrong one.
            yield from _unit_problems(file, row, {int(distance.argmax()): "its mean color is not the stored one"})


def _picture_faults(row: IndexRow, tar: io.BufferedReader, codec: Codec, decoder: PictureDecoder) -> dict[int, str]:
    """ShardJob -> what is wrong with its picture, as the decoder of training sees it."""
    faults: dict[int, str] = {}
    shape = (row.height, row.width, 3)
    for first in range(0, row.num_frames, decoder.batch):
        given: dict[int, npt.NDArray[np.uint8]] = {}
        for unit in range(first, min(first + decoder.batch, row.num_frames)):
            tar.seek(row.offset + int(row.units.offset[unit]))
            picture = tar.read(int(row.units.size[unit]))
            if fault := _form_fault(picture, row):
                faults[unit] = fault
            else:
                given[unit] = np.frombuffer(picture, dtype=np.uint8)
        for (unit, encoded), pixels in zip(given.items(), decoder.decode(list(given.values())), strict=True):
            if pixels is None:
                faults[unit] = "the decoder refuses it"
            elif pixels.shape != shape:
                faults[unit] = f"the decoder makes {pixels.shape} of it, not {shape}"
            elif unit % MEASURED == 0 and _is_far(pixels, row.units.rgb[unit]):
                # Thin bright lines do that too, since the stored color was measured at an eighth of the size.
                frame = np.array([unit], dtype=np.int32)
                try:
                    host = codec.decode(_part(row, frame, frame.astype(np.int64), [encoded]))[unit]
                except ValueError as error:
                    faults[unit] = str(error)
                else:
                    if _is_far(pixels, _mean_color(host)):
                        faults[unit] = "its mean color is not the stored one"
    return faults


def _form_fault(picture: bytes, row: IndexRow) -> str | None:
    """What keeps a picture from being the JPEG that the format promises, by its markers and header alone."""
    if picture[:2] != b"\xff\xd8" or picture[-2:] != b"\xff\xd9":
        return "not a whole JPEG"
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
            if image.size != (row.width, row.height):
                return f"is {image.width}x{image.height}, not {row.width}x{row.height}"
            if image.mode != "RGB" or "progressive" in image.info or JpegImagePlugin.get_sampling(image) != 2:
                return "not a baseline 4:2:0 JPEG"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of them Pillow's, for broken headers
        return "not a JPEG"
    return None


def _mean_color(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    total = pixels.sum(axis=0, dtype=np.uint32).sum(axis=0, dtype=np.int64)  # row by row: 14 times faster than mean
    return np.asarray(total / (pixels.shape[0] * pixels.shape[1]), dtype=np.float64)


def _is_far(pixels: npt.NDArray[np.uint8], color: npt.NDArray[Any]) -> bool:
    return bool(np.abs(_mean_color(pixels) - color).max() > _COLOR_TOLERANCE)


def _group_faults(row: IndexRow, tar: io.BufferedReader, codec: Codec) -> dict[int, str]:
    """ShardJob -> why it does not decode. Empty where all do, or where a frame needs the whole member anyway."""
    faults: dict[int, str] = {}
    for unit in np.flatnonzero(frames_in(row.units, row.num_frames)).tolist():
        last = row.num_frames if unit + 1 == len(row.units.frame) else int(row.units.frame[unit + 1])
        frame = np.array([last - 1], dtype=np.int32)
        rows = codec.units_for(row.units, frame)
        if len(rows) == len(row.units.frame):
            break
        pieces = []
        for other in rows.tolist():
            tar.seek(row.offset + int(row.units.offset[other]))
            pieces.append(tar.read(int(row.units.size[other])))
        try:
            codec.decode(_part(row, frame, rows, pieces))
        except ValueError as error:
            faults[unit] = str(error)
    return faults


def _part(row: IndexRow, frame: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], pieces: Sequence[Any]) -> Part:
    return Part(units=row.units, num_frames=row.num_frames, frames=frame, rows=rows, pieces=pieces)


def _unit_problems(file: str, row: IndexRow, faults: dict[int, str]) -> Iterator[Problem]:
    """The first bad unit of a member, with its address, and how many more there are."""
    if not faults:
        return
    unit = min(faults)
    first, count = int(row.units.frame[unit]), int(frames_in(row.units, row.num_frames)[unit])
    name = f"frame {first}" if count == 1 else f"frames {first}-{first + count - 1}" if count else f"unit {unit}"
    more = f" ({len(faults) - 1} more of its {len(row.units.frame)} units are bad)" if len(faults) > 1 else ""
    offset = row.offset + int(row.units.offset[unit])
    yield Problem(file=file, key=row.key, offset=offset, what=f"{name}: {faults[unit]}{more}")


class _Part(io.RawIOBase):
    """The `size` bytes of a file from `start` on, as a file of their own, which does not close the other."""

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
