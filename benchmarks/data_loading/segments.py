"""Segments of long files: is each cut frame-exactly, and what does one near the end cost?

    exact    videos of numbered pictures in many kinds of streams and containers. Of each, random segments are stored by
             `jpeg` and by `remux`, and compared with what a decode of the whole shows in their time: the same pictures
             of `jpeg` as the whole video has, byte by byte, and the same frames of `remux`, bit by bit.
    cost     seconds for one segment of 2 seconds, by its place in a long file; what is read once per file is
             listed by itself.

The program exits with 1 if a frame is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from rich.console import Console

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.types import VideoRecord
from rhofast.ingest.dry_run import cpu_seconds
from rhofast.ingest.opened import LastSource
from rhofast.ingest.packets import read_packets
from rhofast.ingest.probe import RefusedError, probe
from rhofast.ingest.sample import make_sample
from rhofast.ingest.source import source_state
from rhofast.ingest.transcode import TranscodeSettings, encoder_version, find_ffmpeg
from rhofast.ingest.writer import NewSample

BITS, BAR, HEIGHT = 10, 16, 64
NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)
COUNT, LONGEST = 450, 2.0  # pictures of a video, and seconds of a segment
SETTINGS = TranscodeSettings(short_side=64)
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
X265 = ("-c:v", "libx265", "-preset", "veryfast", "-pix_fmt", "yuv420p")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-pix_fmt", "yuv420p")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "2", "-pix_fmt", "yuv420p")

console = Console(width=120)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How a video is made.

    Attributes:
        suffix: Of its file.
        encoder: Arguments of ffmpeg.
        rate: Pictures per second.
        copied: Arguments before the input of a copy of its packets, which is the video then; None without one.
        vary: Whether pictures are left out, so that the rate varies.
    """

    suffix: str
    encoder: tuple[str, ...]
    rate: Fraction | int = 30
    copied: tuple[str, ...] | None = None
    vary: bool = False


def x264(parameters: str) -> tuple[str, ...]:
    """Return arguments of ffmpeg for x264."""
    return (*X264, "-x264-params", parameters)


def x265(parameters: str, *more: str) -> tuple[str, ...]:
    """Return arguments of ffmpeg for x265, whose groups are open by default."""
    return (*X265, *more, "-x265-params", f"log-level=0:pools=none:{parameters}")


