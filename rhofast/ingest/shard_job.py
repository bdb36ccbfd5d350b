"""One job of ingest: a run of videos becomes one shard, in any process of any machine.

    job --probe, transcode, index each video--> shard-NNNNNN.{tar,idx,arrow}, .job-NNNNNN.jsonl

The result depends only on the sources, the settings and the ffmpeg program; it does not depend on the machine, the
number of workers, or what happened before. The result file (.job-NNNNNN.jsonl) is written last, so a job whose result
file has the same digest is done. Unfinished work lies in `.job-NNNNNN.*.tmp`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset import check_shard_files
from rhofast.data.format.index import VERSION
from rhofast.data.types import VideoRecord
from rhofast.display.text import printable
from rhofast.errors import IngestError, ShardError
from rhofast.ingest.executors import tick
from rhofast.ingest.job_result import RefusedSource, ResultEnd, ResultWriter, read_result
from rhofast.ingest.opened import LastSource
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.ingest.sample import make_sample, probed
from rhofast.ingest.segments import windows_of
from rhofast.ingest.source import ReadingTrouble, source_states
from rhofast.ingest.stored_names import shown_source, stored_path
from rhofast.ingest.transcode import TranscodeSettings
from rhofast.ingest.writer import NewSample, write_shard
from rhofast.storage.address import redacted
from rhofast.storage.files import is_local

_DETAIL = 1_000  # characters of what is written about a refused video
_NO_MORE = object()
_trouble, _sources = ReadingTrouble(), LastSource()  # of all jobs of this process


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """The work of making one shard.

    Attributes:
        number: Number of the shard.
        records: The videos, in their order.
        out: Folder of the shard set.
        codecs: Settings of the codecs of the set, as `codec_settings` returns them: the one that videos are stored
            with, and perhaps one for those that do not fit it.
        settings: How videos are transcoded.
        encoder: Version line of the ffmpeg program.
    """

    number: int
    records: Collection[VideoRecord]
    out: Path
    codecs: tuple[dict[str, Any], ...]
    settings: TranscodeSettings
    encoder: str

    @property
    def name(self) -> str:
        """Name of the shard, without suffix."""
        return f"shard-{self.number:06d}"

    @property
    def result_file(self) -> Path:
        """The file that is written when the job is done."""
        return self.out / f".job-{self.number:06d}.jsonl"

    def digest(self) -> str:
        """Return a digest of everything that decides the result, except the sources' content."""
        what = [VERSION, self.encoder, self.codecs, self.settings.model_dump(exclude={"timeout"})]
        digest = hashlib.sha256(json.dumps(what).encode())
        for record in self.records:
            digest.update(json.dumps(record_facts(record)).encode())
        return digest.hexdigest()


def record_facts(record: VideoRecord) -> list[Any]:
    """Return everything that a record says of its sample, apart from the path of its file."""
    inside = None if record.inside is None else asdict(record.inside)
    facts = [record.key, inside, record.label, record.label_name, record.start, record.end]
    return [*facts, list(record.labels or ()), record.extra]


def run_shard_job(job: ShardJob) -> tuple[int, int]:
    """Make one shard and return its number and how many sources were refused.

    Raises:
        OSError: The shard cannot be written.
        IngestError: ffmpeg was stopped from outside, or too many sources in succession could not be read.
    """
    codecs = [build_codec(settings) for settings in job.codecs]
    # Before anything is read: a source that changes meanwhile is noticed.
    states = list(source_states(job.records))
    home = job.out if is_local(job.out) else None
    with (
        tempfile.TemporaryDirectory(dir=home, prefix=f".job-{job.number:06d}.", suffix=".tmp") as folder,
        tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as spool,
    ):
        scratch, result = Path(folder), ResultWriter(spool, states)

        def samples() -> Iterator[NewSample]:
            counted = None
            for record, state in zip(job.records, states, strict=True):
                refusal = None
                try:
                    for part in _parts(record, state, job.settings, scratch):
                        try:
                            with tempfile.TemporaryDirectory(dir=scratch) as sample_folder:
                                yield make_sample(
                                    part, codecs, job.settings, Path(sample_folder), sources=_sources, state=state
                                )
                        except RefusedError as error:
                            refusal = error
                            result.refuse(_refused(part, error))
                            if error.reason == Refusal.UNREADABLE:
                                break
                except RefusedError as error:
                    refusal = error
                    result.refuse(_refused(record, error))
                _trouble.note(record.path, refusal)
                place = (record.path, record.inside)
                tick(0 if place == counted else _source_bytes(record, state))
                counted = place

        shard = write_shard(job.out, job.name, samples(), scratch=scratch)
        result.write(job.result_file, job.digest(), shard)
    return job.number, result.num_refused


def _parts(
    record: VideoRecord, state: list[Any] | None, settings: TranscodeSettings, scratch: Path
) -> Iterator[VideoRecord]:
    """Yield the records of the samples that a record becomes: itself, or its windows; raise RefusedError for none."""
    if settings.clip_seconds is None:
        yield record
    else:
        info = probed(record, settings, scratch, sources=_sources, state=state)
        yield from windows_of(record, info, settings)


def _refused(record: VideoRecord, refusal: RefusedError) -> RefusedSource:
    return RefusedSource(
        key=record.key,
        path=stored_path(shown_source(record)),
        reason=str(refusal.reason),
        detail=printable(redacted(refusal.detail), _DETAIL),
    )


def finished_job(job: ShardJob) -> int | None:
    """Return how many sources a job has refused that is done and whose files are there, or None.

    A job is not done if one of its sources could not be read, or has come since.

    Raises:
        IngestError: The result file belongs to another shard set.
    """
    if not job.result_file.exists():
        return None
    now, num_refused = iter([*source_states(job.records), _NO_MORE]), 0
    is_same = is_done = True
    end: ResultEnd | None = None
    try:
        for block in read_result(job.result_file):
            for before in block.states:
                after = next(now, _NO_MORE)
                is_same &= after is not _NO_MORE and (None in (before, after) or before == after)
                is_done &= before is not None or after is None
            is_done &= all(source.reason != Refusal.UNREADABLE for source in block.refused)
            num_refused, end = num_refused + len(block.refused), block.end
    except IngestError:
        return None
    if end is None or end.digest != job.digest() or not is_same or next(now, None) is not _NO_MORE:
        raise IngestError(
            f"{job.out}: holds the beginning of another shard set (other videos, settings or ffmpeg)",
            hint="choose another folder, or delete this one",
        )
    if end.shard is not None:
        try:
            check_shard_files(job.out, end.shard)
        except ShardError:
            return None
    return num_refused if is_done else None


def _source_bytes(record: VideoRecord, state: list[Any] | None) -> int:
    """Return the size of a source, as far as it is known: that of a cell of a table shows when it was read."""
    if record.inside is not None:
        return getattr(record.inside, "size", None) or _sources.num_bytes
    return 0 if state is None else int(state[0])
