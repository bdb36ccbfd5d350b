"""Make one sample of one record: read the source, find the part that is meant, store it, say what it is.

record --open--> file, digest, SourceInfo --span_of--> part --store--> member, index --> NewSample
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from rhofast.data.codecs.codec import Codec, Member
from rhofast.data.types import TimedLabel, VideoRecord
from rhofast.ingest.annotations import labels_of_sample
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.opened import LastSource
from rhofast.ingest.probe import UNFIT, Refusal, RefusedError, SourceInfo
from rhofast.ingest.segments import span_of
from rhofast.ingest.source import Deadline, retried
from rhofast.ingest.store import store
from rhofast.ingest.stored_names import source_name, stored_path
from rhofast.ingest.transcode import TranscodeSettings
from rhofast.ingest.writer import NewSample


def make_sample(
    record: VideoRecord,
    codecs: Sequence[Codec],
    settings: TranscodeSettings,
    scratch: Path,
    *,
    sources: LastSource | None = None,
    state: Any = None,
) -> NewSample:
    """Probe, transcode and index one video.

    Args:
        record: The video.
        codecs: The codec that it is stored with, then those that take it if the one before does not.
        settings: How it is transcoded.
        scratch: A folder for its files, which must stay until the sample is written.
        sources: Has the source, if it is that of the record before; its copy may lie beside `scratch`.
        state: What `source_state` returned for the source; None: it is read in any case.

    Returns:
        The sample, ready to be written.

    Raises:
        RefusedError: The video cannot become a sample.
        OSError: `scratch` cannot be written.
        IngestError: ffmpeg was stopped from outside.
    """
    deadline, sources = Deadline(settings.timeout), sources or LastSource()
    try:
        digest, place, file, member = retried(
            lambda: _read_and_store(record, codecs, settings, scratch, deadline, sources, state),
            deadline,
        )
    except RefusedError as error:
        raise _in_words(error, settings) from None
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


def probed(
    record: VideoRecord, settings: TranscodeSettings, folder: Path, *, sources: LastSource, state: Any
) -> SourceInfo:
    """Return what is inside the source of a record; arguments and errors are those of `make_sample`."""
    deadline = Deadline(settings.timeout)

    def attempt() -> SourceInfo:
        try:
            return sources.open(record, state, folder, deadline).info(deadline)
        except UnreadableError:
            sources.forget()
            raise

    try:
        return retried(attempt, deadline)
    except RefusedError as error:
        raise _in_words(error, settings) from None


def _in_words(refusal: RefusedError, settings: TranscodeSettings) -> RefusedError:
    """Return a refusal that names the time limit of the sample, where it is one for lateness."""
    if refusal.reason == Refusal.TIMEOUT:
        return RefusedError(Refusal.TIMEOUT, f"after {settings.timeout:g} s")
    return refusal


def _read_and_store(
    record: VideoRecord,
    codecs: Sequence[Codec],
    settings: TranscodeSettings,
    scratch: Path,
    deadline: Deadline,
    sources: LastSource,
    state: Any,
) -> tuple[bytes, int, Path, Member]:
    """Return the source's digest, the place of the codec that takes it, the member's file and what is in it.

    Args:
        record: The video.
        codecs: The codecs, of which the first that takes it stores it.
        settings: How it is transcoded.
        scratch: A folder for files.
        deadline: Time limit of the video.
        sources: Has the source, if it is that of the record before.
        state: What `source_state` returned for it.

    Raises:
        RefusedError: The video cannot become a sample.
        UnreadableError: It cannot be read.
        OSError: `scratch` cannot be written.
        IngestError: ffmpeg was stopped from outside.
    """
    try:
        opened = sources.open(record, state, scratch.parent, deadline)
        scratch = Path(tempfile.mkdtemp(dir=scratch))  # nothing of an earlier attempt is in the way
        try:
            span = span_of(record, opened.info(deadline).seconds, settings)
            part = None if record.start is None and record.end is None else span
            for place, codec in enumerate(codecs):
                try:
                    file, member = store(opened, part, codec, settings, scratch, deadline)
                    break
                except RefusedError as refusal:
                    if refusal.reason not in UNFIT or place == len(codecs) - 1:
                        raise
        except RefusedError as refusal:
            opened.confirm(refusal, deadline)
            raise
    except UnreadableError:
        sources.forget()
        raise
    return opened.source.digest, place, file, member


def _suffix(path: PurePath) -> str:
    """Return a one-word suffix for a copied file; readers take everything behind the key's dot for the suffix."""
    suffix = re.sub(r"[^a-z0-9]", "", path.suffix.lower())
    return suffix if suffix and suffix != "json" else "video"
