"""From the records of a recipe to a complete shard set: work units, resume, report.

    records --runs of `samples_per_shard`--> units --processes--> shard-NNNNNN.{tar,idx,arrow}, .unit-NNNNNN.json
                                                              '--> refused.jsonl, sizes.json, dataset.json

A unit is a run of consecutive records and becomes one shard. What it becomes depends on its sources and the settings
alone, not on workers or history. Its note (.unit-NNNNNN.json) is written last: a unit with a note of the same digest is
done, so the same command continues where a killed one stopped and ends with the same bytes. Notes are deleted once
`dataset.json` stands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rhofast.data.codecs import JpegCodec, build_codec, codec_settings
from rhofast.data.index import DATASET_FILE, VERSION, DatasetInfo, ShardInfo, check_shard_files, open_shards
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError, ShardError
from rhofast.files import write_atomically
from rhofast.ingest.executors import run_units, tick
from rhofast.ingest.probe import Refusal, RefusedError, probe
from rhofast.ingest.transcode import TranscodeSettings, output_fps, transcode
from rhofast.ingest.writer import NewSample, write_shard

REFUSED_FILE, SIZES_FILE = "refused.jsonl", "sizes.json"
_KEY_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_KEY_LENGTH = 80

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One shard's worth of work. digest: of its sources (key, path, label, size, time of change) and the settings."""

    number: int
    records: tuple[VideoRecord, ...]
    out: Path
    codec: dict[str, Any]
    settings: TranscodeSettings
    digest: str

    @property
    def name(self) -> str:
        return f"shard-{self.number:06d}"

    @property
    def note(self) -> Path:
        return self.out / f".unit-{self.number:06d}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What a unit became. shard: None where every source was refused. refused: a JSON line each."""

    number: int
    shard: ShardInfo | None
    refused: list[dict[str, str]]


