"""What is inside a video file, and why one is refused. Opens files, decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import av


class Refusal(StrEnum):
    """Why a source did not become a sample: the whole list."""

    MISSING = "missing"  # no such file, or not readable
    EMPTY = "empty"  # zero bytes
    NOT_A_VIDEO = "not_a_video"  # no container that ffmpeg knows, or one cut before its table of contents
    NO_VIDEO_STREAM = "no_video_stream"  # audio only, say
    DAMAGED = "damaged"  # ffmpeg met an error while reading or decoding
    NO_FRAMES = "no_frames"  # a stream without a single picture
    TIMEOUT = "timeout"  # transcoding took longer than allowed


class RefusedError(Exception):
    """A source is refused. detail: what the library or ffmpeg said, one line, or empty."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """What transcoding needs to know. fps: the stream's average rate, frames a second."""

    codec: str
    fps: Fraction


def probe(path: Path) -> SourceInfo:
    """Look into a file. Raises RefusedError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or str(error)) from None
    if size == 0:
        raise RefusedError(Refusal.EMPTY)
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            # Covers are streams of one still picture; the release of a song with one is no video.
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                raise RefusedError(Refusal.NO_VIDEO_STREAM)
            stream = streams[0]
            codec = str(stream.codec_context.name)
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    except PermissionError as error:
        raise RefusedError(Refusal.MISSING, error.strerror or "") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise RefusedError(Refusal.NOT_A_VIDEO, str(getattr(error, "strerror", "") or error)) from None
    if not rate or not 0.1 <= rate <= 1000:
        raise RefusedError(Refusal.NOT_A_VIDEO, f"frame rate {rate}")
    return SourceInfo(codec=codec, fps=Fraction(rate).limit_denominator(10_000))


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
