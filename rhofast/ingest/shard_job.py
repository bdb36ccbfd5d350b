"""A unit of work: a run of videos becomes one shard, in whatever process of whatever machine.

    unit --probe, transcode, index, one video after another--> shard-NNNNNN.{tar,idx,arrow}, .unit-NNNNNN.json

What a unit becomes depends on its sources, the settings and the ffmpeg program alone: not on who works, how many do, or
what happened before. Its note (.unit-NNNNNN.json) is written last, so a unit with a note of the same digest is done.
What is not finished lies in `.unit-NNNNNN.*.tmp`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec, Member
from rhofast.data.codecs.stream_copy import UnfitError
from rhofast.data.format.dataset import ShardInfo, check_shard_files
from rhofast.data.format.index import VERSION
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError, ShardError
from rhofast.ingest.executors import tick
from rhofast.ingest.isolation import IsolatedProcess
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo, probe
from rhofast.ingest.transcode import TranscodeSettings, output_fps, transcode
from rhofast.ingest.writer import NewSample, write_shard
from rhofast.storage.files import fetch, is_local, write_atomically

_COMPLETE = 0.8  # of the frames that the packets promise; some files are wrong about the last ones
_guard = IsolatedProcess()  # of this process


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard's worth of work. encoder: the ffmpeg program that makes it, as it names itself."""

    number: int
    records: tuple[VideoRecord, ...]
    out: Path
    codec: dict[str, Any]
    settings: TranscodeSettings
    encoder: str

    @property
    def name(self) -> str:
        return f"shard-{self.number:06d}"

    @property
    def result_file(self) -> Path:
        return self.out / f".unit-{self.number:06d}.json"

    def digest(self) -> str:
        """Of all that decides what it becomes, as far as can be told without reading the videos."""
        sources = [[*_identity(record), _state(record.path)] for record in self.records]
        what = [VERSION, self.encoder, self.codec, self.settings.model_dump(exclude={"timeout"}), sources]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """What a unit became. shard: None where every source was refused. refused: key, path, reason and detail of each."""

    number: int
    shard: ShardInfo | None
    refused: list[dict[str, str]]


def run_shard_job(unit: ShardJob) -> tuple[int, int]:
    """Make one shard; (its number, how many sources were refused). Raises OSError where it cannot be written, and
    IngestError where ffmpeg was stopped from outside."""
    codec, refused = build_codec(unit.codec), list[dict[str, str]]()
    digest = unit.digest()  # before anything is read: a source that changes meanwhile is made again
    home = unit.out if is_local(unit.out) else None
    with tempfile.TemporaryDirectory(dir=home, prefix=f".unit-{unit.number:06d}.", suffix=".tmp") as folder:
        scratch = Path(folder)

        def samples() -> Iterator[NewSample]:
            for record in unit.records:
                num_bytes = 0
                try:
                    num_bytes = _size(record.path)
                    with tempfile.TemporaryDirectory(dir=scratch) as own:
                        yield make_sample(record, codec, unit.settings, Path(own))
                except RefusedError as error:
                    line = {"key": record.key, "path": str(record.path), "reason": str(error.reason)}
                    refused.append({**line, "detail": error.detail})
                tick(num_bytes)

        shard = write_shard(unit.out, unit.name, samples(), scratch=scratch)
    note = {"digest": digest, "shard": None if shard is None else shard.model_dump(), "refused": refused}
    write_atomically(unit.result_file, json.dumps(note))
    return unit.number, len(refused)


def finished_shard(unit: ShardJob) -> ShardResult | None:
    """The result of a unit that is done, or None. Raises IngestError where its note belongs to another set."""
    note = _read_note(unit)
    if note is None:
        return None
    if note["digest"] != unit.digest():
        raise IngestError(
            f"{unit.out}: holds the beginning of another shard set (other videos, settings or ffmpeg)",
            hint="choose another folder, or delete it",
        )
    result = _result_of(unit, note)
    if result.shard is not None:
        try:
            check_shard_files(unit.out, result.shard)
        except ShardError:
            return None
    return result


def shard_result(unit: ShardJob) -> ShardResult | None:
    """What the note of a unit says, taken on trust; None if there is none."""
    note = _read_note(unit)
    return None if note is None else _result_of(unit, note)


def _result_of(unit: ShardJob, note: dict[str, Any]) -> ShardResult:
    shard = None if note["shard"] is None else ShardInfo.model_validate(note["shard"])
    return ShardResult(number=unit.number, shard=shard, refused=note["refused"])


