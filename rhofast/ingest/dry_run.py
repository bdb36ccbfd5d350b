"""The dry run: a few videos of a listing, stored as ingest would store them, tell what the whole will cost.

    listing --one of each stretch--> records --probe, transcode, index, compare--> results --mean x count--> Estimate

Each video that is tried goes through each codec in a temporary folder, by the functions that make the shards. What
comes out is compared with what went into the encoder (the same frames at the same rate and size), by ffmpeg's filters
`psnr` and `ssim`. What it is not: it writes nothing to the output folder, and prints nothing.
"""

from __future__ import annotations

import math
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec, codec_settings
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.clip_cost import clip_cost
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.executors import LocalProcesses, tick
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.ingest.quality import measure_quality
from rhofast.ingest.shard_job import make_sample
from rhofast.ingest.transcode import TranscodeSettings, encoder_version
from rhofast.ingest.writer import index_row
from rhofast.storage.files import fetch

_SHARD_BYTES = 1e9
_MOST_PER_SHARD = 4096
# Student's t: two-sided 95 % for 1 to 10 degrees of freedom; beyond, an expansion is right to 0.1 %.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z95 = 1.95996

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecMetrics:
    """What a codec makes of the videos that it took.

    bytes_per_video   mean bytes of a stored member
    bytes_per_frame   all bytes / all frames
    bits_per_second   of video
    source_ratio      bytes stored / bytes of the same sources
    psnr, ssim        luma in full range, mean over frames (at most 60 dB each), then over videos; None without any
    compared          videos whose quality was measured: all that were taken, but for those that ffmpeg cannot compare
    total_bytes       of the members of the whole listing: mean of all videos tried, refused ones as 0, x their number
    total_bytes_95    its 95 % interval; None where one video was tried
    total_hours       of video in the whole set
    read_bytes        mean bytes read for one sample's clips
    read_amplification    bytes read / bytes of the frames used
    decode_amplification  frames decoded / distinct frames used
    samples_per_shard     for shards of about 1 GB: a power of two from 1 to 4096
    """

    bytes_per_video: float
    bytes_per_frame: float
    bits_per_second: float
    source_ratio: float
    psnr: float | None
    ssim: float | None
    compared: int
    total_bytes: float
    total_bytes_95: Interval | None
    total_hours: float
    read_bytes: float
    read_amplification: float
    decode_amplification: float
    samples_per_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecEstimate:
    """One codec. codec: as `codec_settings` gives it; untouched: it keeps the sources as they are, so there is no
    quality to measure; refused: reason -> videos of those tried; cpu_seconds: of a CPU,
    a video (a refused one, too), without the comparison; total_seconds: by the clock for all, with the given number of
    workers; total_seconds_95: its 95 % interval, None where one video was tried; metrics: None where all were refused.
    """

    codec: dict[str, Any]
    untouched: bool
    refused: dict[str, int]
    cpu_seconds: float
    total_seconds: float
    total_seconds_95: Interval | None
    metrics: CodecMetrics | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunEstimate:
    """What to expect of a listing of `videos`, from `tried` of them. source_bytes: mean bytes of a source; encoder: the
    ffmpeg program, as it names itself."""

    videos: int
    tried: int
    workers: int
    seed: int
    source_bytes: float
    total_source_bytes: float
    clips: ClipConfig
    settings: TranscodeSettings
    encoder: str
    codecs: tuple[CodecEstimate, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON knows it."""
        plain = {**asdict(self), "clips": self.clips.model_dump(), "settings": self.settings.model_dump()}
        return {**plain, "codecs": [asdict(one) for one in self.codecs]}


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
    """Try `samples` videos (or all, where there are fewer) with each codec, in `workers` processes. All but the times
    depends on the listing, the settings and the seed alone. on_progress: called with (videos tried, videos to try).

    Raises IngestError where every video is refused by every codec, and where ffmpeg is stopped from outside; OSError
    where the temporary folder cannot be written.
    """
    count = min(samples, len(listing))

    def report(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done, count)

    with tempfile.TemporaryDirectory(prefix="rhofast-", ignore_cleanup_errors=True) as folder:
        written = tuple(codec_settings(codec) for codec in codecs)
        chosen = enumerate(_choose(listing, count, seed))
        tasks = [_TrialJob(number, record, written, settings, Path(folder)) for number, record in chosen]
        runs = LocalProcesses(min(workers, count)).run(_try_video, tasks, on_ticks=report)
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
    """One record at random from each of `count` stretches of equal length, in one pass."""
    draw, edges = random.Random(seed), [part * len(listing) // count for part in range(count + 1)]
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
    """One video with one codec. row: None where it is refused, for `refusal`; quality: (PSNR, SSIM)."""

    cpu_seconds: float
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


def _try_video(task: _TrialJob) -> _TriedVideo:
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        record, scratch = task.record, Path(folder)
        try:
            record = replace(record, path=fetch(record.path, scratch / "original"))
            num_bytes = record.path.stat().st_size
        except FileNotFoundError as error:
            missing = _CodecResult(cpu_seconds=0.0, refusal=Refusal.MISSING, detail=error.strerror or str(error))
            results, num_bytes = [missing] * len(task.codecs), 0
        else:
            results = [_try_codec(record, build_codec(codec), task.settings, scratch) for codec in task.codecs]
    tick(num_bytes)
    return _TriedVideo(number=task.number, path=str(task.record.path), source_bytes=num_bytes, results=results)


def _try_codec(record: VideoRecord, codec: Codec, settings: TranscodeSettings, folder: Path) -> _CodecResult:
    begun = _cpu_seconds()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        try:
            sample = make_sample(record, codec, settings, Path(own))
        except RefusedError as error:
            spent = _cpu_seconds() - begun
            return _CodecResult(cpu_seconds=spent, refusal=str(error.reason), detail=error.detail)
        spent = _cpu_seconds() - begun
        row = index_row(sample, 0, sample.file.stat().st_size)
        quality = None
        if not codec.untouched:
            quality = measure_quality(record.path, settings, sample.file, row.num_frames, Path(own))
    return _CodecResult(cpu_seconds=spent, row=row, quality=quality)


def _cpu_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


# ---- from results to metrics ----


def _check_any_accepted(videos: list[_TriedVideo]) -> None:
    refused = [(video, result) for video in videos for result in video.results if result.row is None]
    if len(refused) < sum(len(video.results) for video in videos):
        return
    counts = Counter(video.results[0].refusal for video in videos)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    video, result = refused[0]
    example = f"{video.path}: {result.refusal} {result.detail}".rstrip()
    raise IngestError(f"every video that was tried was refused ({reasons}); the first: {example}")


def _estimate_codec(
    codec: Codec, results: list[_CodecResult], videos: list[_TriedVideo], clips: ClipConfig, count: int, workers: int
) -> CodecEstimate:
    spent = [result.cpu_seconds for result in results]
    seconds = count / workers
    cpu_95 = _interval_95(spent, count)
    taken = [
        (result, result.row, video) for result, video in zip(results, videos, strict=True) if result.row is not None
    ]
    metrics = None
    if taken:
        rows = [row for _, row, _ in taken]
        qualities = [result.quality for result, _, _ in taken if result.quality is not None]
        sizes = [0 if result.row is None else result.row.size for result in results]
        num_bytes, duration = sum(sizes), sum(row.num_frames / row.fps for row in rows)
        size_95 = _interval_95(sizes, count)
        read_bytes, read_amplification, decode_amplification = clip_cost(codec, rows, clips)
        metrics = CodecMetrics(
            bytes_per_video=num_bytes / len(rows),
            bytes_per_frame=num_bytes / sum(row.num_frames for row in rows),
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


def _interval_95(values: Sequence[float], population: int) -> Interval | None:
    """Where the mean of a population lies, of which `values` >= 0 are a random part; None for a single value of more.
    The part that was seen is no longer uncertain."""
    if len(values) == population:
        return fmean(values), fmean(values)
    if len(values) < 2:
        return None
    half = _t_95(len(values) - 1) * stdev(values) * math.sqrt((1 - len(values) / population) / len(values))
    return max(0.0, fmean(values) - half), fmean(values) + half


def _t_95(freedom: int) -> float:
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def samples_per_shard(mean_bytes: float) -> int:
    """For shards of about 1 GB: a power of two from 1 to 4096."""
    power = round(math.log2(_SHARD_BYTES / mean_bytes))
    return int(2 ** min(max(power, 0), int(math.log2(_MOST_PER_SHARD))))
