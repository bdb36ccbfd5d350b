"""Make one sample of one record: read the source, probe it, transcode it, index what was stored.

record --read_source--> file, digest --probe--> SourceInfo --transcode--> member --index--> NewSample
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from rhofast.data.codecs.codec import Codec, Member
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.unfit import UnfitError
from rhofast.data.types import TimedLabel, VideoRecord
from rhofast.ingest.annotations import labels_of_sample
from rhofast.ingest.ffmpeg_messages import pictures_are_whole
from rhofast.ingest.machine_errors import UnwritableError
from rhofast.ingest.probe import UNFIT, Refusal, RefusedError, SourceInfo, probe
from rhofast.ingest.remux import remux
from rhofast.ingest.source import Deadline, call_reader, check_unchanged, read_source, retried
from rhofast.ingest.stored_names import source_name, stored_path
from rhofast.ingest.transcode import TranscodeSettings, output_fps, transcode
from rhofast.ingest.writer import NewSample

_MIN_FRAMES = 0.8  # share of the frames that the packets promise; some files are wrong about the last ones


def make_sample(record: VideoRecord, codecs: Sequence[Codec], settings: TranscodeSettings, scratch: Path) -> NewSample:
    """Probe, transcode and index one video.

    Args:
        record: The video.
        codecs: The codec that it is stored with, then those that take it if the one before does not.
        settings: How it is transcoded.
        scratch: A folder for its files, which must stay until the sample is written.

    Returns:
        The sample, ready to be written.

    Raises:
        RefusedError: The video cannot become a sample.
        OSError: `scratch` cannot be written.
        IngestError: ffmpeg was stopped from outside.
    """
    deadline = Deadline(settings.timeout)
    try:
        digest, place, file, member = retried(
            lambda: _read_and_store(record, codecs, settings, scratch, deadline), deadline
        )
    except RefusedError as error:
        late = error.reason == Refusal.TIMEOUT
        raise RefusedError(Refusal.TIMEOUT, f"after {settings.timeout:g} s") if late else error from None
    codec, shown = codecs[place], source_name(record)
    seconds = float(member.num_frames / member.fps)
    labels = labels_of_sample(map(TimedLabel._make, record.labels or ()), record.start, record.end, seconds)
    metadata = {
        "label": record.label,
        "label_name": record.label_name,
        "labels": labels,
        "start": record.start,
        "end": record.end,
        "extra": record.extra,
        "source": stored_path(shown.name),
        "source_digest": digest.hex(),
        "codec": codec.name,
        "fps": float(member.fps),
        "frames": member.num_frames,
        "duration": seconds,
        "width": member.width,
        "height": member.height,
        "pixel_aspect": member.pixel_aspect,
    }
    return NewSample(
        key=record.key,
        label=record.label,
        labels=labels,
        source_digest=digest,
        codec=place,
        file=file,
        suffix=codec.suffix or _suffix(shown),
        member=member,
        metadata=metadata,
    )


def _read_and_store(
    record: VideoRecord, codecs: Sequence[Codec], settings: TranscodeSettings, scratch: Path, deadline: Deadline
) -> tuple[bytes, int, Path, Member]:
    """Return the source's digest, the place of the codec that takes it, the member's file and what is in it.

    Args:
        record: The video.
        codecs: The codecs, of which the first that takes it stores it.
        settings: How it is transcoded.
        scratch: A folder for files.
        deadline: Time limit of the video.

    Raises:
        RefusedError: The video cannot become a sample.
        UnreadableError: It cannot be read.
        OSError: `scratch` cannot be written.
        IngestError: ffmpeg was stopped from outside.
    """
    scratch = Path(tempfile.mkdtemp(dir=scratch))  # nothing of an earlier attempt is in the way
    source = read_source(record.path, scratch, deadline, record.inside)
    try:
        info = call_reader(probe, source.path, deadline=deadline)
        _check_duration(info.seconds, settings)
        for place, codec in enumerate(codecs):
            try:
                if isinstance(codec, RemuxCodec):
                    segment = _segment(record, settings)
                    file, member = _remux(source.path, info, codec, segment, scratch / "member", deadline)
                else:
                    file, member = _store(source.path, info, codec, settings, scratch, deadline)
                break
            except RefusedError as refusal:
                if refusal.reason not in UNFIT or place == len(codecs) - 1:
                    raise
    except RefusedError as refusal:
        check_unchanged(source, refusal, deadline)
        raise
    return source.digest, place, file, member


def _store(
    path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, scratch: Path, deadline: Deadline
) -> tuple[Path, Member]:
    """Return the member's file and what is in it; arguments and errors are those of `_read_and_store`."""
    if codec.untouched and (source.mirrored or source.rotation):
        raise RefusedError(Refusal.NOT_COPYABLE, "its display matrix rotates or mirrors it")
    file, member = _transcode(path, source, codec, settings, scratch, deadline)
    if codec.untouched:
        return file, member if member.fps else replace(member, fps=source.fps)
    if source.constant and not _is_counted(member, source, settings):
        # Its packets are not its pictures, as those of single fields: only its timestamps remain.
        source = replace(source, constant=False)
        file, member = _transcode(path, source, codec, settings, scratch, deadline)
    member = replace(member, fps=output_fps(source, settings))
    _check_complete(member, source, settings)
    return file, member


