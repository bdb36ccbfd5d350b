"""One ffmpeg call a video: any source in, a member of the asked codec out.

Frames are picked by time at a constant rate, so a variable frame rate becomes a constant one and none is shown early or
late; time begins with the first picture. Rotation stored in the file is applied and pixels are made square; the short
side becomes `short_side`, the other follows the aspect, both rounded to multiples of 16. Pairs of fields become
pictures. Transparency is dropped. What changes its size in the middle is stretched to that of the beginning.

Colors are converted to BT.601 whatever the source's, since that is what a JPEG means and what decoders on a GPU assume;
a source that does not say what it means is taken for BT.601, as ffmpeg does. High dynamic range (PQ, HLG) is
tone-mapped if the ffmpeg program has `zscale`; else it is converted as it is, and looks flat.

The same input gives the same bytes: one thread, no timestamps, no metadata. An error that ffmpeg meets anywhere in the
file refuses the whole file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import ffmpeg
import imageio_ffmpeg
from pydantic import Field

from rhofast.config.section import Positive, Section
from rhofast.data.codecs.codec import SIDE_MULTIPLE, Codec
from rhofast.errors import DependencyError, IngestError
from rhofast.ingest.probe import Refusal, RefusedError, SourceInfo

_STOPPED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
_FFMPEG_STOPPED = 255  # what ffmpeg returns, saying nothing, when it caught SIGINT or SIGTERM
_MAX_PIXELS = 1 << 27  # of a picture; what a header claims beyond that is damage, and would take the memory of all
_MOST_REPEATS, _FEW_FRAMES = 1000, 10_000  # a jump in time must not become a day of one picture
_SCALE_FLAGS = "area+accurate_rnd+full_chroma_int"
_SOURCE = "file:source"  # stands for the input until the command is made: ffmpeg-python wants UTF-8, a path may not be


class TranscodeSettings(Section):
    """
    short_side   pixels; a multiple of 16
    fps          frames a second; None keeps each source's own average rate
    max_seconds  keep only the beginning of longer videos; None keeps all
    min_duration  refuse shorter videos (seconds); None takes all
    max_duration  refuse longer videos (seconds); None takes all
    timeout      seconds one video may take
    """

    short_side: Annotated[int, Field(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)] = 256
    fps: Positive | None = None
    max_seconds: Positive | None = None
    min_duration: Positive | None = None
    max_duration: Positive | None = None
    timeout: Positive = 3600.0


def find_ffmpeg() -> str:
    """The ffmpeg program: the system's, else the one that comes with imageio-ffmpeg. Raises DependencyError."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        hint = "apt-get install ffmpeg, or pip install imageio-ffmpeg"
        raise DependencyError("no ffmpeg program", hint=hint) from None


