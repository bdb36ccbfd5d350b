"""Every promise of the shard format, checked for a whole set; and what is wrong, said with its address.

    shards --checks.py, in fresh processes--> problems and key digests of each, in the set's order
    key digests --> keys that come twice;  the folder --> files that are missing or in excess

What is wrong is a function of the files: not of the number of workers, nor of who is done first. A decoder that dies
takes its process with it, not the check: every shard that was being checked then is checked again by itself, and the
one whose process dies again is named. What it is not: it repairs nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.index import open_index
from rhofast.errors import ConfigError, IngestError
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.verify_shard import Problem, Report, Task, check_shard


def verify_shards(
    shards: ShardSet,
    *,
    deep: bool = False,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Problem]:
    """Check a whole set; yields what is wrong, shard by shard. deep: decode everything too. workers: processes.
    on_progress: called now and then with (samples checked, samples in all).

    Raises DependencyError where `deep` needs DALI and it is not installed; IngestError where no process can be started.
    """
    root, info = shards.root, shards.info
    try:
        build_codec(info.codec)
    except ConfigError as error:
        yield Problem(file="dataset.json", what=error.message)
        return

    def progress(samples: int) -> None:
        if on_progress is not None:
            on_progress(samples, len(shards))

    keys = []
    with tempfile.TemporaryDirectory(prefix="rhofast-verify.") as marks:
        tasks = [
            Task(
                number=number,
                root=root,
                shard=shard,
                codec=info.codec,
                classes=tuple(info.classes),
                deep=deep,
                mark=Path(marks) / str(number),
            )
            for number, shard in enumerate(info.shards)
        ]
        for report in _in_order(_reports(tasks, workers, progress)):
            yield from report.problems
            keys.append(report.keys)
    progress(len(shards))
    yield from _repeated_keys(shards, keys)
    yield from _folder_problems(shards)


def _reports(tasks: Sequence[Task], workers: int, progress: Callable[[int], None]) -> Iterator[Report]:
    """As they are ready. Every shard that was being checked when a process died is checked again by itself."""
    left = {task.number: task for task in tasks}
    total = sum(task.shard.samples for task in tasks)
    while left:
        before = total - sum(task.shard.samples for task in left.values())

        def on_ticks(samples: int, _: int, before: int = before) -> None:
            progress(before + samples)

        suspects: list[Task] = []
        try:
            for report in LocalProcesses(workers).run(check_shard, list(left.values()), on_ticks=on_ticks):
                del left[report.number]
                yield report
        except IngestError:
            suspects = [task for task in left.values() if task.mark.exists()]
            if not suspects:
                raise
        for task in suspects:
            del left[task.number]
            yield _check_alone(task)


def _check_alone(task: Task) -> Report:
    """Check a shard that may kill the process that does; if it does, without decoding."""
    deaths: list[Problem] = []
    for attempt in (task, replace(task, deep=False)) if task.deep else (task,):
        try:
            (report,) = LocalProcesses(1).run(check_shard, [attempt])
            return replace(report, problems=(*report.problems, *deaths))
        except IngestError:
            if mark := task.mark.read_text():
                key, offset = mark.split()
                what = "the decoder died of it, and its process with it; the samples after it were not decoded"
                deaths.append(Problem(file=task.shard.tar, key=key, offset=int(offset), what=what))
            else:
                deaths.append(Problem(file=task.shard.tar, what="the process that checked it died"))
    return Report(number=task.number, problems=tuple(deaths), keys=np.zeros(0, dtype=np.uint64))


def _in_order(reports: Iterable[Report]) -> Iterator[Report]:
    """Reports by number, from 0 on; those that are ready too early wait."""
    waiting: dict[int, Report] = {}
    following = 0
    for report in reports:
        waiting[report.number] = report
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _repeated_keys(shards: ShardSet, keys: Sequence[npt.NDArray[np.uint64]]) -> Iterator[Problem]:
    """Equal digests are few; only those keys are read again and compared. Needs 16 bytes a sample."""
    every = np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)
    doubtful = np.unique(every[1:][every[1:] == every[:-1]])
    if not len(doubtful):
        return
    first: dict[str, str] = {}
    for number, own in enumerate(keys):
        rows = np.flatnonzero(np.isin(own, doubtful))
        if not len(rows):
            continue
        shard = shards.info.shards[number]
        index = open_index(shards.root / shard.index)
        for row in rows.tolist():
            key = index.key(row)
            if key in first:
                yield Problem(file=shard.index, key=key, what=f"the key is in {first[key]} too")
            first.setdefault(key, shard.name)


def _folder_problems(shards: ShardSet) -> Iterator[Problem]:
    """What lies beside the shards."""
    root, info = shards.root, shards.info
    try:
        sizes = json.loads((root / "sizes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sizes = None
    if sizes != {shard.tar: shard.samples for shard in info.shards}:
        yield Problem(file="sizes.json", what="does not list the samples of the shards")
    try:
        with (root / "refused.jsonl").open(encoding="utf-8") as file:
            refused = dict(Counter(json.loads(line)["reason"] for line in file))
    except (OSError, ValueError, KeyError, TypeError):
        refused = None
    if refused != info.refused:
        yield Problem(file="refused.jsonl", what=f"does not list the {sum(info.refused.values())} refused sources")
    for leftover in sorted({*root.glob(".*.tmp"), *root.glob(".unit-*")}):
        yield Problem(file=leftover.name, what="left over from an interrupted run; run the same command again")
    known = {f"{shard.name}.{suffix}" for shard in info.shards for suffix in ("tar", "arrow", "idx")}
    for stray in sorted(path.name for path in root.glob("shard-*")):
        if stray not in known:
            yield Problem(file=stray, what="is not listed in dataset.json")
