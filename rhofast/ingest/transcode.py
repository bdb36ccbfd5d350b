"""Transcode one source to a member of the chosen codec, with one ffmpeg call per video.

Frames are picked by time at a constant rate, so a variable frame rate becomes a constant one and no frame is shown
early or late; time begins with the first picture. Rotation stored in the file is applied and pixels are made square.
The short side becomes `short_side`, the other follows the aspect ratio, and both are rounded to multiples of 16. Pairs
of fields become pictures. Transparency is dropped. If the picture size changes in the middle, later pictures are
stretched to the first size.

Colors are converted to BT.601 from whatever the source has, since JPEG implies it and GPU decoders assume it. A source
without color metadata is taken for BT.601, as in ffmpeg. High dynamic range (PQ, HLG) is tone-mapped if the ffmpeg
program has `zscale`; else it is converted without tone mapping, and looks flat.

The same input gives the same bytes: one thread, no timestamps, no metadata. An error in any picture refuses the whole
file; ffmpeg_messages.py tells it from errors in what is not kept.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

import ffmpeg
import imageio_ffmpeg
from pydantic import Field, model_validator

from rhofast.config.section import Positive, Section
from rhofast.data.codecs.codec import SIDE_MULTIPLE, Codec
from rhofast.data.codecs.containers import ONLY_FILES, WHITELIST
from rhofast.errors import DependencyError, IngestError
from rhofast.ingest.cut import Look, Window
from rhofast.ingest.ffmpeg_messages import LOG_LEVEL, pictures_are_whole, read_messages
from rhofast.ingest.machine_errors import check_ffmpeg
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo

# An hour has at most 3.6 million windows: fewer than a frame apart they are all the same.
_WindowSeconds = Annotated[float, Field(ge=0.001, le=1e9)]
_STOPPED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
_FFMPEG_STOPPED = 255  # ffmpeg's exit code, without a message, after SIGINT or SIGTERM
_MAX_PIXELS = 1 << 27  # per picture; a header that claims more is damaged, and decoding would take all memory
_MOST_REPEATS, _FEW_FRAMES = 1000, 10_000  # a jump in time must not become a day of the same picture
_SCALE_FLAGS = "area+accurate_rnd+full_chroma_int"
_SOURCE = "file:source"  # placeholder of the input: ffmpeg-python needs UTF-8, and a path may be none


class TranscodeSettings(Section):
    """How videos are transcoded, and which are refused.

    Attributes:
        short_side: Short side of the stored pictures in pixels; a multiple of 16.
        fps: Frames per second; None keeps each source's own rate.
        max_seconds: Keep only the beginning of longer videos; None keeps all.
        min_duration: Refuse shorter videos (seconds); None accepts all.
        max_duration: Refuse longer videos (seconds); None accepts all.
        clip_seconds: Cut videos into windows of this duration; None stores them as they are listed.
        stride: Seconds from the beginning of a window to that of the next; None: they follow one another.
        timeout: Time limit per sample in seconds.
    """

    short_side: Annotated[int, Field(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)] = 256
    fps: Positive | None = None
    max_seconds: Positive | None = None
    min_duration: Positive | None = None
    max_duration: Positive | None = None
    clip_seconds: _WindowSeconds | None = None
    stride: _WindowSeconds | None = None
    timeout: Positive = 3600.0

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        """Check that the limits do not refuse every video, or every whole window, after all the work."""
        least, most = self.min_duration or 0.0, self.max_duration or math.inf
        if least > most:
            raise ValueError(f"min_duration={least:g} is above max_duration={most:g}, so every video would be refused")
        if self.clip_seconds is not None and not least <= self.clip_seconds <= most:
            name, limit = ("min_duration", least) if self.clip_seconds < least else ("max_duration", most)
            raise ValueError(
                f"clip_seconds={self.clip_seconds:g} with {name}={limit:g}: every whole window would be refused"
            )
        return self


def find_ffmpeg() -> str:
    """Return the path of ffmpeg: the system's, else the one of imageio-ffmpeg; raises DependencyError without both."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        hint = "apt-get install ffmpeg, or pip install imageio-ffmpeg"
        raise DependencyError("no ffmpeg program is installed", hint=hint) from None


