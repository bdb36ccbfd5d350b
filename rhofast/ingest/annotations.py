"""Check what a record says beside its path and label: a segment, further labels with times, and the user's own fields.

VideoRecord --check, before any video is read--> listing --a segment is cut--> labels in seconds of the sample
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from numbers import Real
from operator import index
from typing import Any, cast

from rhofast.data.types import TimedLabel, VideoRecord
from rhofast.errors import IngestError
from rhofast.storage.strict_json import parse_record

MAX_EXTRA_BYTES = 64 << 10  # of `extra` as JSON in UTF-8
MAX_LABELS = 10_000  # of one record, beside its first


def check_segment(where: str, record: VideoRecord) -> tuple[float | None, float | None]:
    """Return the times of a record's segment as floats.

    Args:
        where: Where the record stands, for the error.
        record: The record.

    Raises:
        IngestError: A time is no number >= 0, or the segment ends before it begins.
    """
    return _span(where, "segment", record.start, record.end)


def check_labels(where: str, record: VideoRecord) -> tuple[TimedLabel, ...]:
    """Return the further labels of a record, in its order; whether the classes exist is not checked here.

    Args:
        where: Where the record stands, for the error.
        record: The record.

    Raises:
        IngestError: A label is not (class number, start, end), holds for no time of the segment, or two labels of one
            class overlap.
    """
    if record.labels is None:
        return ()
    hint = "give labels as (class number, start, end), in seconds; None for the beginning or the end"
    if isinstance(record.labels, str | bytes) or not isinstance(record.labels, Iterable):
        raise IngestError(f"{where}: labels={str(record.labels)[:80]!r} are no list", hint=hint)
    labels: list[TimedLabel] = []
    for given in cast(Iterable[Any], record.labels):
        if isinstance(given, str | bytes) or not isinstance(given, Iterable) or len(parts := tuple(given)) != 3:
            raise IngestError(f"{where}: label {str(given)[:80]!r} is not (class number, start, end)", hint=hint)
        try:
            number = index(parts[0])
        except TypeError:
            raise IngestError(f"{where}: label {str(parts[0])[:80]!r} is not a whole number", hint=hint) from None
        start, end = _span(where, f"label {number}", parts[1], parts[2])
        _check_within(where, record, number, start, end)
        labels.append(TimedLabel(number, start, end))
        if len(labels) > MAX_LABELS:
            raise IngestError(f"{where}: more than {MAX_LABELS:,} labels", hint="split the video into segments")
    _check_apart(where, labels)
    return tuple(labels)


def check_extra(where: str, record: VideoRecord) -> str | None:
    """Return the user's own fields as JSON.

    Args:
        where: Where the record stands, for the error.
        record: The record.

    Raises:
        IngestError: They are not a JSON object that can be stored and read back as it is, or too large.
    """
    if record.extra is None:
        return None
    if not isinstance(record.extra, dict):
        raise IngestError(
            f"{where}: extra={str(record.extra)[:80]!r} is not a JSON object",
            hint="give the fields as an object: {name: value, ...}",
        )
    hint = "use objects, lists, texts, finite numbers, true, false and null"
    try:
        text = json.dumps(record.extra, ensure_ascii=True, sort_keys=True, allow_nan=False)
        is_same = json.loads(text) == record.extra
    except (TypeError, ValueError, RecursionError) as error:
        name = next((str(name) for name, value in record.extra.items() if not _is_json(value)), "")
        at = f" {name[:80]!r}" if name else ""
        raise IngestError(f"{where}: extra{at} is not JSON: {str(error)[:200]}", hint=hint) from None
    if not is_same:
        raise IngestError(
            f"{where}: extra changes when it is stored as JSON (keys that are no texts, tuples)", hint=hint
        )
    size = len(text)
    if size > MAX_EXTRA_BYTES:  # of ASCII, which is at least as long
        size = len(json.dumps(record.extra, ensure_ascii=False).encode(errors="surrogatepass"))
    if size > MAX_EXTRA_BYTES:
        raise IngestError(
            f"{where}: extra has {size:,} bytes as JSON, of at most {MAX_EXTRA_BYTES:,}",
            hint="store what is larger in a file of its own, and its name here",
        )
    parse_record(f'{{"extra": {text}}}'.encode(), dict[str, Any], where=where, raises=IngestError, hint=hint)
    return text


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def labels_of_sample(
    labels: Iterable[TimedLabel], start: float | None, end: float | None, seconds: float
) -> tuple[TimedLabel, ...]:
    """Return the labels of a sample that was cut out of a video, in seconds of the sample.

    A label is cut to the sample. Those that hold for no time of it are left out: annotations may go beyond the end of a
    file, and labels of a long video belong to some of its windows.

    Args:
        labels: The labels, in seconds of the video.
        start: Beginning of the sample in the video; None for 0.
        end: End of the sample in the video, which says which times mean its end; None for the end of the video.
        seconds: Duration of the sample.
    """
    before, held = start or 0.0, []
    for label in labels:  # 0.7 - 0.5 is to be 0.2
        first = None if label.start is None or label.start <= before else round(label.start - before, 9)
        last = None if label.end is None or (end is not None and label.end >= end) else round(label.end - before, 9)
        if last is not None and last >= seconds:
            last = None
        if (first or 0.0) < (seconds if last is None else last):
            held.append(TimedLabel(label.label, first, last))
    return tuple(held)


def _span(where: str, what: str, start: Any, end: Any) -> tuple[float | None, float | None]:
    """Return two times as floats; raises IngestError if they are none, or not in order."""
    times: list[float | None] = []
    for name, time in (("start", start), ("end", end)):
        if time is None:
            times.append(None)
            continue
        is_number = isinstance(time, Real) and not isinstance(time, bool)  # also NumPy's, which a table gives
        if not is_number or not math.isfinite(time) or time < 0:
            shown = repr(time) if isinstance(time, str) else str(time)
            raise IngestError(
                f"{where}: {what}: {name}={shown[:80]} is not a number of seconds >= 0",
                hint="correct the record; leave the time out for the beginning or the end",
            )
        times.append(float(time))
    first, last = times
    if last is not None and last <= (first or 0.0):
        raise IngestError(
            f"{where}: {what}: end={last:g} is not after start={first or 0.0:g}", hint="correct the record: start < end"
        )
    return first, last


def _check_within(where: str, record: VideoRecord, number: int, start: float | None, end: float | None) -> None:
    """Raise IngestError if a label holds for no time of the record's segment."""
    is_before = end is not None and record.start is not None and end <= record.start
    is_after = start is not None and record.end is not None and start >= record.end
    if is_before or is_after:
        shown = f"[{start or 0.0:g}, {'end' if end is None else f'{end:g}'})"
        segment = f"[{record.start or 0.0:g}, {'end' if record.end is None else f'{record.end:g}'})"
        raise IngestError(
            f"{where}: label {number} at {shown} s is outside the segment {segment} s",
            hint="times of labels count from the beginning of the video, as those of the segment",
        )


def _check_apart(where: str, labels: Iterable[TimedLabel]) -> None:
    """Raise IngestError if two labels of one class overlap."""
    held = sorted((label.label, label.start or 0.0, math.inf if label.end is None else label.end) for label in labels)
    for before, after in pairwise(held):
        if before[0] == after[0] and after[1] < before[2]:
            raise IngestError(
                f"{where}: two labels {after[0]} overlap at {after[1]:g} s",
                hint="join them to one, or correct their times",
            )
