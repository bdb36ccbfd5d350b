"""Check a whole shard set against every promise of the shard format, and say where each problem is.

    shards --verify_shard.py, in fresh processes--> problems and key digests of each shard, in the set's order
    key digests --> keys that occur twice;  the folder --> files that are missing or unexpected

The result depends only on the files; it does not depend on the number of workers or on which is done first. A decoder
that crashes takes its process with it, but not the check: each shard that was being checked at that time is checked
again alone, and the one whose process dies again is reported. Nothing is repaired.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.dataset_json import DatasetInfo, index_facts
from rhofast.data.format.index_file import open_index
from rhofast.data.format.remote import RemoteShardSet
from rhofast.errors import IngestError, ShardFormatError
from rhofast.ingest.copied_ahead import copied_ahead
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.job_result import REFUSED_FILE, read_refused
from rhofast.ingest.verify_member import FormatProblem
from rhofast.ingest.verify_shard import ShardReport, VerifyJob, check_shard, copy_files
from rhofast.storage.strict_json import read_record


def verify_shards(
    shards: ShardSet,
    *,
    deep: bool = False,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[FormatProblem]:
    """Check a whole shard set.

    Every byte counts, so the shards of a remote set are copied as a whole, up to 1 GB of them before a process is free.

    Args:
        shards: The set.
        deep: Decode all samples too.
        workers: Number of processes.
        on_progress: Called from time to time with (samples checked, samples in all).

    Yields:
        What is wrong, shard by shard.

    Raises:
        DependencyError: `deep` needs DALI, which is not installed.
        IngestError: No process can be started.
        MachineError: The store of a remote set does not answer.
    """
    info, address = shards.info, shards.where if isinstance(shards, RemoteShardSet) else None

    def progress(samples: int) -> None:
        if on_progress is not None:
            on_progress(samples, len(shards))

    keys = []
    with tempfile.TemporaryDirectory(prefix="rhofast-verify.", ignore_cleanup_errors=True) as markers:
        jobs = [
            VerifyJob(
                number=number,
                root=shards.root,
                shard=shard,
                facts=index_facts(shard, info),
                classes=tuple(info.classes),
                deep=deep,
                address=address,
                marker=Path(markers) / str(number),
            )
            for number, shard in enumerate(info.shards)
        ]
        for report in _in_order(_reports(jobs, workers, progress)):
            yield from report.problems
            keys.append(report.keys)
    progress(len(shards))
    yield from _repeated_keys(shards, keys)
    if address is None:
        yield from _folder_problems(shards.root, info)
        return
    with tempfile.TemporaryDirectory(prefix="rhofast-verify.") as folder:
        yield from copy_files(address, ("sizes.json", REFUSED_FILE), Path(folder))
        yield from _folder_problems(Path(folder), info)


def _reports(jobs: Sequence[VerifyJob], workers: int, progress: Callable[[int], None]) -> Iterator[ShardReport]:
    """Yield the reports as they are ready; shards that were being checked when a process died are checked alone."""
    left = {job.number: job for job in jobs}
    total = sum(job.shard.samples for job in jobs)
    while left:
        before = total - sum(job.shard.samples for job in left.values())

        def on_ticks(samples: int, _: int, before: int = before) -> None:
            progress(before + samples)

        suspects: list[VerifyJob] = []
        try:
            todo: Iterable[VerifyJob] = list(left.values())
            todo = copied_ahead(todo, jobs[0].marker.parent) if jobs[0].address is not None else todo
            for report in LocalProcesses(workers).run(check_shard, todo, on_ticks=on_ticks):
                del left[report.number]
                yield report
        except IngestError:
            suspects = [job for job in left.values() if job.marker.exists()]
            if not suspects:
                raise
        for job in suspects:
            del left[job.number]
            yield _check_alone(job)


def _check_alone(job: VerifyJob) -> ShardReport:
    """Check a shard that may kill its process; if it does, check it again without decoding."""
    deaths: list[FormatProblem] = []
    for attempt in (job, replace(job, deep=False)) if job.deep else (job,):
        try:
            (report,) = LocalProcesses(1).run(check_shard, [attempt])
            return replace(report, problems=(*report.problems, *deaths))
        except IngestError:
            if position := job.marker.read_text():
                key, offset = position.split()
                what = "the decoder crashed on this sample; the samples after it were not decoded"
                deaths.append(FormatProblem(file=job.shard.tar, key=key, offset=int(offset), what=what))
            else:
                deaths.append(FormatProblem(file=job.shard.tar, what="the process that checked this shard died"))
    return ShardReport(number=job.number, problems=tuple(deaths), keys=np.zeros(0, dtype=np.uint64))


def _in_order(reports: Iterable[ShardReport]) -> Iterator[ShardReport]:
    """Yield the reports by number, from 0 on."""
    waiting: dict[int, ShardReport] = {}
    following = 0
    for report in reports:
        waiting[report.number] = report
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _repeated_keys(shards: ShardSet, keys: Sequence[npt.NDArray[np.uint64]]) -> Iterator[FormatProblem]:
    """Find keys that occur twice, in 16 bytes per sample: only keys with equal digests are read and compared."""
    digests = np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)
    doubtful = np.unique(digests[1:][digests[1:] == digests[:-1]])
    if not len(doubtful):
        return
    first: dict[str, str] = {}
    for number, shard_keys in enumerate(keys):
        rows = np.flatnonzero(np.isin(shard_keys, doubtful))
        if not len(rows):
            continue
        shard = shards.info.shards[number]
        index = open_index(shards.local(shard.index), index_facts(shard, shards.info))
        for row in rows.tolist():
            key = index.key(row)
            if key in first:
                yield FormatProblem(file=shard.index, key=key, what=f"the same key occurs in {first[key]}")
            first.setdefault(key, shard.name)


def _folder_problems(root: Path, info: DatasetInfo) -> Iterator[FormatProblem]:
    """Check the files beside the shards."""
    sizes: dict[str, int] | None = None
    with suppress(ShardFormatError):
        sizes = read_record(root / "sizes.json", dict[str, int], raises=ShardFormatError)
    if sizes != {shard.tar: shard.samples for shard in info.shards}:
        yield FormatProblem(file="sizes.json", what="does not match the samples per shard in dataset.json")
    refused: dict[str, int] | None = None
    with suppress(IngestError):
        refused = dict(Counter(source.reason for source in read_refused(root / REFUSED_FILE)))
    if refused != info.refused:
        yield FormatProblem(
            file=REFUSED_FILE,
            what=f"does not match the {sum(info.refused.values())} refused sources in dataset.json",
        )
    for leftover in sorted({*root.glob(".*.tmp"), *root.glob(".job-*")}):
        yield FormatProblem(
            file=leftover.name,
            what="left over from an interrupted run: run `rhofast shard` again with the same arguments",
        )
    known = {f"{shard.name}.{suffix}" for shard in info.shards for suffix in ("tar", "arrow", "idx")}
    for stray in sorted(path.name for path in root.glob("shard-*")):
        if stray not in known:
            yield FormatProblem(file=stray, what="not listed in dataset.json")
