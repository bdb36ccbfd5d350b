"""Measure the quality of a stored member against its source: PSNR and SSIM, by ffmpeg's own filters."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.ingest.cut import Window
from rhofast.ingest.probe import SourceInfo, probe
from rhofast.ingest.transcode import TranscodeSettings, ffmpeg_command, find_ffmpeg

_BEST_PSNR = 60.0  # dB; an unchanged frame has infinite PSNR and would dominate the mean


class _Uncompressed(JpegCodec):
    """The encoders' input, uncompressed.

    YUV4MPEG has a constant rate, like MP4: the frames that ffmpeg repeats at the beginning of a stream that starts late
    are repeated in both.
    """

    def encoder_arguments(self) -> dict[str, Any]:
        return {"vcodec": "wrapped_avframe", "pix_fmt": "yuvj420p", "f": "yuv4mpegpipe"}


def measure_quality(
    source: Path,
    settings: TranscodeSettings,
    member: Path,
    num_frames: int,
    scratch: Path,
    *,
    info: SourceInfo | None = None,
    window: Window | None = None,
) -> tuple[float, float] | None:
    """Compare the luma of a stored member with its source.

    Both are compared in full range, so that neither 8-bit range has an advantage.

    Args:
        source: The source file.
        settings: How it was transcoded.
        member: The stored member, as a file.
        num_frames: Number of frames in the member.
        scratch: A folder for temporary files.
        info: What is inside the source; None: it is found out.
        window: The frames of the source that are in the member; None for all.

    Returns:
        (PSNR in dB, SSIM), means over the frames; None if the frames cannot be paired.

    Raises:
        RefusedError: The source cannot be read.
    """
    command = ffmpeg_command(source, info or probe(source), _Uncompressed(), settings, scratch / "unused", window)
    command = ["pipe:1" if argument == f"file:{scratch / 'unused'}" else argument for argument in command]
    # Frames are paired by number: their times may differ by each container's rounding.
    same = "settb=1/25,setpts=N,split"
    graph = (
        f"[0:v]scale=out_range=full,format=yuvj420p,extractplanes=y,{same}[stored1][stored2];"
        f"[1:v]extractplanes=y,{same}[given1][given2];"
        "[stored1][given1]psnr=stats_file=psnr:shortest=1[one];[stored2][given2]ssim=stats_file=ssim:shortest=1[two]"
    )
    compare = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-threads", "1", "-i", f"file:{member.resolve()}"]
    compare += ["-f", "yuv4mpegpipe", "-i", "pipe:0", "-filter_complex", graph]
    compare += ["-map", "[one]", "-f", "null", "-", "-map", "[two]", "-f", "null", "-"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as given:
        done = subprocess.run(compare, stdin=given.stdout, capture_output=True, cwd=scratch)
    psnr = _per_frame(scratch / "psnr", r"psnr_y:(\S+)")
    ssim = _per_frame(scratch / "ssim", r"Y:(\S+)")
    if done.returncode != 0 or not len(psnr) == len(ssim) == num_frames:
        return None
    return fmean(min(value, _BEST_PSNR) for value in psnr), fmean(ssim)


def _per_frame(path: Path, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, path.read_text())] if path.exists() else []
