"""The stages between a batch's position and its views.

    positions --> [plan] -----------> [read] --------------> [decode] --> [finish] --> next()
                  order, clips,        bytes of the frames,    DALI         clamp,
                  augmentation;        from a pool of threads;              blur
                  requests the reads   bad samples are handled

Each stage has a thread of its own and runs ahead of the consumer by `data.prefetch` batches, so that the pool always
has the next batches to read: a slow video delays its own batch and no other. A stream of video that no GPU decodes is
decoded in the pool, too. The decode stage feeds the next batch, if it is read, before it waits for the one before it,
so that a GPU always has work. Which batches there are is said by a planner (batch_planner.py), what becomes of bad
samples by a policy (bad_samples.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch.profiler import record_function
from torch.utils.data import IterableDataset, get_worker_info

from rhofast.config.schema import AugmentConfig, DataConfig
from rhofast.data.format.download_ahead import DownloadAhead
from rhofast.data.loader.bad_samples import BadSamplePolicy
from rhofast.data.loader.batch import Batch, BatchInProgress, DecodedBatch, FinishedBatch
from rhofast.data.loader.batch_planner import BatchPlanner
from rhofast.data.loader.batch_reader import BatchReader
from rhofast.data.loader.decoders import Decoders
from rhofast.data.loader.fields import BatchFields
from rhofast.data.loader.memory_in_use import MemoryInUse
from rhofast.data.loader.outage_news import OutageNews
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.threaded_pipeline import StageClock, StalledError, ThreadedPipeline, TwoSteps
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import Views
from rhofast.errors import ConfigError, DecodeError, SampleError, ShardError, UndecodableError

_CLOSED = "the loader is closed"


class StagedLoader(IterableDataset[Views]):
    """Runs the stages, counts what they do, and closes what they hold.

    Its items are whole batches: a DataLoader around it takes batch_size=None and num_workers=0.

    Args:
        shards: The data.
        planner: Which samples a batch consists of, and their plans.
        policy: What becomes of samples that cannot be read or decoded.
        augment: Options of augmentation.
        data: Options of loading.
        fields: What batches have besides pixels, numbers and class numbers.
        max_videos: Videos per batch, at most.
        max_pictures: Pictures per batch, at most.
        device: Device of the views.
        dtype: Type of the pixels.

    Attributes:
        shards: The data.
        augment: Options of augmentation.
        decoders: One sentence per codec of the data: who decodes it, and why.
        outages: Tells the consumer what it waits for, if a store does not answer.

    Raises:
        ConfigError: A decoder was asked for that is not available.
    """

    def __init__(
        self,
        shards: Mixture,
        planner: BatchPlanner,
        policy: BadSamplePolicy,
        *,
        augment: AugmentConfig,
        data: DataConfig,
        fields: BatchFields,
        max_videos: int,
        max_pictures: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shards, self.augment = shards, augment
        self._planner, self._policy, self._data, self._device = planner, policy, data, device
        self._fields, self.outages = fields, OutageNews(shards.sets, data.timeout_s)
        device_id = None
        if device.type == "cuda":  # "cuda" without an index is the current device
            device_id = torch.cuda.current_device() if device.index is None else device.index
        self._decoders = Decoders(
            shards,
            augment,
            data,
            max_videos=max_videos,
            max_pictures=max_pictures,
            random_appearance=planner.random_appearance,
            sizes=planner.sizes,
            device_id=device_id,
            dtype=dtype,
        )
        self.decoders = self._decoders.descriptions
        self._readers = self._decoders.readers
        self._begin()
        # The loader's work runs beside the training step's; events order it before and after that. To finish a batch
        # takes little, and must not wait for the decoding of the next one.
        self._stream = self._finish_stream = None
        if device_id is not None:
            self._stream = torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]
            self._finish_stream = torch.cuda.Stream(device_id, priority=-1)  # type: ignore[no-untyped-call]
        # Decoded pixels belong to DALI or to the stream of decoding, which do not know that they are read elsewhere.
        self._in_use = MemoryInUse()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a loader cannot be copied or sent to another process, such as a DataLoader's worker: it has threads and "
            "files of its own; use num_workers=0, or open it in that process"
        )

    def close(self) -> None:
        """End all threads and close all files. It may be called twice; the loader cannot be used afterwards."""
        self._closed = True
        self._stop()
        for reader in self._readers:
            reader.close()

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._device

    @property
    def stats(self) -> LoaderStats:
        """A snapshot of the counters."""
        pipeline = self._pipeline
        return LoaderStats(
            batches=self._batches,
            clips=self._clips,
            frames=self._frames,
            frames_decoded=self._frames_decoded,
            bytes_read=self._bytes_read,
            bytes_used=round(self._bytes_used),
            bad=self._policy.log.count,
            seconds=0.0 if self._began is None else time.perf_counter() - self._began,
            wait_s=pipeline.wait_s if pipeline else 0.0,
            outage_s=self.outages.outage_s,
            stages={name: StageClock(**asdict(clock)) for name, clock in pipeline.clocks.items()} if pipeline else {},
        )

    @property
    def write_error(self) -> OSError | None:
        """Why the file of bad samples could not be written last time, or None."""
        return self._policy.log.write_error

    @property
    def started(self) -> bool:
        """Whether the stages run."""
        return self._pipeline is not None

    def _begin(self) -> None:
        """Set what a pass over the data begins with: no stages yet, and counters at zero."""
        self._reads = BatchReader(self.shards, self._readers, self._planner, self._fields, threads=self._data.threads)
        self._pipeline: ThreadedPipeline[FinishedBatch] | None = None
        self._ahead: DownloadAhead | None = None
        self._batches = self._clips = self._frames = self._frames_decoded = self._bytes_read = 0
        self._bytes_used = self.outages.outage_s = 0.0
        self._began: float | None = None
        self._stalled = False  # A read hangs: nothing waits for it any more.

    def _stop(self) -> None:
        """End the threads, and drop what was fetched ahead."""
        if self._ahead is not None:
            self._ahead.stop()
        if self._pipeline is not None:
            self._pipeline.close()
        self._reads.close(wait=not self._stalled)
        if self._ahead is not None:
            self._ahead.close()

    def _restart(self) -> None:
        """Go back to before the first `_start`.

        Raises:
            ValueError: The loader is closed.
        """
        if self._closed:
            raise ValueError(_CLOSED)
        if self.started:
            self._stop()
            self._begin()

    def _start(self, addresses: Iterator[Any], shard_orders: Sequence[Iterator[int]]) -> None:
        """Start the stages if they do not run yet.

        Args:
            addresses: The planner's address of every batch, in order.
            shard_orders: Per set, its shards in the order of their first need.

        Raises:
            ConfigError: This is a DataLoader's worker, in which the threads of the loader do not run.
            ValueError: The loader is closed.
        """
        worker = get_worker_info()
        if worker is not None:
            raise ConfigError(
                f"num_workers={worker.num_workers}: the loader reads and decodes in threads of its own",
                hint="pass num_workers=0 to the DataLoader",
            )
        if self._pipeline is None:
            if self._closed:
                raise ValueError(_CLOSED)
            self._began = time.perf_counter()
            self._ahead = DownloadAhead(zip(self.shards.sets, shard_orders, strict=True), threads=self._data.downloads)

            def named(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
                return record_function(f"loader: {name}")(function)

            stages: dict[str, Callable[[Any], Any] | TwoSteps] = {
                "plan": named("plan", self._plan),
                "read": named("read", self._read),
                "decode": TwoSteps(named("feed", self._start_decoding), named("decode", self._decode)),
                "finish": named("finish", self._finish),
            }
            limits: dict[str, Any] = {"depth": self._data.prefetch, "timeout_s": self._data.timeout_s}
            self._pipeline = ThreadedPipeline(addresses, stages, **limits, on_wait=self.outages.check)

    def _next(self) -> Views:
        """Return the next batch's views.

        Raises:
            StopIteration: There are no more.
            ShardError: A stage takes longer than `data.timeout_s`.
            MachineError: The machine refuses to read, for a reason that is not in the data.
        """
        assert self._pipeline is not None and self._ahead is not None
        try:
            finished = self._pipeline.get()
        except StalledError as error:
            self._stalled = True
            raise ShardError(
                f"the loader stalled: {error} (data.timeout_s={self._data.timeout_s:g})",
                hint="check the storage, or raise data.timeout_s",
            ) from None
        self._ahead.go_on()
        self._hand_over(finished)
        b, p, _, t = finished.views.pixels.shape[:4]
        self._batches += 1
        self._clips += b * p
        self._frames += b * p * t
        read = finished.batch.read
        self._bytes_read += sum(sample.bytes_read for sample in read)
        self._bytes_used += sum(sample.bytes_used for sample in read)
        self._frames_decoded += sum(sample.frames_decoded for sample in read)
        return finished.views

    def _make(self, address: Any) -> FinishedBatch | None:
        """Make one batch in this thread; None if all of its samples were left out."""
        batch = self._read(self._plan(address))
        decoded = None if batch is None else self._decode(batch)
        if decoded is None:
            return None
        finished = self._finish(decoded)
        self._hand_over(finished)
        return finished

    def _hand_over(self, finished: FinishedBatch) -> None:
        """Order the consumer's work on the device after the loader's, and the reuse of the memory after both."""
        if finished.ready is not None:
            consumer = torch.cuda.current_stream(self._device)
            consumer.wait_event(finished.ready)
            for value in dict(finished.views).values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(consumer)

    def _plan(self, address: Any) -> BatchInProgress:
        """Stage 1: choose and plan the samples of a batch, and request their bytes."""
        selection = self._planner.select(address)
        samples = selection.samples
        pending = self._reads.request(selection, np.arange(len(samples)), samples)
        return BatchInProgress(selection=selection, current=samples.copy(), pending=pending)

    def _read(self, progress: BatchInProgress) -> BatchInProgress | None:
        """Stage 2: wait for the reads of a batch; None if all of its samples were left out."""
        self._policy.expect(len(progress.selection.samples))
        progress.batch, failed = self._reads.collect(progress.pending)
        self._handle(progress, failed)
        return progress if len(progress.batch) else None

    def _handle(self, progress: BatchInProgress, failed: Mapping[int, SampleError]) -> None:
        """Handle the samples that failed as the policy says, until none is left."""
        while failed:
            slots = self._policy.handle(progress, failed)
            if not len(slots):
                return
            batch, failed = self._reads.collect(self._reads.request(progress.selection, slots, progress.current[slots]))
            progress.batch = batch if progress.batch is None else Batch.join([progress.batch, batch])

    def _start_decoding(self, progress: BatchInProgress) -> BatchInProgress:
        """Stage 3, first step: feed the decoders, which may still be at work on the batch before."""
        assert progress.batch is not None
        with torch.cuda.stream(self._stream):
            progress.decoding = self._decoders.start(progress.batch)
        return progress

    def _decode(self, progress: BatchInProgress) -> DecodedBatch | None:
        """Stage 3: decode; samples that the decoder refuses are handled as those that cannot be read."""
        with torch.cuda.stream(self._stream):
            while progress.batch is not None and len(progress.batch):
                batch = progress.batch
                decoding = self._decoders.start(batch) if progress.decoding is None else progress.decoding
                progress.decoding = None
                try:
                    pixels = self._decoders.collect(decoding)
                    ready = None if self._stream is None else self._stream.record_event()
                    return DecodedBatch(batch=batch, replaced=progress.replaced, pixels=pixels, ready=ready)
                except UndecodableError as error:
                    failed = {int(batch.slots[at]): self._refusal(batch, at, why) for at, why in error.reasons.items()}
                    progress.batch = batch.take([at for at in range(len(batch)) if at not in error.reasons])
                    self._handle(progress, failed)
        return None

    def _finish(self, decoded: DecodedBatch) -> FinishedBatch:
        """Stage 4: finish the pixels, while the next batch is decoded."""
        batch = decoded.batch
        with torch.cuda.stream(self._finish_stream):
            if self._finish_stream is not None and decoded.ready is not None:
                self._finish_stream.wait_event(decoded.ready)
            pixels = self._decoders.finish(decoded.pixels, batch.augment)
            views = self._fields.views(pixels, batch, self._device)
            ready = None if self._finish_stream is None else self._finish_stream.record_event()
        if ready is not None:
            self._in_use.hold(decoded.pixels, until=ready)
        return FinishedBatch(views=views, batch=batch, replaced=decoded.replaced, ready=ready)

    def _refusal(self, batch: Batch, place: int, why: str) -> DecodeError:
        number, local = self.shards.locate(int(batch.samples[place]))
        shards, row = self.shards.sets[number], batch.rows[place]
        name = shards.info.shards[shards.locate(local)[0]].tar
        return DecodeError(f"the decoder refused it: {why}", shard=name, key=row.key, offset=row.offset)