def _transcode(
    path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, scratch: Path, deadline: Deadline
) -> tuple[Path, Member]:
    """Return the member's file and what is in it; arguments and errors are those of `_read_and_store`."""
    in_time = settings.model_copy(update={"timeout": deadline.left()})

    def are_whole(path: Path, source: SourceInfo) -> bool:
        return call_reader(pictures_are_whole, path, source, deadline=deadline)

    file = transcode(path, source, codec, in_time, scratch / "member", are_whole=are_whole)
    try:
        if codec.untouched:  # bytes of unknown origin, not of our encoder
            member = call_reader(_index_member, codec, file, deadline=deadline)
        else:
            member = _index_member(codec, file)
    except UnfitError as error:
        raise RefusedError(Refusal(error.reason), error.detail) from None
    except ValueError as error:
        raise RefusedError(Refusal.DAMAGED, str(error)) from None
    if member.num_frames == 0:
        raise RefusedError(Refusal.NO_FRAMES)
    return file, member


def _segment(record: VideoRecord, settings: TranscodeSettings) -> tuple[float | None, float | None]:
    """Return the beginning and the end, in seconds of the source, of what is kept of it; None for its own."""
    if settings.max_seconds is None:
        return record.start, record.end
    return record.start, min(
        (record.start or 0.0) + settings.max_seconds, math.inf if record.end is None else record.end
    )


def _remux(
    path: Path,
    source: SourceInfo,
    codec: RemuxCodec,
    segment: tuple[float | None, float | None],
    out: Path,
    deadline: Deadline,
) -> tuple[Path, Member]:
    """Return the member's file and what is in it; arguments and errors are those of `_read_and_store`."""
    try:
        return out, call_reader(remux, path, source, codec, segment, out, deadline=deadline)
    except UnfitError as error:
        raise RefusedError(Refusal(error.reason), error.detail) from None
    except UnwritableError as error:
        raise OSError(error.number, os.strerror(error.number), error.folder) from None


def _is_counted(member: Member, source: SourceInfo, settings: TranscodeSettings) -> bool:
    """Return whether about as many frames were stored as there are packets, one for each interval."""
    expected = min(source.seconds, settings.max_seconds or math.inf) * float(output_fps(source, settings))
    return abs(member.num_frames - expected) <= 0.05 * expected + 2


def _check_complete(member: Member, source: SourceInfo, settings: TranscodeSettings) -> None:
    """Raise RefusedError unless about as many frames were stored as the packets promised."""
    expected = min(source.seconds, settings.max_seconds or math.inf) * float(member.fps)
    if member.num_frames < _MIN_FRAMES * expected - 2:
        raise RefusedError(Refusal.DAMAGED, f"only {member.num_frames} of {expected:.0f} frames could be decoded")


def _index_member(codec: Codec, file: Path) -> Member:
    with file.open("rb") as content:
        return codec.index_member(content)


def _check_duration(seconds: float, settings: TranscodeSettings) -> None:
    """Raise RefusedError if a video is shorter than `min_duration` or longer than `max_duration`."""
    if settings.min_duration is not None and seconds < settings.min_duration:
        raise RefusedError(Refusal.TOO_SHORT, f"{seconds:.2f} s")
    if settings.max_duration is not None and seconds > settings.max_duration:
        raise RefusedError(Refusal.TOO_LONG, f"{seconds:.2f} s")


def _suffix(path: PurePath) -> str:
    """Return a one-word suffix for a copied file; readers take everything behind the key's dot for the suffix."""
    suffix = re.sub(r"[^a-z0-9]", "", path.suffix.lower())
    return suffix if suffix and suffix != "json" else "video"
