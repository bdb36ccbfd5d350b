"""Order -> plan -> read -> pipeline -> Views: the training loader and the test loader.

    positions --order--> samples --clips, augment--> plans --reader--> pictures --pipeline--> Views
    '------------------- stage "read" (threads) -------------------'  '- stage "decode" (DALI) -'

A stream of video is decoded by the threads of the first stage, stored pictures by the second. Both stages run ahead of
the consumer by `prefetch` batches. A batch is a pure function of (dataset digest, config, seed, epoch, position): no
thread, rank or history has a say in it. Ranks are sliced here; do not give a loader to `accelerator.prepare`, which
would slice again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from rhofast.config import AugmentSection, ClipSection, DataSection
from rhofast.data.conveyor import Conveyor, StageClock
from rhofast.data.index import IndexRow, ShardSet
from rhofast.data.order import rank_slice, sample_at, steps_per_epoch
from rhofast.data.pipeline import DecodePipeline
from rhofast.data.plan import evaluation_plan, join, take, training_plan
from rhofast.data.quarantine import Quarantine
from rhofast.data.reader import Reader
from rhofast.data.stats import LoaderStats
from rhofast.data.types import AugmentPlan, ClipPlan, Sample, Views
from rhofast.errors import ConfigError, DecodeError, ResumeError, SampleError
from rhofast.rng import Stream, uniform

STATE_VERSION = 1
_NO_LABEL = -100
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where in the run: `position` samples of `epoch` were consumed before this batch."""

    epoch: int
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """A batch on its way between the two stages."""

    samples: list[Sample]
    clips: ClipPlan
    augment: AugmentPlan


