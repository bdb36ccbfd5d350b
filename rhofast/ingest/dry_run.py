"""The dry run: store a few videos of a listing as ingest would, and estimate what the whole set will cost.

    listing --one video per stretch--> records --probe, transcode, index, compare--> results --mean x count--> estimate

Each chosen video, or a random window of it, goes through each codec in a temporary folder, by the functions that make
the shards. What is stored is compared with the encoder's input (same frames, rate and size) by ffmpeg's filters `psnr`
and `ssim`. Nothing is written to the output folder.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec, codec_settings
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.clip_cost import clip_cost, frame_sizes
from rhofast.data.types import VideoRecord
from rhofast.data.units import frames_in
from rhofast.errors import IngestError
from rhofast.ingest.cost_estimate import (
    CodecEstimate,
    CodecMetrics,
    DryRunEstimate,
    interval_95,
    samples_per_shard,
)
from rhofast.ingest.cut import UncertainError
from rhofast.ingest.executors import LocalProcesses, tick
from rhofast.ingest.listing import Listing
from rhofast.ingest.opened import LastSource, OpenedSource
from rhofast.ingest.probe import RefusedError
from rhofast.ingest.quality import measure_quality
from rhofast.ingest.sample import make_sample, probed
from rhofast.ingest.segments import span_of, windows_of
from rhofast.ingest.source import Deadline, isolated, read_source, retried, source_state
from rhofast.ingest.store import all_of, piece_of
from rhofast.ingest.stored_names import shown_source
from rhofast.ingest.transcode import TranscodeSettings, encoder_version
from rhofast.ingest.writer import index_row
from rhofast.storage.address import redacted

_ANSWER_S = 60.0
_NO_LIMITS = {"min_duration": None, "max_duration": None, "max_seconds": None}


def estimate_build(
    listing: Listing,
    codecs: Sequence[Codec],
    settings: TranscodeSettings,
    clips: ClipConfig,
    *,
    samples: int,
    workers: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> DryRunEstimate:
    """Try a few videos of a listing with each codec, and estimate the cost of the whole set.

    All numbers except the times depend only on the listing, the settings and the seed.

    Args:
        listing: The videos.
        codecs: The codecs to compare.
        settings: How videos are transcoded.
        clips: Clip geometry for the amplifications.
        samples: Number of videos to try; all, if the listing has fewer.
        workers: Number of processes.
        seed: Seed of the choice of videos.
        on_progress: Called with (videos tried, videos to try).

    Returns:
        The estimate.

    Raises:
        IngestError: Every codec refused every video, or ffmpeg was stopped from outside.
        OSError: The temporary folder cannot be written.
    """
    count = min(samples, len(listing))

    def report(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done, count)

    with tempfile.TemporaryDirectory(prefix="rhofast-", ignore_cleanup_errors=True) as folder:
        written = tuple(codec_settings(codec) for codec in codecs)
        chosen = enumerate(_choose(listing, count, seed))
        jobs = [_TrialJob(number, record, written, settings, Path(folder)) for number, record in chosen]
        runs = LocalProcesses(min(workers, count)).run(_try_video, jobs, on_ticks=report)
        videos = sorted(runs, key=lambda video: video.number)
    report(count, 0)
    _check_any_accepted(videos)
    source_bytes = fmean(video.source_bytes for video in videos)
    return DryRunEstimate(
        videos=len(listing),
        tried=count,
        workers=workers,
        seed=seed,
        source_bytes=source_bytes,
        total_source_bytes=source_bytes * len(listing),
        clips=clips,
        settings=settings,
        encoder=encoder_version(),
        codecs=tuple(
            _estimate_codec(codec, [video.results[which] for video in videos], videos, clips, len(listing), workers)
            for which, codec in enumerate(codecs)
        ),
    )


def _choose(listing: Listing, count: int, seed: int) -> Iterator[VideoRecord]:
    """Yield one random record from each of `count` stretches of equal length, in one pass."""
    draw, edges = random.Random(seed), [stretch * len(listing) // count for stretch in range(count + 1)]
    wanted = iter([draw.randrange(begin, end) for begin, end in pairwise(edges)])
    following = next(wanted)
    for number, record in enumerate(listing):
        if number == following:
            yield record
            if (following := next(wanted, -1)) < 0:
                return


# ---- in the workers ----


@dataclass(frozen=True, slots=True)
class _TrialJob:
    number: int
    record: VideoRecord
    codecs: tuple[dict[str, Any], ...]
    settings: TranscodeSettings
    folder: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class _CodecResult:
    """The result of one video with one codec.

    Attributes:
        cpu_seconds: CPU seconds that the video takes, without the comparison.
        parts: Number of samples that it becomes, of which one is tried.
        row: What the index would say of that one; None if it is refused.
        quality: (PSNR in dB, SSIM); None if they cannot be measured.
        refusal: Reason of the refusal.
        detail: One line on the refusal.
    """

    cpu_seconds: float
    parts: int = 1
    row: IndexRow | None = None
    quality: tuple[float, float] | None = None
    refusal: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _TriedVideo:
    number: int
    path: str
    source_bytes: int
    results: list[_CodecResult]


def _try_video(job: _TrialJob) -> _TriedVideo:
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        record, scratch = job.record, Path(folder)
        try:
            deadline = Deadline(job.settings.timeout)
            source = retried(lambda: read_source(job.record.path, scratch, deadline, job.record.inside), deadline)
        except RefusedError as error:
            refused = _CodecResult(cpu_seconds=0.0, refusal=str(error.reason), detail=redacted(error.detail))
            results, num_bytes = [refused] * len(job.codecs), 0
        else:
            record, num_bytes = replace(record, path=source.path, inside=None), source.path.stat().st_size
            results, share = _try_codecs(record, job, scratch)
            num_bytes = round(share * num_bytes)
    tick(num_bytes)
    return _TriedVideo(number=job.number, path=shown_source(job.record), source_bytes=num_bytes, results=results)


def _try_codecs(record: VideoRecord, job: _TrialJob, scratch: Path) -> tuple[list[_CodecResult], float]:
    """Return the results of a video, or of a window of it, and which share of the file it is."""
    begun, sources, state = cpu_seconds(), LastSource(), source_state(record.path)
    settings, deadline = job.settings, Deadline(job.settings.timeout)
    try:
        info = probed(record, settings, scratch, sources=sources, state=state)
        share = span_of(record, info.seconds, settings.model_copy(update=_NO_LIMITS)).seconds / info.seconds
        parts = sum(1 for _ in windows_of(record, info, settings))
        chosen = random.Random(job.number).randrange(parts)
        part = next(islice(windows_of(record, info, settings), chosen, None))
        if part.start is not None or part.end is not None:
            opened = sources.open(record, state, scratch, deadline)
            if opened.packets(deadline) is not None:
                opened.look(deadline)
    except RefusedError as error:
        refused = _CodecResult(
            cpu_seconds=cpu_seconds() - begun, refusal=str(error.reason), detail=redacted(error.detail)
        )
        return [refused] * len(job.codecs), 1.0
    reading = share * (cpu_seconds() - begun)  # by all records of the file together
    results = []
    for codec in map(build_codec, job.codecs):
        tried = _try_codec(part, codec, settings, scratch, sources, state)
        spent = reading + parts * tried.cpu_seconds
        results.append(replace(tried, cpu_seconds=spent, parts=parts))
    return results, share


def _try_codec(
    record: VideoRecord, codec: Codec, settings: TranscodeSettings, folder: Path, sources: LastSource, state: Any
) -> _CodecResult:
    begun = cpu_seconds()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            sample = make_sample(record, [codec], settings, Path(scratch), sources=sources, state=state)
        except RefusedError as error:
            spent = cpu_seconds() - begun
            return _CodecResult(cpu_seconds=spent, refusal=str(error.reason), detail=error.detail)
        spent = cpu_seconds() - begun
        row = index_row(sample, 0, sample.file.stat().st_size)
        quality = None
        if not codec.untouched:
            opened = sources.open(record, state, folder, Deadline(settings.timeout))
            quality = _quality(record, opened, settings, sample.file, row.num_frames, Path(scratch))
    return _CodecResult(cpu_seconds=spent, row=row, quality=quality)


def _quality(
    record: VideoRecord,
    opened: OpenedSource,
    settings: TranscodeSettings,
    member: Path,
    num_frames: int,
    scratch: Path,
) -> tuple[float, float] | None:
    """Return (PSNR in dB, SSIM) of a sample; None if its frames cannot be compared with those of its source."""
    deadline = Deadline(settings.timeout)
    path, info, window = opened.path, opened.info(deadline), None
    if record.start is not None or record.end is not None:
        span = span_of(record, info.seconds, settings)
        try:
            path, info, window = piece_of(opened, span, settings, scratch / "given", deadline)
        except UncertainError:
            path, info, window = all_of(opened, span, settings, deadline)
    return measure_quality(path, settings, member, num_frames, scratch, info=info, window=window)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, of the one that opens sources, and of all that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return isolated.call(time.process_time, seconds=_ANSWER_S) + sum(one.ru_utime + one.ru_stime for one in spent)


# ---- from results to estimates ----


def _check_any_accepted(videos: list[_TriedVideo]) -> None:
    refused = [(video, result) for video in videos for result in video.results if result.row is None]
    if len(refused) < sum(len(video.results) for video in videos):
        return
    counts = Counter(video.results[0].refusal for video in videos)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    video, result = refused[0]
    example = f"{video.path}: {result.refusal} {result.detail}".rstrip()
    raise IngestError(f"every video tried was refused ({reasons}); for example {example}")


def _estimate_codec(
    codec: Codec, results: list[_CodecResult], videos: list[_TriedVideo], clips: ClipConfig, count: int, workers: int
) -> CodecEstimate:
    spent = [result.cpu_seconds for result in results]
    seconds = count / workers
    cpu_95 = interval_95(spent, count)
    taken = [
        (result, result.row, video) for result, video in zip(results, videos, strict=True) if result.row is not None
    ]
    metrics = None
    if taken:
        rows = [row for _, row, _ in taken]
        qualities = [result.quality for result, _, _ in taken if result.quality is not None]
        sizes = [0 if result.row is None else result.parts * result.row.size for result in results]
        frames = [result.parts * row.num_frames for result, row, _ in taken]
        num_bytes, duration = sum(sizes), sum(each / row.fps for each, row in zip(frames, rows, strict=True))
        size_95 = interval_95(sizes, count)
        read_bytes, read_amplification, decode_amplification = clip_cost([codec], rows, clips)
        metrics = CodecMetrics(
            bytes_per_video=num_bytes / len(rows),
            bytes_per_frame=num_bytes / sum(frames),
            bits_per_second=8 * num_bytes / duration,
            source_ratio=num_bytes / sum(video.source_bytes for _, _, video in taken),
            psnr=fmean(psnr for psnr, _ in qualities) if qualities else None,
            ssim=fmean(ssim for _, ssim in qualities) if qualities else None,
            compared=len(qualities),
            total_bytes=num_bytes / len(results) * count,
            total_bytes_95=None if size_95 is None else (size_95[0] * count, size_95[1] * count),
            total_hours=duration / len(results) * count / 3600,
            read_bytes=read_bytes,
            read_amplification=read_amplification,
            decode_amplification=decode_amplification,
            samples_per_shard=samples_per_shard(num_bytes / len(results)),
            group_frames=_group_frames(rows),
            frame_sizes=tuple(frame_sizes(rows)),
        )
    return CodecEstimate(
        codec=codec_settings(codec),
        untouched=codec.untouched,
        refused=dict(sorted(Counter(result.refusal for result in results if result.row is None).items())),
        cpu_seconds=fmean(spent),
        total_seconds=fmean(spent) * seconds,
        total_seconds_95=None if cpu_95 is None else (cpu_95[0] * seconds, cpu_95[1] * seconds),
        metrics=metrics,
    )


def _group_frames(rows: Sequence[IndexRow]) -> float:
    """Return the mean number of frames in the unit in which a random frame lies."""
    counts = np.concatenate([frames_in(row.units, row.num_frames) for row in rows]).astype(np.float64)
    return float((counts**2).sum() / counts.sum())
