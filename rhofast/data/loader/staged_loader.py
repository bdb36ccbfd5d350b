"""The stages between a batch's position and its views, which both loaders share.

    positions --> [plan] -----------> [read] --------------> [decode] --> [finish] --> next()
                  order, clips,        bytes of the frames,    DALI         clamp,
                  augment; asks        from a pool of threads;              blur
                  the pool to read     replaces what is bad

Each stage has a thread of its own and runs ahead of the consumer by `prefetch` batches, so the pool always has the next
batches to read: one slow video holds up nothing but its own batch. A stream of video that no GPU takes is decoded in
the pool, too. What it is not: it does not know which batches there are, nor what becomes of a bad sample (loader.py).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.profiler import record_function

from rhofast.config.schema import AugmentConfig, DataConfig
from rhofast.data.codecs import build_codec
from rhofast.data.decode.capabilities import choose_decoder, detect, say_pictures
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.format.index import IndexRow
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import DownloadAhead
from rhofast.data.loader.bad_samples import BadSampleLog
from rhofast.data.loader.batch import Batch, BatchInProgress, DecodedBatch, FinishedBatch, Int64Array, PendingReads
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.threaded_pipeline import StageClock, StalledError, ThreadedPipeline
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import AugmentPlan, ClipPlan, Sample, VideoLimits, Views
from rhofast.errors import ConfigError, DecodeError, SampleError, ShardError, UndecodableError

_NO_LABEL = -100


class StagedLoader:
    """Runs the stages, counts what they do, closes what they hold. A loader says by its own `_plan`, `_numbers` and
    `_mend` what they work on."""

    def __init__(
        self,
        shards: Mixture,
        augment: AugmentConfig,
        data: DataConfig,
        *,
        max_videos: int,
        max_pictures: int,
        plain: bool,
        device: torch.device,
        dtype: torch.dtype,
        quarantine: BadSampleLog,
    ) -> None:
        self.shards = shards
        self._data = data
        self._pool = ThreadPoolExecutor(data.threads, thread_name_prefix="rhofast-pread")
        device_id = None
        if device.type == "cuda":  # "cuda" alone means the current one
            device_id = torch.cuda.current_device() if device.index is None else device.index
        self._device = device
        self.decoders, limits = _choose_decoders(shards, data, device_id)
        self._readers = [Reader(one, limits) for one in shards.sets]
        video = None
        if limits:
            engines = max(limit.engines for limit in limits.values())
            threads = max(data.decode_threads, 2 * engines)
            video = VideoDecoder(max_samples=max_videos, threads=threads, device_id=device_id)
        # Work of its own, beside the training step's, and ordered after and before it by events.
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]
        self._quarantine = quarantine
        self._pipelines = {
            pictures: DecodePipeline(
                augment,
                max_pictures=max_pictures,
                color=not plain and (augment.color > 0 or augment.gray > 0),
                blur=not plain and augment.blur > 0,
                threads=data.decode_threads,
                device_id=device_id,
                dtype=dtype,
                difference=not plain and augment.difference > 0,
                decoded=not pictures,
                video=None if pictures else video,
                hw_decoder_load=data.hw_decoder_load,
            )
            for pictures in {reader.codec.pictures for reader in self._readers}
        }
        self._conveyor: ThreadedPipeline[FinishedBatch] | None = None
        self._ahead: DownloadAhead | None = None
        self._batches = self._clips = self._frames = self._frames_decoded = self._bytes_read = 0
        self._bytes_used = 0.0
        self._began: float | None = None
        self._stalled = False  # a read hangs: nobody waits for it any more

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and close all files. Safe to call twice; the loader cannot be used afterwards."""
        if self._ahead is not None:
            self._ahead.stop()
        if self._conveyor is not None:
            self._conveyor.close()
        self._pool.shutdown(wait=not self._stalled, cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()
        for reader in self._readers:
            reader.close()

    @property
    def stats(self) -> LoaderStats:
        """A snapshot of the counters."""
        conveyor = self._conveyor
        return LoaderStats(
            batches=self._batches,
            clips=self._clips,
            frames=self._frames,
            frames_decoded=self._frames_decoded,
            bytes_read=self._bytes_read,
            bytes_used=round(self._bytes_used),
            bad=self._quarantine.count,
            seconds=0.0 if self._began is None else time.perf_counter() - self._began,
            wait_s=conveyor.wait_s if conveyor else 0.0,
            stages={name: StageClock(**asdict(clock)) for name, clock in conveyor.clocks.items()} if conveyor else {},
        )

    def _start(self, source: Iterator[Any], needed: Sequence[Iterator[int]]) -> None:
        """needed: of each set, the shards in the order of their first need."""
        if self._conveyor is None:
            self._began = time.perf_counter()
            self._ahead = DownloadAhead(zip(self.shards.sets, needed, strict=True), threads=self._data.downloads)
            stages: dict[str, Callable[[Any], Any]] = {
                "plan": self._plan,
                "read": self._read,
                "decode": self._decode,
                "finish": self._finish,
            }
            stages = {name: record_function(f"loader: {name}")(stage) for name, stage in stages.items()}
            self._conveyor = ThreadedPipeline(source, stages, depth=self._data.prefetch, timeout_s=self._data.timeout_s)

    def _next(self) -> Views:
        assert self._conveyor is not None
        try:
            done = self._conveyor.get()
        except StalledError as error:
            self._stalled = True
            hint = "the storage may hang; data.timeout_s is how many seconds are allowed"
            raise ShardError(f"the loader stalled: {error}", hint=hint) from None
        self._hand_over(done)
        b, p, _, t = done.views.pixels.shape[:4]
        self._batches += 1
        self._clips += b * p
        self._frames += b * p * t
        read = done.batch.read
        self._bytes_read += sum(sample.bytes_read for sample in read)
        self._bytes_used += sum(sample.bytes_used for sample in read)
        self._frames_decoded += sum(sample.frames_decoded for sample in read)
        return done.views

    def _hand_over(self, done: FinishedBatch) -> None:
        """Order the consumer's work on the device after the loader's, and the reuse of the memory after both."""
        if done.made is not None:
            consumer = torch.cuda.current_stream(self._device)
            consumer.wait_event(done.made)
            for tensor in (done.views.pixels, done.views.sample, done.views.label):
                tensor.record_stream(consumer)

    @abstractmethod
    def _plan(self, at: Any) -> BatchInProgress:
        """Stage 1."""

    @abstractmethod
    def _numbers(self, rows: list[IndexRow], samples: Int64Array, epochs: Int64Array) -> tuple[ClipPlan, AugmentPlan]:
        """The plans of some samples."""

    @abstractmethod
    def _mend(self, draft: BatchInProgress, failed: Mapping[int, SampleError]) -> None:
        """See to it that the samples in the slots of `failed`, which are not part of `draft.batch`, are not missed."""

    def _ask(self, slots: Int64Array, samples: Int64Array, epochs: Int64Array) -> PendingReads:
        """Plan some samples, and have them read."""
        rows: list[IndexRow] = []
        kept: list[int] = []
        failed: dict[int, SampleError] = {}
        for place, sample in enumerate(samples.tolist()):
            number, local = self.shards.locate(sample)
            try:
                rows.append(self._readers[number].locate(local))
                kept.append(place)
            except SampleError as error:
                failed[int(slots[place])] = error
        slots, samples, epochs = slots[kept], samples[kept], epochs[kept]
        clips, augment = self._numbers(rows, samples, epochs)
        reads = [
            self._pool.submit(self._read_one, sample, frames, row)
            for sample, frames, row in zip(samples.tolist(), clips.needed, rows, strict=True)
        ]
        return PendingReads(
            slots=slots,
            samples=samples,
            epochs=epochs,
            rows=rows,
            clips=clips,
            augment=augment,
            reads=reads,
            failed=failed,
        )

    def _read_one(self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow) -> Sample:
        number, local = self.shards.locate(sample)
        read = self._readers[number].read(local, frames, row)
        return read if local == sample else replace(read, sample=sample)

    def _collect(self, asked: PendingReads) -> tuple[Batch, dict[int, SampleError]]:
        """Those that could be read, and by slot why the others could not."""
        read: dict[int, Sample] = {}
        failed = dict(asked.failed)
        for place, (slot, future) in enumerate(zip(asked.slots.tolist(), asked.reads, strict=True)):
            try:
                read[place] = future.result()
            except SampleError as error:
                failed[slot] = error.with_traceback(None)  # which would hold on to what was read
        places = list(read)
        batch = Batch(
            slots=asked.slots[places],
            samples=asked.samples[places],
            epochs=asked.epochs[places],
            rows=[asked.rows[place] for place in places],
            clips=asked.clips.take(places),
            augment=asked.augment.take(places),
            read=list(read.values()),
        )
        return batch, dict(sorted(failed.items()))

    def _read(self, draft: BatchInProgress) -> BatchInProgress | None:
        """Stage 2."""
        draft.batch, failed = self._collect(draft.asked)
        if failed:
            self._mend(draft, failed)
        return draft if len(draft.batch) else None

    def _decode(self, draft: BatchInProgress) -> DecodedBatch | None:
        """Stage 3. Samples that the decoder refuses are seen to as those that cannot be read."""
        with torch.cuda.stream(self._stream):
            while draft.batch is not None and len(draft.batch):
                try:
                    return DecodedBatch(batch=draft.batch, replaced=draft.replaced, pixels=self._pixels(draft.batch))
                except UndecodableError as error:
                    batch = draft.batch
                    failed = {
                        int(batch.slots[place]): self._refusal(batch, place, why)
                        for place, why in error.reasons.items()
                    }
                    draft.batch = batch.take([place for place in range(len(batch)) if place not in error.reasons])
                    self._mend(draft, failed)
        return None

    def _finish(self, decoded: DecodedBatch) -> FinishedBatch:
        """Stage 4, beside the decoding of the next batch."""
        batch = decoded.batch
        labels = [_NO_LABEL if sample.label is None else sample.label for sample in batch.read]
        any_pipeline = next(iter(self._pipelines.values()))  # they differ in what they decode
        with torch.cuda.stream(self._stream):
            views = Views(
                pixels=any_pipeline.finish(decoded.pixels, batch.augment),
                sample=torch.from_numpy(batch.samples).to(self._device),
                label=torch.tensor(labels, device=self._device),
            )
            made = None if self._stream is None else self._stream.record_event()
        return FinishedBatch(views=views, batch=batch, replaced=decoded.replaced, made=made)

    def _pixels(self, batch: Batch) -> torch.Tensor:
        """[B, P, C, T, H, W], to be finished. Sets whose samples are stored as pictures and sets of streams take
        different graphs. Raises UndecodableError."""
        kinds = [self._readers[self.shards.locate(sample)[0]].codec.pictures for sample in batch.samples.tolist()]
        parts = []
        for kind, pipeline in self._pipelines.items():
            places = [place for place, other in enumerate(kinds) if other == kind]
            if len(places) == len(kinds):
                return pipeline.decode(batch.read, batch.clips, batch.augment)
            if places:
                some = batch.take(places)
                try:
                    parts.append((places, pipeline.decode(some.read, some.clips, some.augment)))
                except UndecodableError as error:
                    raise UndecodableError({places[place]: why for place, why in error.reasons.items()}) from None
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        flat = torch.cat([pixels.permute(0, 1, 3, 4, 5, 2) for _, pixels in parts])
        return flat[torch.from_numpy(order).to(flat.device)].permute(0, 1, 5, 2, 3, 4)

    def _refusal(self, batch: Batch, place: int, why: str) -> DecodeError:
        number, local = self.shards.locate(int(batch.samples[place]))
        shards, row = self.shards.sets[number], batch.rows[place]
        name = shards.info.shards[shards.locate(local)[0]].tar
        return DecodeError(f"the decoder refused it: {why}", shard=name, key=row.key, offset=row.offset)


def _choose_decoders(
    shards: Mixture, data: DataConfig, device_id: int | None
) -> tuple[tuple[str, ...], dict[str, VideoLimits]]:
    """(a sentence a codec: who decodes it, and why; what is left to the device's video decoder). Raises ConfigError
    where one was asked for that is not to be had."""
    capabilities = detect(device_id)
    said: dict[str, str] = {}
    limits: dict[str, VideoLimits] = {}
    for one in shards.sets:
        codec = build_codec(one.info.codec)
        if codec.pictures:
            said[codec.name] = say_pictures(codec.name, capabilities, data.hw_decoder_load)
            continue
        try:
            choice, said[codec.name] = choose_decoder(codec.name, capabilities, data.decoder)
        except ValueError as error:
            raise ConfigError(f"data.decoder: {error}", hint='"auto" takes what is there') from None
        if choice == "nvdec":
            limits |= capabilities.video
    return tuple(said.values()), limits