class _Base:
    """What the two loaders share: reading in threads, decoding, counting, closing."""

    def __init__(
        self,
        shards: ShardSet,
        augment: AugmentSection,
        data: DataSection,
        *,
        max_pictures: int,
        plain: bool,
        device: torch.device,
        half: bool,
        quarantine: Quarantine,
    ) -> None:
        self.shards = shards
        self._reader = Reader(shards)
        self._pool = ThreadPoolExecutor(data.threads, thread_name_prefix="rhofast-pread")
        self._depth = data.prefetch
        device_id = None
        if device.type == "cuda":  # "cuda" alone means the current one
            device_id = torch.cuda.current_device() if device.index is None else device.index
        self._device = device
        self._quarantine = quarantine
        self._pipeline = DecodePipeline(
            augment,
            max_pictures=max_pictures,
            color=not plain and (augment.color > 0 or augment.gray > 0),
            blur=not plain and augment.blur > 0,
            threads=data.decode_threads,
            device_id=device_id,
            half=half,
            decoded=not self._reader.codec.pictures,
        )
        self._conveyor: Conveyor[tuple[Views, int]] | None = None
        self._batches = self._clips = self._frames = self._bytes_read = 0
        self._began: float | None = None

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and close all files. Safe to call twice; the loader cannot be used afterwards."""
        if self._conveyor is not None:
            self._conveyor.close()
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    @property
    def stats(self) -> LoaderStats:
        """A snapshot of the counters."""
        conveyor = self._conveyor
        return LoaderStats(
            batches=self._batches,
            clips=self._clips,
            frames=self._frames,
            bytes_read=self._bytes_read,
            bad=self._quarantine.count,
            seconds=0.0 if self._began is None else time.perf_counter() - self._began,
            wait_s=conveyor.wait_s if conveyor else 0.0,
            stages={name: StageClock(**asdict(clock)) for name, clock in conveyor.clocks.items()} if conveyor else {},
        )

    def _start(self, source: Iterator[Any], read: Any) -> None:
        if self._conveyor is None:
            self._began = time.perf_counter()
            self._conveyor = Conveyor(source, {"read": read, "decode": self._decode}, depth=self._depth)

    def _next(self) -> Views:
        assert self._conveyor is not None
        views, bytes_read = self._conveyor.get()
        b, p, _, t = views.pixels.shape[:4]
        self._batches += 1
        self._clips += b * p
        self._frames += b * p * t
        self._bytes_read += bytes_read
        return views

    def _read_all(self, samples: npt.NDArray[np.int64], epoch: int) -> tuple[_Ready | None, dict[int, SampleError]]:
        """Plan the samples together and read them in the pool: those that could be read, in their order (None where
        there are none), and by place among the given ones why the others could not."""
        rows: dict[int, IndexRow] = {}
        failed: dict[int, SampleError] = {}
        for place, sample in enumerate(samples.tolist()):
            try:
                rows[place] = self._reader.locate(sample)
            except SampleError as error:
                failed[place] = error
        if not rows:
            return None, failed
        planned = samples[list(rows)]
        plan = self._plan(list(rows.values()), planned, epoch)
        results = list(self._pool.map(self._try_read, planned.tolist(), plan[0].frames, rows.values()))
        read = [result for result in results if isinstance(result, Sample)]
        if len(read) < len(results):
            plan = take(plan, np.flatnonzero([isinstance(result, Sample) for result in results]))
            failed |= {
                place: result for place, result in zip(rows, results, strict=True) if isinstance(result, SampleError)
            }
        ready = _Ready(samples=read, clips=plan[0], augment=plan[1]) if read else None
        return ready, dict(sorted(failed.items()))

    def _try_read(self, sample: int, frames: npt.NDArray[np.int32], row: IndexRow) -> Sample | SampleError:
        try:
            return self._reader.read(sample, frames, row)
        except SampleError as error:
            return error

    def _plan(self, rows: list[IndexRow], samples: npt.NDArray[np.int64], epoch: int) -> tuple[ClipPlan, AugmentPlan]:
        raise NotImplementedError

    def _decode(self, batch: _Ready) -> tuple[Views, int]:
        try:
            pixels = self._pipeline.run(batch.samples, batch.clips, batch.augment)
        except RuntimeError as error:
            raise self._name_culprit(batch, error) from error
        labels = [_NO_LABEL if sample.label is None else sample.label for sample in batch.samples]
        views = Views(
            pixels=pixels,
            sample=torch.tensor([sample.sample for sample in batch.samples], device=self._device),
            label=torch.tensor(labels, device=self._device),
        )
        return views, sum(sample.bytes_read for sample in batch.samples)

    def _name_culprit(self, batch: _Ready, error: RuntimeError) -> DecodeError:
        """The first sample that the decoder refuses on its own; slow, and only on this path."""
        for number, sample in enumerate(batch.samples):
            try:
                self._pipeline.run([sample], *take((batch.clips, batch.augment), np.array([number])))
            except RuntimeError as alone:
                error = alone
                break
        else:
            sample = batch.samples[0]
        shard, row = self.shards.locate(sample.sample)
        name, offset = self.shards.info.shards[shard].tar, int(self.shards.index(shard).offset[row])
        return DecodeError(f"the decoder refused it: {_first_line(error)}", shard=name, key=sample.key, offset=offset)


class Loader(_Base):
    """Endless training batches of one rank, in the order of (seed, epoch, position).

    batch_size is the global one, in videos. `next(loader)` gives Views with B = batch_size / world_size. A bad sample
    is replaced by another one, the same on every rank and in every repetition, and named in `bad_log` (JSON lines).
    Raises ConfigError if the batch does not fit the data or the ranks.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        clips: ClipSection,
        augment: AugmentSection,
        data: DataSection,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        half: bool = False,
        bad_log: Path | None = None,
    ) -> None:
        try:
            self.steps_per_epoch = steps_per_epoch(len(shards), batch_size)
            self._slice = rank_slice(batch_size, rank, world_size)
        except ValueError as error:
            raise ConfigError(f"train.batch_size: {error}", hint="choose another --set train.batch_size=...") from None
        share = batch_size // world_size
        views = max(2, clips.num_clips)
        super().__init__(
            shards,
            augment,
            data,
            max_pictures=share * views * clips.num_frames,
            plain=False,
            device=device,
            half=half,
            quarantine=Quarantine(bad_log, data.max_bad),
        )
        self._clip_section, self._augment_section = clips, augment
        self._batch_size, self._seed, self._rank = batch_size, seed, rank
        self._next_position = Position(epoch=0, position=0)
        self._planned_samples = 0

    def __next__(self) -> Views:
        """The next batch. Raises what reading or decoding raised: SampleError and its kinds, ShardError."""
        self._start(self._positions(self._next_position), self._read)
        views = self._next()
        self._next_position = self._after(self._next_position)
        return views

    @property
    def position(self) -> Position:
        """Of the batch that `next` will give."""
        return self._next_position

    def state_dict(self) -> dict[str, Any]:
        """What continues after the last batch that the consumer got, on any number of ranks."""
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "digest": self.shards.info.digest,
            **asdict(self._next_position),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Call it before the first `next`. Raises ResumeError with a sentence a mismatch."""
        if self._conveyor is not None:
            raise ResumeError("a loader that has begun cannot take another position")
        expected = {"version": STATE_VERSION, "seed": self._seed, "digest": self.shards.info.digest}
        wrong = [
            f"{key} was {state.get(key)!r}, is {value!r}" for key, value in expected.items() if state.get(key) != value
        ]
        if wrong:
            raise ResumeError("the data does not fit the checkpoint: " + "; ".join(wrong))
        self._next_position = Position(epoch=int(state["epoch"]), position=int(state["position"]))

    def samples(self, at: Position) -> npt.NDArray[np.int64]:
        """The samples of the whole global batch at a position, before any is replaced: i64[batch_size]."""
        positions = np.arange(at.position, at.position + self._batch_size)
        return sample_at(positions, len(self.shards), seed=self._seed, epoch=at.epoch)

    def _positions(self, at: Position) -> Iterator[Position]:
        while True:
            at = self._normalized(at)
            yield at
            at = self._after(at)

    def _normalized(self, at: Position) -> Position:
        """The same place, or the next epoch's first where the rest of this one is too short for a batch."""
        if at.position + self._batch_size > len(self.shards):
            return Position(epoch=at.epoch + 1, position=0)
        return at

    def _after(self, at: Position) -> Position:
        at = self._normalized(at)
        return self._normalized(Position(epoch=at.epoch, position=at.position + self._batch_size))

    def _read(self, at: Position) -> _Ready:
        batch = self.samples(at)
        originals = batch[self._slice]
        self._planned_samples += len(originals)
        wanted, attempts = originals.copy(), [0] * len(originals)
        slots, parts = np.arange(len(originals)), list[tuple[npt.NDArray[np.int64], _Ready]]()
        while len(slots):
            ready, failed = self._read_all(wanted[slots], at.epoch)
            bad = slots[list(failed)]
            for slot, error in zip(bad.tolist(), failed.values(), strict=True):
                where = {"rank": self._rank, "epoch": at.epoch, "position": at.position}
                self._quarantine.add(error, int(wanted[slot]), where, self._planned_samples)
                wanted[slot], attempts[slot] = self._replacement(int(originals[slot]), at.epoch, attempts[slot], batch)
            if ready is not None:
                parts.append((np.delete(slots, list(failed)), ready))
            slots = bad
        return _assemble(parts)

    def _plan(self, rows: list[IndexRow], samples: npt.NDArray[np.int64], epoch: int) -> tuple[ClipPlan, AugmentPlan]:
        return training_plan(rows, samples, self._clip_section, self._augment_section, seed=self._seed, epoch=epoch)

    def _replacement(self, sample: int, epoch: int, attempt: int, batch: npt.NDArray[np.int64]) -> tuple[int, int]:
        """The next candidate that stands in for `sample` in this epoch, and the number of draws it took so far: not
        one of the same batch, unless the data set is nothing but the batch."""
        while True:
            attempt += 1
            draw = uniform(self._seed, epoch, sample, Stream.REPLACEMENT, attempt)[-1]
            candidate = int(draw * len(self.shards))
            if candidate not in batch or len(self.shards) <= len(batch):
                return candidate, attempt


