"""Estimate what a codec makes of video: bytes per frame, and how many frames are read and decoded per clip.

The bytes are fitted to dry runs over two clips of the size of Kinetics (benchmarks/results/capacity_*.md). Other video
needs a dry run of its own. The frames are exact: the clips of the configuration are planned, and counted as training
would read them. Nothing is opened or encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.index import IndexRow
from rhofast.data.format.ranges import join_spans
from rhofast.data.sampling.batch_plan import training_clips
from rhofast.data.sampling.clip_cost import clip_cost
from rhofast.data.types import Units
from rhofast.errors import ConfigError

_PLANNED_VIDEOS = 256  # videos of mean duration whose clips are planned
_FRAME_BYTES = 1000  # bytes per frame of these videos


@dataclass(frozen=True, slots=True)
class _Stored:
    """Measurements of a codec at 352x256 and 30 frames/s.

    Attributes:
        alone: Bytes per frame in groups of one frame.
        frame: In longer groups a frame has `frame + extra / gop` bytes, where `frame` grows as (30 / fps)^0.6.
        extra: See `frame`.
        encode: CPU seconds to encode one second of video.
    """

    alone: float
    frame: float
    extra: float
    encode: float


_STORED = {
    "jpeg": _Stored(14600.0, 14600.0, 0.0, 0.015),
    "h264": _Stored(5100.0, 2530.0, 5600.0, 0.17),
    "hevc": _Stored(3690.0, 1870.0, 3300.0, 0.36),
}
# CPU seconds to store one second of video without encoding it, by what is decoded of it to find damage.
_KEPT = {"full": 0.015, "keys": 0.004, "copy": 0.038}
PIXELS = 352 * 256  # per frame, in these measurements
_BYTES_BY_PIXELS, _BYTES_BY_RATE = 0.7, 0.6  # exponents, fitted to short sides of 128 to 256 and to 10 and 30 frames/s
# Standard deviation of the logarithm of bytes per frame, from video to video and second to second
# (benchmarks/results/remote_*.md: 0.38 to 0.55), and into how many sizes it is divided.
_SPREAD, _SIZES = 0.4, 32
_SOURCE_S = 0.025  # CPU seconds to probe, decode and index a second of a 340x256 source


def stored_frame(codec: Codec, *, pixels: float, fps: float, bit_rate: float | None = None) -> tuple[float, float]:
    """Estimate the cost of stored video.

    Args:
        codec: The codec.
        pixels: Pixels per stored frame.
        fps: Frames per second of stored video.
        bit_rate: Bits per second of the sources' video, which a codec that encodes nothing keeps; None if it is not
            known.

    Returns:
        (bytes per frame, CPU seconds to make one second of video).

    Raises:
        ConfigError: If the cost depends on the sources alone.
    """
    if codec.untouched:
        if bit_rate is None:
            raise ConfigError(
                f"codec {codec.name} keeps the sources unchanged, so their size is not known",
                hint="measure it with `rhofast shard --dry-run --report` and pass the report with --dry-run, or give "
                "--source-bit-rate and --source-group",
            )
        return bit_rate / 8 / fps, _KEPT[getattr(codec, "check", codec.name)] * (fps / 30) * (pixels / PIXELS)
    known, gop = _STORED[codec.name], getattr(codec, "gop", 1)
    grouped = known.frame * (30 / fps) ** _BYTES_BY_RATE + known.extra / gop
    size = (known.alone if gop == 1 else min(known.alone, grouped)) * (pixels / PIXELS) ** _BYTES_BY_PIXELS
    return size, _SOURCE_S + known.encode * (fps / 30) * (pixels / PIXELS)


def units_of(codec: Codec, frames: int, group: float | None = None) -> Units:
    """Return the units of a member with `frames` frames of `_FRAME_BYTES` bytes each, as the codec would cut it.

    Args:
        codec: The codec.
        frames: Number of frames of the member.
        group: Frames per group of the sources, which a codec that encodes nothing keeps; None for one group.
    """
    if codec.pictures:
        first = np.arange(frames)
    else:
        length = (group or frames) if codec.untouched else getattr(codec, "gop", 1)
        first = np.concatenate([[0], np.arange(0, frames, max(1, round(length)))])  # A header precedes the groups.
    size = np.diff(first, append=frames) * _FRAME_BYTES
    count = len(first)
    return Units(
        frame=first.astype(np.int32),
        offset=np.cumsum(size) - size,
        size=size.astype(np.int32),
        crc=np.zeros(count, dtype=np.uint32),
        rgb=np.zeros((count, 3), dtype=np.float32),
    )


def clip_frames(clips: ClipConfig, codec: Codec, units: Units, fps: float) -> tuple[int, float, float]:
    """Count the frames that training reads and decodes per video.

    Args:
        clips: Section `clips` of the configuration.
        codec: The codec.
        units: Units of a member.
        fps: Frames per second of stored video.

    Returns:
        (clips per video, mean number of frames whose bytes are read, mean number of frames decoded).
    """
    rows, plan = _planned_clips(clips, units, fps)
    distinct = np.mean([len(np.unique(frames_of_video)) for frames_of_video in plan])
    read, _, amplification = clip_cost([codec], rows, clips)
    return plan.shape[1], read / _FRAME_BYTES, float(amplification * distinct)


def spread_sizes(frame_bytes: float) -> list[float]:
    """Return quantiles of the bytes per frame, second by second, of videos of which only the mean is known."""
    parts = (np.arange(_SIZES) + 0.5) / _SIZES
    return [frame_bytes * exp(_SPREAD * NormalDist().inv_cdf(part) - _SPREAD**2 / 2) for part in parts.tolist()]


def range_cost(
    clips: ClipConfig, codec: Codec, units: Units, fps: float, *, gap: float, sizes: Sequence[float]
) -> tuple[float, float]:
    """Count what training fetches per video by range requests.

    Whether a gap is fetched depends on the sizes of the frames in it, so that the mean size does not do.

    Args:
        clips: Section `clips` of the configuration.
        codec: The codec.
        units: Units of a member.
        fps: Frames per second of stored video.
        gap: Gap up to which one request fetches two pieces, in bytes.
        sizes: Bytes per frame of equally many videos each.

    Returns:
        (mean number of requests, mean number of bytes fetched).
    """
    rows, plan = _planned_clips(clips, units, fps)
    lengths = [np.maximum(1, np.rint(units.size * (size / _FRAME_BYTES))).astype(np.int64) for size in sizes]
    offsets = [np.cumsum(length) - length for length in lengths]
    requests = fetched = 0
    for number, frames in enumerate(plan):
        row, which = rows[number], number * len(sizes) // len(rows)
        pieces = codec.units_for(units, row.num_frames, np.unique(frames))
        spans = list(zip(offsets[which][pieces].tolist(), lengths[which][pieces].tolist(), strict=True))
        joined, _ = join_spans(spans, int(gap))
        requests += len(joined)
        fetched += sum(size for _, size in joined)
    return requests / len(rows), fetched / len(rows)


def _planned_clips(clips: ClipConfig, units: Units, fps: float) -> tuple[list[IndexRow], npt.NDArray[np.int32]]:
    """Return videos that are alike, and the frames of their clips, i32[videos, clips, frames]."""
    frames = int(units.size.sum()) // _FRAME_BYTES
    row = IndexRow(
        key="video",
        label=None,
        source_digest=bytes(16),
        offset=0,
        size=frames * _FRAME_BYTES,
        num_frames=frames,
        fps=fps,
        width=352,
        height=256,
        units=units,
    )
    rows = [row] * _PLANNED_VIDEOS
    plan = training_clips(rows, np.arange(_PLANNED_VIDEOS), clips, seed=0, epoch=0).frames
    return rows, plan
