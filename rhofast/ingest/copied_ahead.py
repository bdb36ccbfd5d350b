"""Copy the shards of a remote set before processes check them: many small ones side by side, with a bound on space.

A process that copied its shard itself would wait for three requests per shard, and do nothing meanwhile.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rhofast.ingest.verify_shard import CopiedShard, VerifyJob, copy_shard

_AT_ONCE = 32  # shards that are copied side by side
_AHEAD_BYTES = 1 << 30  # of the shards that are copied and not handed out; one is always


def copied_ahead(jobs: Iterable[VerifyJob], folder: Path) -> Iterator[VerifyJob]:
    """Yield jobs whose files are on this machine, in their order; whoever does a job deletes its files.

    Args:
        jobs: Jobs of a remote set.
        folder: Folder for the copies. It must stay until all jobs are done, after the last one was yielded.
    """
    waiting, under_way, held = deque(jobs), deque[tuple[VerifyJob, Future[CopiedShard]]](), 0
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rhofast-verify") as pool:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < _AT_ONCE:
                    if under_way and held + waiting[0].shard.bytes > _AHEAD_BYTES:
                        break
                    job = waiting.popleft()
                    held += job.shard.bytes
                    under_way.append((job, pool.submit(copy_shard, job, Path(tempfile.mkdtemp(dir=folder)))))
                job, copying = under_way.popleft()
                held -= job.shard.bytes
                yield replace(job, copied=copying.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