@cache
def encoder_version() -> str:
    """Return the version line of the ffmpeg program; raises DependencyError without ffmpeg."""
    done = subprocess.run([find_ffmpeg(), "-version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.partition("\n")[0].partition(" Copyright")[0]


def output_fps(source: SourceInfo, settings: TranscodeSettings) -> Fraction:
    """Return the constant frame rate that a source gets, in frames per second."""
    return source.fps if settings.fps is None else Fraction(settings.fps).limit_denominator(10_000)


def transcode(
    path: Path,
    source: SourceInfo,
    codec: Codec,
    settings: TranscodeSettings,
    out: Path,
    *,
    window: Window | None = None,
    are_whole: Callable[[Path, SourceInfo], bool] = pictures_are_whole,
) -> Path:
    """Make the member for one source, or for a part of it.

    Args:
        path: The source file.
        source: What is inside it.
        codec: The codec to store it with.
        settings: How it is transcoded.
        out: File to write.
        window: The frames to store; None for all.
        are_whole: Decides whether the pictures of a file are whole if ffmpeg leaves a doubt. It opens the file in this
            process by default.

    Returns:
        The member's file: `out`, or `path` itself if the codec keeps sources as they are. In that case ffmpeg only
        decodes the source, to find damage.

    Raises:
        RefusedError: The source is damaged, or took longer than the time limit.
        UncertainError: A piece of the source has other pictures than expected.
        UnreadableError: `path` cannot be read.
        OSError: `out` cannot be written.
        IngestError: ffmpeg was stopped from outside (Ctrl-C, out of memory). This says nothing about the source, so the
            source is not refused.
    """
    expected = source.seconds * float(output_fps(source, settings))
    if expected > _MOST_REPEATS * source.frames + _FEW_FRAMES and not codec.untouched:
        detail = f"{source.frames} pictures have timestamps over {source.seconds / 3600:.1f} h"
        raise RefusedError(Refusal.DAMAGED, detail)
    command = ffmpeg_command(path, source, codec, settings, out, window)
    try:
        done = subprocess.run(command, capture_output=True, timeout=settings.timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RefusedError(Refusal.TIMEOUT, f"after {settings.timeout:g} s") from None
    cut = None if window is None else window.cut
    said = read_messages(done.stderr, source, inside=cut is not None and cut.inside)
    check_ffmpeg(said.serious, done.returncode, source=path, out=out)
    message = said.damage or said.doubt
    if done.returncode in _STOPPED or (done.returncode == _FFMPEG_STOPPED and not message):
        raise IngestError(
            f"{path}: ffmpeg was stopped while reading this file (interrupted, or out of memory)",
            hint="run the same command again: it continues",
        )
    if said.no_decoder:
        raise RefusedError(Refusal.NO_DECODER, source.codec)
    if done.returncode != 0 or said.damage or (said.doubt and not are_whole(path, source)):
        raise RefusedError(Refusal.DAMAGED, message or f"ffmpeg exited with code {done.returncode}")
    if window is not None and cut is not None:
        cut.check(done.stderr, window.look)
    return path if codec.untouched else out


def ffmpeg_command(
    path: Path,
    source: SourceInfo,
    codec: Codec,
    settings: TranscodeSettings,
    out: Path,
    window: Window | None = None,
) -> list[str]:
    """Return the ffmpeg command that makes a member.

    Args:
        path: The source file.
        source: What is inside it.
        codec: The codec to store it with.
        settings: How it is transcoded.
        out: File to write.
        window: The frames to store; None for all.
    """
    rate, side, step = output_fps(source, settings), settings.short_side, SIDE_MULTIPLE

    def follow(long: str, short: str) -> str:
        return f"max({step},round(({long})*{side}/({short})/{step})*{step})"

    # A filter graph that is rebuilt at each change of size or format begins again at time 0, and pictures are lost; but
    # the filters that rotate or deinterlace pictures need it.
    rebuild = int(source.interlaced or source.mirrored or source.rotation != 0)
    options = {"threads": 1, "max_pixels": _MAX_PIXELS, "reinit_filter": rebuild, **WHITELIST, **ONLY_FILES}
    if source.container == "mpegts":
        options["f"] = "mpegts"  # ffmpeg takes short ones for program streams
    video = ffmpeg.input(_SOURCE, **options)[str(source.stream)]
    encoder = codec.encoder_arguments()
    if encoder is None:
        stream, encoder = video, {"f": "null"}
    else:
        colors = {
            "out_color_matrix": "bt601",
            "out_range": "full" if encoder["pix_fmt"].startswith("yuvj") else "limited",
        }
        tone_mapped = source.hdr and _has_filter("zscale") and _has_filter("tonemap")
        stream = _timed(video, source, window)
        if source.interlaced:
            stream = stream.filter("bwdif", deint="interlaced")
        stream = stream.filter("fps", fps=f"{rate.numerator}/{rate.denominator}", eof_action="pass")
        if window is not None:
            stream = _chosen(stream, window)
        stream = stream.filter(
            "scale",
            w=f"if(lte(iw*sar,ih),{side},{follow('iw*sar', 'ih')})",
            h=f"if(lte(iw*sar,ih),{follow('ih', 'iw*sar')},{side})",
            flags=_SCALE_FLAGS,
            **({} if tone_mapped else colors),
        )
        if tone_mapped:
            stream = _tone_mapped(stream).filter("scale", flags=_SCALE_FLAGS, **colors)
        # Old versions of ffmpeg convert the colors but keep the source's color metadata.
        stream = stream.filter("setparams", colorspace="smpte170m", range=colors["out_range"])
        stream = stream.filter("setsar", "1")
    arguments = {
        **encoder,
        "threads": 1,
        "map_metadata": -1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
    }
    if settings.max_seconds is not None and window is None:
        arguments["t"] = settings.max_seconds
    output = ffmpeg.output(stream, f"file:{out}", **arguments).global_args(
        "-nostdin", "-y", "-hide_banner", "-nostats", "-loglevel", LOG_LEVEL, "-xerror"
    )
    command: list[str] = ffmpeg.compile(output, cmd=find_ffmpeg())
    return [f"file:{path}" if argument == _SOURCE else argument for argument in command]


def _timed(stream: Any, source: SourceInfo, window: Window | None) -> Any:
    """Let time begin with the first picture, which is otherwise repeated if it comes late.

    At a constant rate, pictures are counted: their timestamps are rounded, and sometimes wrong or missing. In a piece
    of a source they were counted before. What only the source's container tells of colors and pixels, it has lost.
    """
    tick = f"{source.fps.denominator}/{source.fps.numerator}"
    if window is not None and window.cut is not None:
        offset, colors, aspect = window.cut.offset, window.look.known_colors(), window.look.aspect
        if not source.hdr:  # tone mapping needs it; showinfo writes all of it, byte by byte
            stream = stream.filter("sidedata", mode="delete")
        stream = stream.filter("showinfo", checksum=0)  # tells the pictures that are decoded
        stream = stream.filter("setparams", **colors) if colors else stream
        stream = stream.filter("setsar", f"{aspect.numerator}/{aspect.denominator}", max=1 << 30)
        stream = stream.filter("settb", tick) if source.constant else stream
        return stream.filter("setpts", f"PTS-STARTPTS+round({offset.numerator}/{offset.denominator}/TB)")
    if not source.constant:
        return stream.filter("setpts", "PTS-STARTPTS")
    return stream.filter("settb", tick).filter("setpts", "N")


def _chosen(stream: Any, window: Window) -> Any:
    """Choose frames by their numbers. All are made, so that damage does not depend on when a reader stops."""
    if window.cut is not None and window.cut.padding:
        stream = stream.filter("tpad", stop=window.cut.padding, stop_mode="clone")
    last = "" if window.stop is None else f"*lt(pts,{window.stop})"
    return stream.filter("select", f"gte(pts,{window.first}){last}").filter("setpts", "N")


def _tone_mapped(stream: Any) -> Any:
    """Map high dynamic range to standard range: linear light, Hable's curve, BT.709, as RGB.

    BT.2100 has no other primaries and, except the refused one, no other matrix than these; not all files say so.
    """
    stream = stream.filter("setparams", color_primaries="bt2020", colorspace="bt2020nc")
    stream = stream.filter("zscale", t="linear", npl=100).filter("format", "gbrpf32le").filter("zscale", p="bt709")
    stream = stream.filter("tonemap", "hable", desat=0)
    return stream.filter("zscale", t="bt709").filter("format", "gbrp")


def first_look(path: Path, source: SourceInfo, *, timeout: float) -> Look:
    """Return what the first picture of a source looks like to ffmpeg.

    Args:
        path: The source file.
        source: What is inside it.
        timeout: Time limit in seconds.
    """
    options = {"threads": 1, "max_pixels": _MAX_PIXELS, **WHITELIST, **ONLY_FILES}
    stream = ffmpeg.input(_SOURCE, **options)[str(source.stream)].filter("trim", end_frame=1)
    output = ffmpeg.output(stream.filter("showinfo", checksum=0), "-", f="null")
    command = ffmpeg.compile(
        output.global_args("-nostdin", "-hide_banner", "-nostats", "-loglevel", LOG_LEVEL), cmd=find_ffmpeg()
    )
    command = [f"file:{path}" if argument == _SOURCE else argument for argument in command]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RefusedError(Refusal.TIMEOUT, f"after {timeout:g} s") from None
    return Look.read(done.stderr)


@cache
def _has_filter(name: str) -> bool:
    done = subprocess.run([find_ffmpeg(), "-hide_banner", "-filters"], capture_output=True, stdin=subprocess.DEVNULL)
    return re.search(rf"^ *\S+ {name} ".encode(), done.stdout, flags=re.MULTILINE) is not None
