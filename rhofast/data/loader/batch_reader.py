"""Read the samples of a batch: locate and plan them, and have a pool of threads read the bytes of their frames.

Of a remote set, the bytes are asked for when the batch is planned, and a thread of the pool gets a sample when its
bytes are there: no thread waits for a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rhofast.data.format.index import IndexRow
from rhofast.data.format.read_request import ReadRequest
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import RemoteShardSet
from rhofast.data.loader.batch import Batch, BatchSelection, Int64Array, PendingReads
from rhofast.data.loader.batch_planner import BatchPlanner
from rhofast.data.loader.fields import BatchFields
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Sample
from rhofast.errors import SampleError


class BatchReader:
    """Requests reads from a pool of threads, and collects them.

    Args:
        shards: The data.
        readers: The reader of each set.
        planner: The planner of the batches.
        fields: What is read of the samples besides.
        threads: Number of threads.
    """

    def __init__(
        self, shards: Mixture, readers: Sequence[Reader], planner: BatchPlanner, fields: BatchFields, *, threads: int
    ) -> None:
        self._shards, self._readers, self._planner, self._fields = shards, readers, planner, fields
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rhofast-pread")

    def close(self, *, wait: bool) -> None:
        """End the threads.

        Args:
            wait: Whether to wait for the reads that have begun; one that hangs never ends.
        """
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def request(self, selection: BatchSelection, slots: Int64Array, samples: Int64Array) -> PendingReads:
        """Plan samples for some slots of a batch, and have the pool read them.

        Args:
            selection: The batch.
            slots: Places in the batch, i64[S].
            samples: The sample for each of them, i64[S].

        Returns:
            The reads that were requested. Samples that the index does not give have failed already.
        """
        rows: list[IndexRow] = []
        kept: list[int] = []
        failed: dict[int, SampleError] = {}
        located = [self._shards.locate(sample) for sample in samples.tolist()]
        self._load_indices(located)
        for place, (number, local) in enumerate(located):
            try:
                rows.append(self._readers[number].locate(local))
                kept.append(place)
            except SampleError as error:
                failed[int(slots[place])] = error
        slots, samples = slots[kept], samples[kept]
        clips, augment = self._planner.plan(rows, samples, selection.epochs[slots], selection.earlier[slots])
        reads = [
            self._read(sample, frames, row)
            for sample, frames, row in zip(samples.tolist(), clips.needed, rows, strict=True)
        ]
        return PendingReads(
            slots=slots,
            samples=samples,
            rows=rows,
            clips=clips,
            augment=augment,
            reads=reads,
            failed=failed,
        )

    def collect(self, pending: PendingReads) -> tuple[Batch, dict[int, SampleError]]:
        """Wait for reads.

        Args:
            pending: What `request` returned.

        Returns:
            The samples that could be read, and by slot why the others could not.

        Raises:
            MachineError: The machine refuses to read, for a reason that is not in the data.
        """
        read: dict[int, Sample] = {}
        failed = dict(pending.failed)
        for place, (slot, future) in enumerate(zip(pending.slots.tolist(), pending.reads, strict=True)):
            try:
                read[place] = future.result()
            except SampleError as error:
                failed[slot] = error.with_traceback(None)  # It would keep alive what was read.
        places = list(read)
        batch = Batch(
            slots=pending.slots[places],
            samples=pending.samples[places],
            rows=[pending.rows[place] for place in places],
            clips=pending.clips.take(places),
            augment=pending.augment.take(places),
            read=list(read.values()),
        )
        return batch, dict(sorted(failed.items()))

    def _load_indices(self, located: Sequence[tuple[int, int]]) -> None:
        """Have the indices that a batch needs downloaded side by side."""
        for number, shards in enumerate(self._shards.sets):
            if isinstance(shards, RemoteShardSet):
                needed = (shards.locate(local)[0] for other, local in located if other == number)
                shards.load_indices(dict.fromkeys(needed))

    def _read(self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow) -> Future[Sample]:
        """Request the bytes of a sample's frames, and have the pool read them when they are there."""
        number, local = self._shards.locate(sample)
        reader = self._readers[number]
        if not reader.fetches:
            return self._pool.submit(self._read_one, sample, frames, row)
        request = reader.request(local, frames, row, with_json=self._fields.extra is not None)
        assert request.fetch is not None
        read: Future[Sample] = Future()
        request.fetch.when_done(lambda: self._finish_later(reader, request, sample, read))
        return read

    def _read_one(self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow) -> Sample:
        """Read the bytes of a sample's frames from files, in a thread of the pool."""
        number, local = self._shards.locate(sample)
        reader = self._readers[number]
        return _numbered(reader.read(local, frames, row, with_json=self._fields.extra is not None), sample)

    def _finish_later(self, reader: Reader, request: ReadRequest, sample: int, read: Future[Sample]) -> None:
        """Have the pool read a sample whose bytes are there, and pass the result on."""

        def finish() -> None:
            try:
                read.set_result(_numbered(reader.finish(request), sample))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is waited for
                read.set_exception(error)

        def give_up(finished: Future[None]) -> None:
            if finished.cancelled():
                read.cancel()

        try:
            self._pool.submit(finish).add_done_callback(give_up)
        except RuntimeError:  # the pool has been shut down
            read.cancel()


def _numbered(read: Sample, sample: int) -> Sample:
    """Give a sample its number in the data, which is not that in its set."""
    return read if read.sample == sample else replace(read, sample=sample)