class TestLoader(_Base):
    """`views` uniform center clips of every sample of this rank's part, each sample exactly once over all ranks.

    A bad sample is never replaced: it is left out, counted in `stats.bad` and named in `bad`.
    """

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(
        self,
        shards: ShardSet,
        *,
        clips: ClipSection,
        augment: AugmentSection,
        data: DataSection,
        batch_size: int,
        views: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        half: bool = False,
        bad_log: Path | None = None,
    ) -> None:
        """batch_size: videos a batch on this rank."""
        super().__init__(
            shards,
            augment,
            data,
            max_pictures=batch_size * views * clips.num_frames,
            plain=True,
            device=device,
            half=half,
            quarantine=Quarantine(bad_log, None),
        )
        self.bad: list[SampleError] = []
        self._clip_section, self._views, self._rank = clips, views, rank
        first, last = (len(shards) * part // world_size for part in (rank, rank + 1))
        self._batches_of = [np.arange(at, min(at + batch_size, last)) for at in range(first, last, batch_size)]

    def __len__(self) -> int:
        """Batches on this rank, at most: one whose samples are all bad is left out."""
        return len(self._batches_of)

    def __next__(self) -> Views:
        """The next batch. Raises StopIteration at the end."""
        self._start(self._readable(), lambda ready: ready)
        return self._next()

    def _readable(self) -> Iterator[_Ready]:
        for samples in self._batches_of:
            ready, failed = self._read_all(samples, 0)
            for place, error in failed.items():
                self.bad.append(error)
                self._quarantine.add(error, int(samples[place]), {"rank": self._rank}, 0)
            if ready is not None:
                yield ready

    def _plan(self, rows: list[IndexRow], samples: npt.NDArray[np.int64], epoch: int) -> tuple[ClipPlan, AugmentPlan]:
        return evaluation_plan(rows, self._clip_section, self._views)


def _assemble(parts: list[tuple[npt.NDArray[np.int64], _Ready]]) -> _Ready:
    """One batch of its parts, each with the slots that it fills."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([slots for slots, _ in parts]))
    clips, augment = take(join([(ready.clips, ready.augment) for _, ready in parts]), order)
    samples = [sample for _, ready in parts for sample in ready.samples]
    return _Ready(samples=[samples[number] for number in order], clips=clips, augment=augment)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
