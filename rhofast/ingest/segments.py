"""Which part of a video a record means, in seconds: its own segment, the windows of a long video, and the limits.

record [start, end) --file ends, --max-seconds--> Span
record --clip-seconds, --stride--> records KEY_00000, KEY_00001, ...: windows of it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.segment import frame_from
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo
from rhofast.ingest.transcode import TranscodeSettings, output_fps

_TOLERANCE = 1e-6  # seconds, as that of frames (data.codecs.segment)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video.

    Attributes:
        start: Its beginning in seconds since the first picture.
        end: Its end; None for the end of the video.
        seconds: Its duration.
    """

    start: float
    end: float | None
    seconds: float


def span_of(record: VideoRecord, seconds: float, settings: TranscodeSettings) -> Span:
    """Return the part of a video that becomes a sample.

    A segment that ends after the video ends with it. The limits are those of the segment; `max_seconds` keeps its
    beginning.

    Args:
        record: The record.
        seconds: Duration of the video.
        settings: The limits.

    Raises:
        RefusedError: The segment begins after the video, or is shorter or longer than the limits.
    """
    start, end = record.start or 0.0, record.end
    if start and start >= seconds - _TOLERANCE:
        raise RefusedError(Refusal.OUTSIDE, f"it begins at {start:g} s, and the video has {seconds:.2f} s")
    length = (seconds if end is None else min(end, seconds)) - start
    if settings.min_duration is not None and length < settings.min_duration - _TOLERANCE:
        raise RefusedError(Refusal.TOO_SHORT, f"{length:.2f} s")
    if settings.max_duration is not None and length > settings.max_duration + _TOLERANCE:
        raise RefusedError(Refusal.TOO_LONG, f"{length:.2f} s")
    if settings.max_seconds is not None and length > settings.max_seconds:
        return Span(start, start + settings.max_seconds, settings.max_seconds)
    return Span(start, end, length)


def windows_of(record: VideoRecord, source: SourceInfo, settings: TranscodeSettings) -> Iterator[VideoRecord]:
    """Cut a record into windows of `clip_seconds`, one every `stride` seconds, as far as it goes.

    The last window may be shorter; `min_duration` refuses it. There is none in which no frame would be shown, after the
    last one.

    Args:
        record: The record.
        source: What is inside its video.
        settings: What windows are wanted.

    Yields:
        A record for each window, or the record itself if there are to be no windows.

    Raises:
        RefusedError: The record begins after the video.
    """
    if settings.clip_seconds is None:
        yield record
        return
    seconds, rate = source.seconds, output_fps(source, settings)
    begin, step = record.start or 0.0, settings.stride or settings.clip_seconds
    if begin and begin >= seconds - _TOLERANCE:
        raise RefusedError(Refusal.OUTSIDE, f"it begins at {begin:g} s, and the video has {seconds:.2f} s")
    end = seconds if record.end is None else min(record.end, seconds)
    for number in range(max(1, ceil((end - begin - _TOLERANCE) / step))):
        start = round(begin + number * step, 9)  # 3 * 0.1 is to be 0.3
        if number and not _shows(source, rate, start):
            return
        stop = round(start + settings.clip_seconds, 9)
        if record.end is not None:
            stop = min(stop, record.end)
        yield replace(record, key=window_key(record.key, number), start=start, end=stop)


def _shows(source: SourceInfo, rate: Fraction, start: float) -> bool:
    """Return whether any frame of a video, stored at a rate, is shown at or after a time in seconds."""
    if source.constant and rate == source.fps:
        return start <= source.last + _TOLERANCE
    return frame_from(start, rate) < source.seconds * float(rate) - _TOLERANCE


def check_cutting(codecs: Sequence[Codec], segment: str) -> None:
    """Raise IngestError if segments are to be cut and no codec can do that.

    Args:
        codecs: The codecs that a video may be stored with.
        segment: Where the first segment is asked for; empty without any.
    """
    if segment and not any(codec.cuts for codec in codecs):
        names = ", ".join(codec.name for codec in codecs)
        raise IngestError(
            f"{segment}: a segment, but codec {names} keeps files whole", hint="choose --codec remux, h264 or jpeg"
        )


def window_key(key: str, number: int) -> str:
    """Return the key of a window of a record."""
    return f"{key}_{number:05d}"


def record_key(key: str) -> str:
    """Return the key of the record that a window was cut out of."""
    return key.rpartition("_")[0]