OPEN_PYRAMID = "open-gop=1:bframes=4:keyint=33:min-keyint=33:scenecut=0:b-adapt=0"
KINDS = {
    "h264, 30/s, B-frames": Kind(suffix="mp4", encoder=x264("keyint=48:bframes=3")),
    "h264, 29.97/s": Kind(suffix="mp4", encoder=x264("keyint=60"), rate=NTSC),
    "h264, 24/s": Kind(suffix="mov", encoder=x264("keyint=48"), rate=24),
    "h264, 23.976/s, Matroska": Kind(suffix="mkv", encoder=x264("keyint=48"), rate=FILM),
    "h264, 30/s, Matroska": Kind(suffix="mkv", encoder=x264("keyint=48:bframes=2")),
    "h264, long groups": Kind(suffix="mp4", encoder=x264("keyint=250")),
    "h264, variable rate": Kind(suffix="mp4", encoder=x264("keyint=40"), rate=60, vary=True),
    "h264, variable rate, Matroska": Kind(suffix="mkv", encoder=x264("keyint=40:bframes=3"), rate=60, vary=True),
    "h264, open groups": Kind(suffix="mp4", encoder=x264("open-gop=1:bframes=3:keyint=48")),
    "h264, open groups, B-frames refer to B-frames": Kind(suffix="mp4", encoder=x264(OPEN_PYRAMID)),
    "h264, open groups, plain B-frames": Kind(suffix="mkv", encoder=x264(f"{OPEN_PYRAMID}:b-pyramid=none")),
    "h264, open groups, transport stream": Kind(suffix="ts", encoder=x264(f"{OPEN_PYRAMID}:b-pyramid=none")),
    "h264, refreshed bit by bit": Kind(suffix="mp4", encoder=x264("intra-refresh=1:keyint=40")),
    "h264, edit list": Kind(suffix="mp4", encoder=x264("keyint=48:bframes=3"), copied=("-ss", "0.9")),
    "h264, late start": Kind(suffix="mp4", encoder=x264("keyint=48"), rate=NTSC, copied=("-itsoffset", "2.7")),
    "h264, AVI without times": Kind(suffix="avi", encoder=x264("keyint=48:bframes=0")),
    "h264, AVI without times, B-frames": Kind(suffix="avi", encoder=x264("keyint=48:bframes=3")),
    "h264, transport stream": Kind(suffix="ts", encoder=x264("keyint=48:bframes=3"), rate=25),
    "h264, raw stream": Kind(suffix="h264", encoder=x264("keyint=48:bframes=3"), rate=25),
    "hevc, open groups": Kind(suffix="mp4", encoder=x265("keyint=48")),
    "hevc, open groups, 29.97/s, Matroska": Kind(suffix="mkv", encoder=x265("keyint=40:bframes=6"), rate=NTSC),
    "hevc, open groups, transport stream": Kind(suffix="ts", encoder=x265("keyint=48"), rate=25),
    "hevc, open groups, 10 bits": Kind(suffix="mp4", encoder=x265("keyint=48", "-pix_fmt", "yuv420p10le"), rate=24),
    "hevc, closed groups": Kind(suffix="mp4", encoder=x265("keyint=48:open-gop=0")),
    "hevc, open groups, cut out, Matroska": Kind(suffix="mkv", encoder=x265("keyint=48"), copied=("-ss", "2.9")),
    "hevc, open groups, cut out, transport stream": Kind(suffix="ts", encoder=x265("keyint=48"), copied=("-ss", "2.9")),
    "mpeg2, cut out, transport stream": Kind(
        suffix="ts", encoder=(*MPEG2, "-g", "15", "-bf", "2"), copied=("-ss", "3")
    ),
    "hevc, edit list, open groups": Kind(suffix="mp4", encoder=x265("keyint=48"), copied=("-ss", "2.9")),
    "vp9": Kind(suffix="webm", encoder=("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "48")),
    "vp9, hidden pictures": Kind(
        suffix="webm",
        encoder=("-c:v", "libvpx-vp9", "-cpu-used", "5", "-g", "48", "-lag-in-frames", "12", "-auto-alt-ref", "1"),
    ),
    "av1": Kind(suffix="mp4", encoder=("-c:v", "libsvtav1", "-preset", "12", "-g", "48", "-pix_fmt", "yuv420p")),
    "mpeg2, transport stream": Kind(suffix="ts", encoder=(*MPEG2, "-g", "15", "-bf", "2"), rate=25),
    "mpeg2, program stream": Kind(suffix="mpg", encoder=(*MPEG2, "-g", "15", "-bf", "2"), rate=25),
    "mpeg4, AVI without times, B-frames": Kind(suffix="avi", encoder=(*MPEG4, "-g", "48", "-bf", "2"), rate=25),
    "mpeg4, pixels of 4:3": Kind(suffix="mkv", encoder=(*MPEG4, "-g", "48", "-vf", "setsar=4/3")),
    "h264, turned": Kind(suffix="mp4", encoder=x264("keyint=48"), copied=("-display_rotation", "180")),
}


def bars(number: int) -> npt.NDArray[np.uint8]:
    """Return a picture that shows its number as bright and dark bars."""
    levels = [210 if number >> bit & 1 else 40 for bit in range(BITS)]
    return np.tile(np.repeat(np.array(levels, dtype=np.uint8), BAR), (HEIGHT, 1))


def number_in(picture: npt.NDArray[np.uint8]) -> int:
    """Return the number that a gray picture u8[H, W] shows."""
    wide = picture.shape[1] // BITS
    return sum(int(level > 125) << bit for bit, level in enumerate(picture[:, wide // 2 :: wide][:, :BITS].mean(0)))


def run_ffmpeg(*arguments: str | Path, content: bytes = b"") -> None:
    command = [find_ffmpeg(), "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, input=content)


def make(kind: Kind, folder: Path) -> Path:
    """Make a video of numbered pictures."""
    path, original = folder / f"video.{kind.suffix}", folder / f"original.{kind.suffix}"
    raw = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{BITS * BAR}x{HEIGHT}", "-r", str(kind.rate), "-i", "pipe:0")
    varied = ("-vf", "select=lt(mod(n*7\\,11)\\,5)", "-fps_mode", "vfr") if kind.vary else ()
    content = b"".join(bars(number).tobytes() for number in range(COUNT))
    run_ffmpeg(*raw, *varied, *kind.encoder, path if kind.copied is None else original, content=content)
    if kind.copied is not None:
        run_ffmpeg(*kind.copied, "-i", original, "-c", "copy", path)
    return path


def sample_of(
    path: Path, scratch: Path, codec: Codec, sources: LastSource, times: Sequence[float | None] = (None, None)
) -> NewSample:
    """Store a segment of a video."""
    record = VideoRecord(key="x", path=path, start=times[0], end=times[1])
    return make_sample(record, [codec], SETTINGS, scratch, sources=sources, state=source_state(path))


def digest(frame: Any) -> bytes:
    return hashlib.blake2b(frame.to_ndarray().tobytes()).digest()


def shown(path: Path) -> tuple[list[float], list[int], list[bytes]]:
    """Decode a whole video: when each picture is shown, in seconds since the first, its number, and a digest."""
    source = probe(path)
    times, numbers, digests = list[float](), list[int](), list[bytes]()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for place, frame in enumerate(container.decode(stream)):
            is_timed = path.suffix not in (".avi", ".h264", ".mpg")  # without times, or with wrong ones
            times.append(float(frame.pts * stream.time_base) if is_timed else float(place / source.fps))
            gray = frame.to_ndarray(format="gray")
            numbers.append(number_in(gray[:, ::-1] if source.rotation else gray))
            digests.append(digest(frame))
    return [time - times[0] for time in times], numbers, digests


def wanted_of(times: list[float], rate: Fraction | None, start: float, end: float) -> list[int]:
    """Return the pictures of the frames of [start, end) seconds, of which some may be shown more than once.

    Args:
        times: When each picture is shown, in seconds.
        rate: Frames per second if frame k shows the last picture up to k / rate, rounded to frames; None if pictures
            are frames.
        start: Beginning.
        end: End.
    """
    tick = 1e-6
    if rate is None:
        return [place for place, time in enumerate(times) if start - tick <= time < end - tick]
    frames = np.floor(np.array(times) * float(rate) + 0.5 + tick).astype(int)
    chosen = [k for k in range(int(frames[-1]) + 1) if start - tick <= k / rate < end - tick]
    return [int(np.searchsorted(frames, k, side="right")) - 1 for k in chosen]


def exactness(kind: Kind, count: int, folder: Path) -> dict[str, Any]:
    """Store random segments of one kind of video; return how many are wrong."""
    path, draw, jpeg, remux = make(kind, folder), np.random.default_rng(0), JpegCodec(), RemuxCodec(max_group=10_000)
    source, (times, numbers, digests) = probe(path), shown(path)
    packets, sources = read_packets(path, source), LastSource()
    found: dict[str, Any] = {
        "rate": float(source.fps),
        "entered": 0 if packets is None else int((packets.entries.closed | packets.entries.open).sum()),
        "segments": count,
        "jpeg": 0,
        "remux": 0,
    }
    pictures = pictures_of(sample_of(path, fresh(folder), jpeg, sources))
    most = times[-1] if source.constant else times[-1] - LONGEST - 1 / float(source.fps)
    for _ in range(count):
        start = round(draw.uniform(0, most), 3)
        end = round(start + draw.uniform(0, LONGEST), 3)
        wanted = wanted_of(times, None if source.constant else source.fps, start, end)
        for name, codec in (("jpeg", jpeg), ("remux", remux)):
            if isinstance(found[name], str):
                continue
            try:
                sample = sample_of(path, fresh(folder), codec, sources, (start, end))
            except RefusedError as error:
                if str(error.reason) != "outside_video":
                    found[name] = f"{error.reason}: {error.detail}"
                elif wanted:
                    found[name] += 1
                continue
            found[name] += not fits(sample, path, name, wanted, numbers, digests, pictures)
    return found


def fits(
    sample: NewSample,
    path: Path,
    name: str,
    wanted: list[int],
    numbers: list[int],
    digests: list[bytes],
    pictures: list[bytes],
) -> bool:
    """Return whether a sample has the wanted pictures."""
    with av.open(str(sample.file)) as container:
        container.streams.video[0].thread_count = 1
        frames = list(container.decode(video=0))
    if name == "remux":
        lead = -int(sample.member.units.frame[0])
        chosen = frames[lead : lead + sample.member.num_frames]
        return [digest(frame) for frame in chosen] == [digests[place] for place in wanted]
    stored = [number_in(frame.to_ndarray(format="gray")) for frame in frames]
    return stored == [numbers[place] for place in wanted] and set(pictures_of(sample)) <= set(pictures)


def pictures_of(sample: NewSample) -> list[bytes]:
    """Return the encoded pictures of a sample of codec jpeg."""
    content, units = sample.file.read_bytes(), sample.member.units
    return [content[begin : begin + size] for begin, size in zip(units.offset, units.size, strict=True)]


def fresh(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


# ---- what a segment costs ----

LONG = {
    "h264, MP4": Kind(suffix="mp4", encoder=x264("keyint=250")),
    "hevc, open groups, MP4": Kind(suffix="mp4", encoder=x265("keyint=250", "-preset", "superfast")),
    "h264, open groups, Matroska": Kind(suffix="mkv", encoder=x264("keyint=250:open-gop=1")),
    "h264, transport stream": Kind(suffix="ts", encoder=x264("keyint=250")),
    "mpeg4, AVI, B-frames": Kind(suffix="avi", encoder=(*MPEG4, "-g", "250", "-bf", "2")),
}


def cost(kind: Kind, seconds: int, folder: Path) -> dict[str, float]:
    """Return the CPU seconds for a segment by its place in a long video, and those that are spent once per file."""
    path = folder / f"video.{kind.suffix}"
    given = ("-f", "lavfi", "-i", f"testsrc2=s=320x180:r=25:d={seconds}")
    run_ffmpeg(*given, *kind.encoder, path)
    sources, found = LastSource(), dict[str, float]()
    for name, start in (("first", 1.0), ("begin", 5.0), ("middle", seconds / 2), ("end", seconds - 5.0)):
        begun, since = cpu_seconds(), time.perf_counter()
        sample = sample_of(path, fresh(folder), JpegCodec(), sources, (start, start + 2))
        found[name], found[f"{name}_wall"] = cpu_seconds() - begun, time.perf_counter() - since
        if sample.member.num_frames != 50:
            raise SystemExit(f"{path}: {sample.member.num_frames} frames in 2 seconds")
    return {**found, "once": found["first"] - found["begin"]}


def lines_of(report: dict[str, Any]) -> list[str]:
    lines = ["| video | frames/s | entries | segments | `jpeg`, wrong | `remux`, wrong |", "|---|--:|--:|--:|--:|---|"]
    for name, one in report["exact"].items():
        cells = (f"{one['rate']:.3f}", one["entered"], one["segments"], one["jpeg"], one["remux"])
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    if "cost" in report:
        lines += ["", "CPU seconds of one segment of 2 s, and what is spent once per file:", ""]
        lines += [
            f"| video of {report['minutes']:g} minutes | at 5 s | in the middle | 5 s before the end | once |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, one in report["cost"].items():
            cells = [f"{one[place]:.2f}" for place in ("begin", "middle", "end", "once")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--segments", type=int, default=200, help="segments per video (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of long videos; 0 for none (default: %(default)s)")
    parser.add_argument("--only", default="", help="kinds whose name has this word")
    parser.add_argument("--out", type=Path, help="folder for segments.json and segments.md")
    options = parser.parse_args()

    load, facts = os.getloadavg()[0], facts_of_the_machine(("av", "numpy"))
    facts["versions"]["ffmpeg"] = encoder_version()
    report: dict[str, Any] = {"machine": facts, "minutes": options.minutes, "exact": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, kind in KINDS.items():
            if options.only in name and options.segments:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    report["exact"][name] = exactness(kind, options.segments, Path(folder))
                console.print(name, report["exact"][name], markup=False)
        for name, kind in LONG.items():
            if options.only in name and options.minutes:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    report.setdefault("cost", {})[name] = cost(kind, round(60 * options.minutes), Path(folder))
                console.print(name, report["cost"][name], markup=False)
    text = "\n".join([*lines_of(report), facts_line(facts, load), ""])
    console.print(text, markup=False)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "segments.json").write_text(json.dumps(report, indent=1))
        (options.out / "segments.md").write_text(text)
    exact = report["exact"].items()
    if wrong := [
        name for name, one in exact if one["jpeg"] or not (isinstance(one["remux"], str) or one["remux"] == 0)
    ]:
        raise SystemExit(f"wrong segments: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
