"""Store a source, or a part of it, with a codec: as it is, or transcoded.

source --remux | copy--> member
source --transcode--> member: all of it
source, span --cut--> piece --transcode--> member: a segment, whose packets are certain
source, span --transcode, choose frames--> member: any other segment
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

from rhofast.data.codecs.codec import Codec, Member
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.codecs.segment import Clock
from rhofast.data.codecs.unfit import UnfitError
from rhofast.ingest.cut import Cut, UncertainError, Window, plan_cut, write_piece
from rhofast.ingest.ffmpeg_messages import pictures_are_whole
from rhofast.ingest.machine_errors import UnwritableError
from rhofast.ingest.opened import OpenedSource, is_counted
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo
from rhofast.ingest.remux import remux
from rhofast.ingest.segments import Span
from rhofast.ingest.source import Deadline, call_reader
from rhofast.ingest.transcode import TranscodeSettings, output_fps, transcode

_PIECE = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of the container of a piece
_MIN_FRAMES = 0.8  # share of the frames that the packets promise; some files are wrong about the last ones


def store(
    opened: OpenedSource,
    span: Span | None,
    codec: Codec,
    settings: TranscodeSettings,
    scratch: Path,
    deadline: Deadline,
) -> tuple[Path, Member]:
    """Make the member of a source.

    Args:
        opened: The source.
        span: The part of it that is stored; None for all, up to `max_seconds`.
        codec: The codec.
        settings: How it is transcoded.
        scratch: A folder for files.
        deadline: Time limit of the video.

    Returns:
        The member's file and what is in it.

    Raises:
        RefusedError: The video cannot become a sample.
        UnreadableError: It cannot be read.
        OSError: `scratch` cannot be written.
        IngestError: ffmpeg was stopped from outside.
    """
    path, source = opened.path, opened.info(deadline)
    if isinstance(codec, RemuxCodec):
        segment = (None, settings.max_seconds) if span is None else (span.start, span.end)
        return _remux(path, source, codec, segment, scratch / "member", deadline)
    if span is not None and not codec.cuts:
        raise RefusedError(Refusal.NOT_COPYABLE, "a segment of a file")
    if codec.untouched:
        if source.mirrored or source.rotation:
            raise RefusedError(Refusal.NOT_COPYABLE, "its display matrix rotates or mirrors it")
        file, member = _transcode(path, source, codec, settings, scratch, deadline)
        return file, member if member.fps else replace(member, fps=source.fps)
    if span is None:
        file, member = _store_all(path, source, codec, settings, scratch, deadline)
    else:
        file, member = _store_span(opened, span, codec, settings, scratch, deadline)
    return file, replace(member, fps=output_fps(source, settings))


def _store_all(
    path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, scratch: Path, deadline: Deadline
) -> tuple[Path, Member]:
    file, member = _transcode(path, source, codec, settings, scratch, deadline)
    rate = output_fps(source, settings)
    seconds = min(source.seconds, settings.max_seconds or math.inf)
    if source.constant and not is_counted(member.num_frames, seconds, rate):
        # Its packets are not its pictures, as those of single fields: only its timestamps remain.
        file, member = _transcode(path, replace(source, constant=False), codec, settings, scratch, deadline)
    _check_complete(member, seconds * float(rate))
    return file, member


def _store_span(
    opened: OpenedSource,
    span: Span,
    codec: Codec,
    settings: TranscodeSettings,
    scratch: Path,
    deadline: Deadline,
) -> tuple[Path, Member]:
    """Store a part of a source: a piece of it is decoded if its packets are certain, and otherwise all of it."""
    try:
        piece, inside, window = piece_of(opened, span, settings, scratch / "piece", deadline)
        file, member = _transcode(piece, inside, codec, settings, scratch, deadline, window)
        piece.unlink()
        if window.stop is not None and member.num_frames == window.stop - window.first:
            return file, member
    except UncertainError:
        pass
    except RefusedError as refusal:
        if refusal.reason != Refusal.DAMAGED:
            raise  # what a piece lacks that the file has (parameters in its stream) looks like damage
    path, source, window = all_of(opened, span, settings, deadline)
    first, stop = window.first, math.inf if window.stop is None else window.stop
    expected = min(stop, source.seconds * float(output_fps(source, settings))) - first
    try:
        file, member = _transcode(path, source, codec, settings, scratch, deadline, window)
    except RefusedError as refusal:
        if refusal.reason == Refusal.NO_FRAMES and expected <= 2:
            raise _outside(span, source) from None
        raise
    _check_complete(member, expected)
    return file, member


def piece_of(
    opened: OpenedSource, span: Span, settings: TranscodeSettings, out: Path, deadline: Deadline
) -> tuple[Path, SourceInfo, Window]:
    """Write a piece of a source, from which a part of it can be made.

    Args:
        opened: The source.
        span: The part.
        settings: How it is transcoded.
        out: The file to write.
        deadline: Time limit of the video.

    Returns:
        The piece, what is inside it, and which frames to make of it.

    Raises:
        UncertainError: It is not certain which packets the part needs.
        RefusedError: The part has no frames.
        UnreadableError: The source cannot be read.
    """
    source, packets = opened.info(deadline), opened.packets(deadline)
    if packets is None:
        raise UncertainError("its packets do not tell which pictures they become")
    rate = output_fps(source, settings)

    def written(*, gaps: bool) -> Cut:
        cut = plan_cut(packets, source, rate, span.start, span.end, gaps=gaps)
        if cut is None:
            raise _outside(span, source)
        try:
            call_reader(write_piece, opened.path, source, cut, out, deadline=deadline)
        except UncertainError:
            if not cut.gap:
                raise
            return written(gaps=False)
        return cut

    cut = written(gaps=True)
    window = Window(cut.frames.start, cut.frames.stop, cut, opened.look(deadline))
    return out, replace(source, container=_PIECE, stream=0), window


def all_of(
    opened: OpenedSource, span: Span, settings: TranscodeSettings, deadline: Deadline
) -> tuple[Path, SourceInfo, Window]:
    """Return a source, what is inside it, and which frames to make of it; for arguments and errors see `piece_of`."""
    source = opened.counted(deadline)
    rate = output_fps(source, settings)
    packets = opened.packets(deadline)
    clock = Clock(rate) if packets is None else packets.clock(source, rate)
    window = Window(clock.frame_from(span.start), None if span.end is None else clock.frame_from(span.end))
    if window.first >= source.seconds * float(rate) or window.first == window.stop:
        raise _outside(span, source)
    return opened.path, source, window


def _outside(span: Span, source: SourceInfo) -> RefusedError:
    end = "the end" if span.end is None else f"{span.end:g} s"
    detail = f"no frame is shown from {span.start:g} s to {end}; the video has {source.seconds:.2f} s"
    return RefusedError(Refusal.OUTSIDE, detail)


def _transcode(
    path: Path,
    source: SourceInfo,
    codec: Codec,
    settings: TranscodeSettings,
    scratch: Path,
    deadline: Deadline,
    window: Window | None = None,
) -> tuple[Path, Member]:
    in_time = settings.model_copy(update={"timeout": deadline.left()})

    def are_whole(path: Path, source: SourceInfo) -> bool:
        return call_reader(pictures_are_whole, path, source, deadline=deadline)

    file = transcode(path, source, codec, in_time, scratch / "member", window=window, are_whole=are_whole)
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


def _remux(
    path: Path,
    source: SourceInfo,
    codec: RemuxCodec,
    segment: tuple[float | None, float | None],
    out: Path,
    deadline: Deadline,
) -> tuple[Path, Member]:
    try:
        return out, call_reader(remux, path, source, codec, segment, out, deadline=deadline)
    except UnfitError as error:
        raise RefusedError(Refusal(error.reason), error.detail) from None
    except UnwritableError as error:
        raise OSError(error.number, os.strerror(error.number), error.folder) from None


def _check_complete(member: Member, expected: float) -> None:
    """Raise RefusedError unless about as many frames were stored as the packets promised."""
    if member.num_frames < _MIN_FRAMES * expected - 2:
        raise RefusedError(Refusal.DAMAGED, f"only {member.num_frames} of {expected:.0f} frames could be decoded")


def _index_member(codec: Codec, file: Path) -> Member:
    with file.open("rb") as content:
        return codec.index_member(content)