def _read_note(unit: ShardJob) -> dict[str, Any] | None:
    try:
        return dict(json.loads(unit.result_file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def source_identity(record: VideoRecord) -> list[Any]:
    """What names a source wherever it lies and whenever it was copied there: key, label, and size in bytes."""
    state = _state(record.path)
    return [*_identity(record), None if state is None else state[0]]


def _identity(record: VideoRecord) -> list[Any]:
    return [record.key, record.label, record.label_name]


def _state(path: Path) -> list[Any] | None:
    """The size and the time of the last change, where the storage knows one; None for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, getattr(stat, "st_mtime_ns", None) or str(getattr(stat, "st_mtime", ""))]


def _size(path: Path) -> int:
    try:
        return int(path.stat().st_size)
    except OSError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or str(error)) from None


def make_sample(record: VideoRecord, codec: Codec, settings: TranscodeSettings, scratch: Path) -> NewSample:
    """One video as it is stored. scratch: a folder for its files, which are needed until it is written.

    Raises RefusedError, OSError where `scratch` cannot be written, IngestError where ffmpeg was stopped from outside.
    """
    try:
        path = fetch(record.path, scratch / "source")
    except FileNotFoundError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or str(error)) from None
    source = _guard.call(probe, path, seconds=settings.timeout)
    _check_duration(source.seconds, settings)
    file, member = _store(path, source, codec, settings, scratch)
    with path.open("rb") as original:
        digest = hashlib.file_digest(original, lambda: hashlib.blake2b(digest_size=16)).digest()
    note = {
        "label": record.label,
        "label_name": record.label_name,
        "source": record.path.name,
        "source_digest": digest.hex(),
        "codec": codec.name,
        "fps": float(member.fps),
        "frames": member.num_frames,
        "duration": float(member.num_frames / member.fps),
        "width": member.width,
        "height": member.height,
    }
    return NewSample(
        key=record.key,
        label=record.label,
        source_digest=digest,
        file=file,
        suffix=codec.suffix or _suffix(record.path),
        member=member,
        note=note,
    )


def _store(
    path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, scratch: Path
) -> tuple[Path, Member]:
    """The member's file, and what is in it. Raises as `make_sample` does."""
    if codec.untouched and (source.mirrored or source.rotation):
        raise RefusedError(Refusal.NOT_COPYABLE, "it is to be shown turned or mirrored")
    file = transcode(path, source, codec, settings, scratch / "member")
    try:
        if codec.untouched:  # a stranger's bytes, not an encoder's
            member = _guard.call(_index_member, codec, file, seconds=settings.timeout)
        else:
            member = _index_member(codec, file)
    except UnfitError as error:
        raise RefusedError(Refusal.NOT_COPYABLE, str(error)) from None
    except ValueError as error:
        raise RefusedError(Refusal.DAMAGED, str(error)) from None
    if member.num_frames == 0:
        raise RefusedError(Refusal.NO_FRAMES)
    if codec.untouched:
        return file, member if member.fps else replace(member, fps=source.fps)
    member = replace(member, fps=output_fps(source, settings))
    _check_complete(member, source, settings)
    return file, member


def _check_complete(member: Member, source: SourceInfo, settings: TranscodeSettings) -> None:
    """See that about as many frames came out as the packets promised. Raises RefusedError."""
    expected = min(source.seconds, settings.max_seconds or math.inf) * float(member.fps)
    if member.num_frames < _COMPLETE * expected - 2:
        raise RefusedError(Refusal.DAMAGED, f"{member.num_frames} of {expected:.0f} frames came out")


def _index_member(codec: Codec, file: Path) -> Member:
    with file.open("rb") as content:
        return codec.index_member(content)


def _check_duration(seconds: float, settings: TranscodeSettings) -> None:
    """Raises RefusedError for what is shorter or longer than asked for."""
    if settings.min_duration is not None and seconds < settings.min_duration:
        raise RefusedError(Refusal.TOO_SHORT, f"{seconds:.2f} s")
    if settings.max_duration is not None and seconds > settings.max_duration:
        raise RefusedError(Refusal.TOO_LONG, f"{seconds:.2f} s")


def _suffix(path: Path) -> str:
    """The suffix of a copied file in the tar: one word, since readers take everything behind the key's dot for it."""
    suffix = re.sub(r"[^a-z0-9]", "", path.suffix.lower())
    return suffix if suffix and suffix != "json" else "video"
