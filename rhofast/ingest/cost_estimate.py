"""What a dry run estimates: the numbers per codec, and the statistics behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from rhofast.config.schema import ClipConfig
from rhofast.ingest.transcode import TranscodeSettings

_SHARD_BYTES = 1e9
_MAX_SAMPLES_PER_SHARD = 4096
# Student's t, two-sided 95 %, for 1 to 10 degrees of freedom; above 10, an expansion is exact to 0.1 %.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z95 = 1.95996

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecMetrics:
    """Measurements of one codec on the videos that it accepted.

    Attributes:
        bytes_per_video: Mean bytes of a stored member.
        bytes_per_frame: All bytes divided by all frames.
        bits_per_second: Bits per second of video.
        source_ratio: Bytes stored divided by the bytes of the same sources.
        psnr: PSNR of the luma in full range in dB, mean over frames (at most 60 dB each) and then over videos; None if
            no video was compared.
        ssim: SSIM, likewise.
        compared: Number of videos whose quality was measured: all accepted ones except those that ffmpeg cannot
            compare.
        total_bytes: Bytes of the members of the whole listing: the mean over all tried videos, refused ones as 0,
            times the number of videos.
        total_bytes_95: 95 % interval of `total_bytes`; None if one video was tried.
        total_hours: Hours of video in the whole set.
        read_bytes: Mean bytes read for the clips of one sample.
        read_amplification: Bytes read divided by the bytes of the frames used.
        decode_amplification: Frames decoded divided by the distinct frames used.
        group_frames: Mean number of frames in the unit in which a random frame lies.
        frame_sizes: Quantiles of the bytes per frame, second by second; see `clip_cost.frame_sizes`.
        samples_per_shard: Samples for shards of about 1 GB: a power of two from 1 to 4096.
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
    group_frames: float
    frame_sizes: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecEstimate:
    """Estimate for one codec.

    Attributes:
        codec: Settings of the codec, as `codec_settings` returns them.
        untouched: Whether the codec keeps the sources as they are, so that there is no quality to measure.
        refused: Number of tried videos by the reason of their refusal.
        cpu_seconds: Mean CPU seconds per video, refused ones included, without the comparison.
        total_seconds: Wall-clock seconds for all videos with the given number of workers.
        total_seconds_95: 95 % interval of `total_seconds`; None if one video was tried.
        metrics: Measurements of the accepted videos; None if all were refused.
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
    """Estimate for a whole listing.

    Attributes:
        videos: Number of videos in the listing.
        tried: Number of videos tried.
        workers: Number of worker processes that the times assume.
        seed: Seed of the choice of videos.
        source_bytes: Mean bytes of a source.
        total_source_bytes: Bytes of all sources.
        clips: Clip geometry of the amplifications.
        settings: How videos are transcoded.
        encoder: Version line of the ffmpeg program.
        codecs: One estimate per codec.
    """

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
        """Return all fields as JSON types."""
        plain = {**asdict(self), "clips": self.clips.model_dump(), "settings": self.settings.model_dump()}
        return {**plain, "codecs": [asdict(codec) for codec in self.codecs]}


def interval_95(values: Sequence[float], population: int) -> Interval | None:
    """Return the 95 % interval of a population's mean, from a random sample of it without replacement.

    Args:
        values: The sample; values are >= 0.
        population: Size of the population.

    Returns:
        The interval; None for a sample of one from a larger population.
    """
    if len(values) == population:
        return fmean(values), fmean(values)
    if len(values) < 2:
        return None
    half = student_t_95(len(values) - 1) * stdev(values) * math.sqrt((1 - len(values) / population) / len(values))
    return max(0.0, fmean(values) - half), fmean(values) + half


def student_t_95(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t for `freedom` >= 1 degrees of freedom."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def samples_per_shard(mean_bytes: float) -> int:
    """Return how many samples make a shard of about 1 GB: a power of two from 1 to 4096."""
    power = round(math.log2(_SHARD_BYTES / mean_bytes))
    return int(2 ** min(max(power, 0), int(math.log2(_MAX_SAMPLES_PER_SHARD))))