@cache
def encoder_version() -> str:
    """The ffmpeg program as it names itself. Raises DependencyError."""
    said = subprocess.run([find_ffmpeg(), "-version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return said.stdout.partition("\n")[0].partition(" Copyright")[0]


def output_fps(source: SourceInfo, settings: TranscodeSettings) -> Fraction:
    """The constant rate that a source gets."""
    return source.fps if settings.fps is None else Fraction(settings.fps).limit_denominator(10_000)


def transcode(path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, out: Path) -> Path:
    """The member for one source, as a file: `out`, written anew, or the source itself where the codec keeps it (ffmpeg
    then only decodes it, to find damage). Raises RefusedError, OSError where `out` cannot be written, and IngestError
    where ffmpeg was stopped from outside (Ctrl-C, out of memory): that says nothing about the source, which must not be
    refused for it."""
    expected = source.seconds * float(output_fps(source, settings))
    if expected > _MOST_REPEATS * source.frames + _FEW_FRAMES and not codec.untouched:
        detail = f"{source.frames} pictures are said to be shown for {source.seconds / 3600:.1f} h"
        raise RefusedError(Refusal.DAMAGED, detail)
    command = ffmpeg_command(path, source, codec, settings, out)
    try:
        done = subprocess.run(command, capture_output=True, timeout=settings.timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RefusedError(Refusal.TIMEOUT, f"after {settings.timeout:g} s") from None
    said = _first_line(done.stderr)
    if b"No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out.parent))
    if done.returncode in _STOPPED or (done.returncode == _FFMPEG_STOPPED and not said):
        raise IngestError(
            f"{path}: ffmpeg was stopped while it read this file (interrupted, or out of memory)",
            hint="run the same command again: it continues",
        )
    if done.returncode != 0 or said:
        raise RefusedError(Refusal.DAMAGED, said or f"ffmpeg ended with {done.returncode}")
    return path if codec.untouched else out


def ffmpeg_command(path: Path, source: SourceInfo, codec: Codec, settings: TranscodeSettings, out: Path) -> list[str]:
    rate, side, step = output_fps(source, settings), settings.short_side, SIDE_MULTIPLE

    def follow(long: str, short: str) -> str:
        return f"max({step},round(({long})*{side}/({short})/{step})*{step})"

    # A graph of filters that is made anew for each change of size or format begins again at time 0, and pictures are
    # lost; but the filters that turn or deinterlace pictures need it.
    remade = int(source.interlaced or source.mirrored or source.rotation != 0)
    given = ffmpeg.input(_SOURCE, threads=1, max_pixels=_MAX_PIXELS, reinit_filter=remade)[str(source.stream)]
    encoder = codec.encoder_arguments()
    if encoder is None:
        stream, encoder = given, {"f": "null"}
    else:
        colors = {
            "out_color_matrix": "bt601",
            "out_range": "full" if encoder["pix_fmt"].startswith("yuvj") else "limited",
        }
        tone_mapped = source.hdr and _has_filter("zscale") and _has_filter("tonemap")
        stream = given.filter("setpts", "PTS-STARTPTS")  # or else a late first picture comes twice
        if source.interlaced:
            stream = stream.filter("bwdif", deint="interlaced")
        stream = stream.filter("fps", fps=f"{rate.numerator}/{rate.denominator}", eof_action="pass")
        stream = stream.filter(
            "scale",
            w=f"if(lte(iw*sar,ih),{side},{follow('iw*sar', 'ih')})",
            h=f"if(lte(iw*sar,ih),{follow('ih', 'iw*sar')},{side})",
            flags=_SCALE_FLAGS,
            **({} if tone_mapped else colors),
        )
        if tone_mapped:
            stream = _tone_mapped(stream).filter("scale", flags=_SCALE_FLAGS, **colors)
        # Old ffmpegs convert the colors and keep the source's word on what they mean.
        stream = stream.filter("setparams", colorspace="smpte170m", range=colors["out_range"])
        stream = stream.filter("setsar", "1")
    arguments = {
        **encoder,
        "threads": 1,
        "map_metadata": -1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
    }
    if settings.max_seconds is not None:
        arguments["t"] = settings.max_seconds
    output = ffmpeg.output(stream, f"file:{out}", **arguments).global_args(
        "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror"
    )
    command: list[str] = ffmpeg.compile(output, cmd=find_ffmpeg())
    return [f"file:{path}" if part == _SOURCE else part for part in command]


def _tone_mapped(stream: Any) -> Any:
    """High dynamic range brought to the standard one: linear light, Hable's curve, BT.709, as RGB. BT.2100 knows no
    other primaries and, but for the one that is refused, no other matrix than these; files do not always say so."""
    stream = stream.filter("setparams", color_primaries="bt2020", colorspace="bt2020nc")
    stream = stream.filter("zscale", t="linear", npl=100).filter("format", "gbrpf32le").filter("zscale", p="bt709")
    stream = stream.filter("tonemap", "hable", desat=0)
    return stream.filter("zscale", t="bt709").filter("format", "gbrp")


@cache
def _has_filter(name: str) -> bool:
    said = subprocess.run([find_ffmpeg(), "-hide_banner", "-filters"], capture_output=True, stdin=subprocess.DEVNULL)
    return re.search(rf"^ *\S+ {name} ".encode(), said.stdout, flags=re.MULTILINE) is not None


def _first_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
