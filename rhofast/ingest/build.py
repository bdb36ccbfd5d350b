"""Turn the listing of a data set into a complete shard set: jobs, resuming, merging.

    listing --runs of `samples_per_shard`--> jobs --executor--> shards and result files
    result files --merge--> refused.jsonl, sizes.json, dataset.json

The same command continues where a killed one stopped and ends with the same bytes: a job (shard_job.py) depends only on
its sources and the settings, and a job that has its result file is done. `dataset.json` is written last; then the
result files are deleted. Several machines may each run a share of the jobs (array_task.py); the same command without
`--task` then runs the missing jobs and merges.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from rhofast.data.codecs import codec_settings
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import DatasetInfo, ShardInfo
from rhofast.data.format.index import DATASET_FILE, VERSION
from rhofast.errors import IngestError, StoreError
from rhofast.ingest.array_task import ArrayTask
from rhofast.ingest.executors import Executor
from rhofast.ingest.existing_set import next_number, shard_number
from rhofast.ingest.job_result import REFUSED_FILE, RefusedSource, read_refused, read_result
from rhofast.ingest.listing import Listing
from rhofast.ingest.out_folder import check_out, clear_leftovers, complete_set, create_folder, locked
from rhofast.ingest.record_run import RecordRun
from rhofast.ingest.shard_job import ShardJob, finished_job, record_facts, run_shard_job
from rhofast.ingest.source import source_states
from rhofast.ingest.transcode import TranscodeSettings, encoder_version
from rhofast.storage.address import redacted
from rhofast.storage.files import write_atomically, writing_atomically
from rhofast.storage.network import network_errors, words

SIZES_FILE = "sizes.json"
_RESUME = "finished shards are kept: fix the cause and run the same command again"
_JOB = re.compile(r"\.job-([0-9]{6,9})\.jsonl")
_LIMITS, _CUTS = {"min_duration", "max_duration"}, {"max_seconds", "clip_seconds", "stride"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSettings:
    """Settings of a shard set: everything that defines it except its videos.

    Attributes:
        name: Name of the set.
        split: Name of the split, for dataset.json.
        codec: The storage codec.
        fallback: That of videos that `codec` does not take; None to refuse them.
        transcode: How videos are transcoded.
        samples_per_shard: Videos per job; a shard has fewer samples if some of them are refused.
    """

    name: str
    split: str
    codec: Codec
    transcode: TranscodeSettings
    samples_per_shard: int
    fallback: Codec | None = None

    @property
    def codecs(self) -> list[dict[str, Any]]:
        """The settings of all codecs, in the order of their numbers in the index."""
        return [codec_settings(codec) for codec in (self.codec, self.fallback) if codec is not None]

    def written(self) -> dict[str, Any]:
        """Return what `dataset.json` says of the transcoding: every setting that decides what a sample becomes."""
        if self.codec.untouched and self.fallback is None:
            return self.transcode.model_dump(include=_LIMITS | (_CUTS if self.codec.cuts else set()))
        return self.transcode.model_dump(exclude={"timeout"})


OnProgress = Callable[[int, int, int], None]


def build_shards(
    listing: Listing,
    out: Path,
    settings: BuildSettings,
    executor: Executor,
    *,
    task: ArrayTask | None = None,
    append_to: ShardSet | None = None,
    on_progress: OnProgress | None = None,
) -> DatasetInfo | None:
    """Build a shard set in `out`, or continue a build that was stopped.

    Args:
        listing: The videos.
        out: Folder of the set: new, empty, or with a build to continue.
        settings: Settings of the set.
        executor: Runs the jobs.
        task: Run only the jobs of this task of a job array, and do not merge.
        append_to: The set that lies in `out` already and gets more shards.
        on_progress: Called with (videos done, bytes of their sources in this run, videos refused).

    Returns:
        What dataset.json says; None if `task` was given.

    Raises:
        IngestError: `out` holds another set, another process works there, or the disk is full. Finished shards are
            kept.
        StoreError: The store of `out` cannot be reached.
    """
    try:
        check_out(out)
        if append_to is None and (complete := complete_set(out)) is not None:
            _check_same(out, complete, listing, settings)
            if on_progress is not None:
                on_progress(len(listing), 0, sum(complete.refused.values()))
            return complete
        if append_to is not None:
            _check_same_kind(out, append_to.info, settings)
            for _ in read_refused(out / REFUSED_FILE):  # what does not fit is said before the work
                pass
        create_folder(out)
        with locked(out, shared=task is not None):
            plan = _Plan(listing, out, settings, first=next_number(append_to))
            clear_leftovers(out, task)
            _run(plan, executor, task, on_progress)
            if task is not None:
                return None
            info = _merge(plan, listing, None if append_to is None else append_to.info)
            clear_leftovers(out, task)  # left by nodes that were lost
            return info
    except network_errors() as error:
        if not isinstance(error, OSError):
            raise StoreError(f"{redacted(str(out))}: {words(error)}", hint=_RESUME) from None
        inside = str(error.filename).startswith(str(out))  # the name of a file inside `out` would not help
        raise IngestError(
            redacted(f"{out if inside else error.filename or out}: {error.strerror or error}"),
            hint=_RESUME,
        ) from None


class _Plan:
    """Cuts the listing into jobs."""

    def __init__(self, listing: Listing, out: Path, settings: BuildSettings, *, first: int) -> None:
        self.out, self.settings, self.encoder = out, settings, encoder_version()
        self._listing, self._first = listing, first

    def jobs(self) -> Iterator[ShardJob]:
        records, codecs, numbers = iter(self._listing), tuple(self.settings.codecs), count(self._first)
        while run := RecordRun(islice(records, self.settings.samples_per_shard)):
            yield ShardJob(
                number=next(numbers),
                records=run,
                out=self.out,
                codecs=codecs,
                settings=self.settings.transcode,
                encoder=self.encoder,
            )


def _check_same(out: Path, complete: DatasetInfo, listing: Listing, settings: BuildSettings) -> None:
    """Raise IngestError unless the set in `out` is the requested one."""
    hint = "choose another folder, or delete this one; add videos to the set with --append"
    if (difference := _first_difference(complete, settings)) is not None:
        raise IngestError(f"{out}: {difference}", hint=hint)
    if complete.build != _build_digest(listing, settings, source_states(listing)):
        raise IngestError(f"{out}: holds a set of other videos, or of another --samples-per-shard", hint=hint)
    _delete_result_files(out, complete)


def _check_same_kind(out: Path, existing: DatasetInfo, settings: BuildSettings) -> None:
    """Raise IngestError unless the new shards get the settings of the existing ones."""
    if (difference := _first_difference(existing, settings)) is not None:
        raise IngestError(f"{out}: {difference}", hint="--append needs the options that the set was made with")


def _first_difference(stored: DatasetInfo, settings: BuildSettings) -> str | None:
    """Return in words the first setting in which a stored set is not as requested; None if there is none."""
    has = {"name": stored.name, "split": stored.split, "codecs": stored.codecs, **stored.transcode}
    wanted = {"name": settings.name, "split": settings.split, "codecs": settings.codecs, **settings.written()}
    for field in dict.fromkeys([*has, *wanted]):
        if has.get(field) != wanted.get(field):
            pair = json.dumps(has.get(field)), json.dumps(wanted.get(field))
            return f"the set has {field}={pair[0]}, requested is {pair[1]}"
    return None


def _build_digest(listing: Listing, settings: BuildSettings, states: Iterable[list[Any] | None]) -> str:
    """Return a digest of sources (keys, labels, sizes), classes and settings, independent of the sources' folder.

    Args:
        listing: The sources.
        settings: The settings.
        states: What `source_states` yields.
    """
    what = [
        VERSION,
        settings.codecs,
        settings.written(),
        settings.samples_per_shard,
        listing.class_names(),
    ]
    digest = hashlib.sha256(json.dumps(what).encode())
    for record, state in zip(listing, states, strict=True):
        size = None if state is None else state[0]
        digest.update(json.dumps([*record_facts(record), size]).encode())
    return digest.hexdigest()


def _run(plan: _Plan, executor: Executor, task: ArrayTask | None, on_progress: OnProgress | None) -> None:
    """Run all jobs that are not done yet; with `task`, only its jobs."""
    skipped = refused = done = source_bytes = 0

    def to_do() -> Iterator[ShardJob]:
        nonlocal skipped, refused
        for job in plan.jobs():
            if task is not None and not task.includes(job.number):
                continue
            num_refused = finished_job(job)
            if num_refused is None:
                yield job
            else:
                skipped += len(job.records)
                refused += num_refused

    def report(videos: int, num_bytes: int) -> None:
        nonlocal done, source_bytes
        done, source_bytes = videos, num_bytes
        if on_progress is not None:
            on_progress(skipped + done, source_bytes, refused)

    for _, newly_refused in executor.run(run_shard_job, to_do(), on_ticks=report):
        refused += newly_refused
    if on_progress is not None:
        on_progress(skipped + done, source_bytes, refused)


def _merge(plan: _Plan, listing: Listing, existing: DatasetInfo | None) -> DatasetInfo:
    """Write the files that describe the whole set, from the result files of its jobs.

    Args:
        plan: The jobs.
        listing: The videos.
        existing: The set that is appended to. Its refused sources stay listed unless they were tried again.

    Returns:
        What dataset.json says.

    Raises:
        IngestError: Every video was refused, or a result file is missing.
    """
    out, settings = plan.out, plan.settings
    shards: list[ShardInfo] = []
    counts: Counter[str] = Counter()
    example = ""
    with writing_atomically(out / REFUSED_FILE) as file:
        lines = _refused_before(out, listing) if existing is not None else iter(())
        for source in chain(lines, _refused_now(plan, shards)):
            counts[source.reason] += 1
            example = example or f"{source.path}: {source.reason}: {source.detail}".rstrip(": ")
            file.write(source.line())
    if not shards and existing is None:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        raise IngestError(
            f"every video was refused ({reasons}); for example {example}", hint=f"all of them: {out / REFUSED_FILE}"
        )
    build, encoders = _build_digest(listing, settings, _states(plan)), [plan.encoder]
    if existing is not None:
        build = hashlib.sha256((existing.build + build).encode()).hexdigest() if shards else existing.build
        encoders = list(dict.fromkeys([*existing.encoders, *(encoders if shards else [])]))
        shards = [*existing.shards, *shards]
    info = DatasetInfo(
        name=settings.name,
        split=settings.split,
        codecs=settings.codecs,
        transcode=settings.written(),
        encoders=encoders,
        classes=listing.class_names(),
        shards=shards,
        refused=dict(sorted(counts.items())),
        build=build,
    )
    write_atomically(out / SIZES_FILE, json.dumps({shard.tar: shard.samples for shard in shards}))
    write_atomically(out / DATASET_FILE, json.dumps(info.model_dump(), indent=1))
    for job in plan.jobs():
        job.result_file.unlink(missing_ok=True)
    return info


def _refused_before(out: Path, listing: Listing) -> Iterator[RefusedSource]:
    return (source for source in read_refused(out / REFUSED_FILE) if source.key not in listing)


def _refused_now(plan: _Plan, shards: list[ShardInfo]) -> Iterator[RefusedSource]:
    """Yield the refused sources of all jobs, in order, and append the jobs' shards to `shards`."""
    for job in plan.jobs():
        for block in read_result(job.result_file):
            yield from block.refused
            if block.end is not None and block.end.shard is not None:
                shards.append(block.end.shard)


def _states(plan: _Plan) -> Iterator[list[Any] | None]:
    """Yield what each source was when it was read."""
    for job in plan.jobs():
        for block in read_result(job.result_file):
            yield from block.states


def _delete_result_files(out: Path, info: DatasetInfo) -> None:
    last = max(shard_number(shard) for shard in info.shards)
    for path in out.glob(".job-*.jsonl"):
        number = _JOB.fullmatch(path.name)
        if number and int(number[1]) <= last:  # later ones belong to shards that are being appended
            path.unlink()