def build_shards(
    records: Iterable[VideoRecord],
    out: Path,
    *,
    name: str,
    split: str,
    codec: JpegCodec,
    settings: TranscodeSettings,
    samples_per_shard: int,
    workers: int,
    on_progress: OnProgress | None = None,
) -> DatasetInfo:
    """Make, or continue to make, a shard set in `out`. on_progress: called with (videos done, of those refused).

    Raises IngestError: no records, a bad or repeated key, labels at odds, another set in `out`, a full disk. What was
    finished stays.
    """
    plan = _Plan(records, out, codec, settings, samples_per_shard)
    complete = _complete_set(out)
    if complete is not None:
        for _ in plan.units():
            pass
        if complete.build == plan.digest():
            return complete
        raise IngestError(
            f"{out}: holds another shard set (other videos or settings)", hint="choose another folder, or delete it"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(out)
        results = _run(plan, workers, on_progress)
        return _finish(out, plan, results, name=name, split=split, codec=codec)
    except OSError as error:
        raise IngestError(
            f"{error.filename or out}: {error.strerror or error}",
            hint="finished shards are kept: mend it and run the same command again",
        ) from None


class _Plan:
    """Cuts the stream of records into units, checks it on the way, and remembers what the whole set needs to know."""

    def __init__(
        self, records: Iterable[VideoRecord], out: Path, codec: JpegCodec, settings: TranscodeSettings, per_shard: int
    ) -> None:
        self._records, self._out, self._per_shard = iter(records), out, per_shard
        self._codec, self._settings = codec_settings(codec), settings
        self._seen: dict[bytes, None] = {}
        self._hash = hashlib.sha256()
        self.num_records = 0
        self.names: dict[int, str] = {}

    def units(self) -> Iterator[Unit]:
        for number, run in enumerate(iter(lambda: tuple(islice(self._records, self._per_shard)), ())):
            for record in run:
                self._check(record)
            what = [VERSION, self._codec, self._settings.model_dump(exclude={"timeout"}), [_identity(r) for r in run]]
            digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
            self._hash.update(digest.encode())
            self.num_records += len(run)
            yield Unit(
                number=number,
                records=run,
                out=self._out,
                codec=self._codec,
                settings=self._settings,
                digest=digest,
            )
        if not self.num_records:
            raise IngestError("the source has no videos", hint="check the folder or list, and the recipe's options")

    def digest(self) -> str:
        """Of everything seen so far."""
        return self._hash.hexdigest()

    def class_names(self) -> list[str]:
        """Names by label, with numbers where there are none; empty without labels."""
        return [self.names.get(label, str(label)) for label in range(max(self.names, default=-1) + 1)]

    def _check(self, record: VideoRecord) -> None:
        if not record.key or len(record.key) > _KEY_LENGTH or not set(record.key) <= _KEY_CHARACTERS:
            raise IngestError(
                f"{record.path}: key {record.key!r} is not 1 to {_KEY_LENGTH} letters, digits, '_' or '-'",
                hint="mend the recipe",
            )
        short = hashlib.blake2b(record.key.encode(), digest_size=10).digest()  # bounded memory a key
        if short in self._seen:
            raise IngestError(f"{record.path}: key {record.key!r} comes twice", hint="every video needs its own key")
        self._seen[short] = None
        if record.label is None:
            return
        label_name = record.label_name if record.label_name is not None else str(record.label)
        if record.label < 0 or self.names.setdefault(record.label, label_name) != label_name:
            known = self.names.get(record.label)
            raise IngestError(f"{record.path}: label {record.label} is {label_name!r} here and {known!r} elsewhere")


def _identity(record: VideoRecord) -> list[Any]:
    """What makes a source this one: its name, and the size and time of its last change."""
    try:
        stat = record.path.stat()
        state: list[int] | None = [stat.st_size, stat.st_mtime_ns]
    except OSError:
        state = None
    return [record.key, str(record.path), record.label, record.label_name, state]


def _complete_set(out: Path) -> DatasetInfo | None:
    if not (out / DATASET_FILE).exists():
        if out.is_dir() and any(out.iterdir()) and not any(out.glob(".unit-*.json")) and not any(out.glob(".*.tmp")):
            raise IngestError(f"{out}: is not empty and holds no shards", hint="choose a new or empty folder")
        if out.exists() and not out.is_dir():
            raise IngestError(f"{out}: is a file", hint="choose a new or empty folder")
        return None
    try:
        return open_shards(out).info
    except ShardError as error:
        raise IngestError(error.message, hint=error.hint or "choose another folder, or delete it") from None


def _clear_leftovers(out: Path) -> None:
    """Delete what a killed run was writing when it ended."""
    for path in out.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run(plan: _Plan, workers: int, on_progress: OnProgress | None) -> list[UnitResult]:
    """Run all units that are not done yet; the results of all, in order."""
    results: list[UnitResult] = []
    skipped = refused = 0

    def to_do() -> Iterator[Unit]:
        nonlocal skipped, refused
        for unit in plan.units():
            done = _finished_unit(unit)
            if done is None:
                yield unit
            else:
                results.append(done)
                skipped += len(unit.records)
                refused += len(done.refused)

    def report(ticks: int) -> None:
        if on_progress is not None:
            on_progress(skipped + ticks, refused)

    for result in run_units(run_unit, to_do(), workers=workers, on_ticks=report):
        results.append(result)
        refused += len(result.refused)
    if on_progress is not None:
        on_progress(plan.num_records, refused)
    return sorted(results, key=lambda result: result.number)


def _finished_unit(unit: Unit) -> UnitResult | None:
    """The result of a unit that is done, or None. Raises IngestError where its note belongs to another set."""
    try:
        note = json.loads(unit.note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if note["digest"] != unit.digest:
        raise IngestError(
            f"{unit.out}: holds the beginning of another shard set (other videos or settings)",
            hint="choose another folder, or delete it",
        )
    shard = None if note["shard"] is None else ShardInfo.model_validate(note["shard"])
    if shard is not None:
        try:
            check_shard_files(unit.out, shard)
        except ShardError:
            return None
    return UnitResult(number=unit.number, shard=shard, refused=note["refused"])


def run_unit(unit: Unit) -> UnitResult:
    """Make one shard, in a worker process. Raises OSError where the shard cannot be written."""
    codec, refused = build_codec(unit.codec), list[dict[str, str]]()

    def samples() -> Iterator[NewSample]:
        for record in unit.records:
            try:
                yield _make_sample(record, codec, unit)
            except RefusedError as error:
                line = {"key": record.key, "path": str(record.path), "reason": str(error.reason)}
                refused.append({**line, "detail": error.detail})
            tick()

    shard = write_shard(unit.out, unit.name, samples())
    note = {"digest": unit.digest, "shard": None if shard is None else shard.model_dump(), "refused": refused}
    write_atomically(unit.note, json.dumps(note))
    return UnitResult(number=unit.number, shard=shard, refused=refused)


def _make_sample(record: VideoRecord, codec: JpegCodec, unit: Unit) -> NewSample:
    source = probe(record.path)
    content = transcode(record.path, source, codec, unit.settings, unit.out)
    try:
        member = codec.index_member(content)
    except ValueError as error:
        raise RefusedError(Refusal.DAMAGED, str(error)) from None
    if member.num_frames == 0:
        raise RefusedError(Refusal.NO_FRAMES)
    member = replace(member, fps=output_fps(source, unit.settings))
    with record.path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
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
        content=content,
        suffix=codec.suffix,
        member=member,
        note=note,
    )


def _finish(
    out: Path, plan: _Plan, results: list[UnitResult], *, name: str, split: str, codec: JpegCodec
) -> DatasetInfo:
    shards = [result.shard for result in results if result.shard is not None]
    refused = [line for result in results for line in result.refused]
    if not shards:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r["reason"] for r in refused).items())
        first = f"{refused[0]['path']}: {refused[0]['reason']}"
        raise IngestError(f"every video was refused ({reasons}); the first: {first} {refused[0]['detail']}".rstrip())
    info = DatasetInfo(
        name=name,
        split=split,
        codec=codec_settings(codec),
        classes=plan.class_names(),
        shards=shards,
        refused=dict(sorted(Counter(line["reason"] for line in refused).items())),
        build=plan.digest(),
    )
    write_atomically(out / REFUSED_FILE, "".join(json.dumps(line) + "\n" for line in refused))
    write_atomically(out / SIZES_FILE, json.dumps({shard.tar: shard.samples for shard in shards}))
    write_atomically(out / DATASET_FILE, json.dumps(info.model_dump(), indent=1))
    for note in out.glob(".unit-*.json"):
        note.unlink()
    return info
