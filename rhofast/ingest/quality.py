"""How much a stored member lost against its source: PSNR and SSIM, by ffmpeg's own filters."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.ingest.probe import probe
from rhofast.ingest.transcode import TranscodeSettings, ffmpeg_command, find_ffmpeg

_BEST_PSNR = 60.0  # dB; of a frame that comes out unchanged it is infinite, and one such would hide all others


class _Uncompressed(JpegCodec):
    """The pictures that the encoders are given. YUV4MPEG is, like MP4, of a constant rate: what ffmpeg repeats at the
    beginning of a stream that starts late comes twice in both."""

    def encoder_arguments(self) -> dict[str, Any]:
        return {"vcodec": "wrapped_avframe", "pix_fmt": "yuvj420p", "f": "yuv4mpegpipe"}


def measure_quality(
    source: Path, settings: TranscodeSettings, member: Path, num_frames: int, scratch: Path
) -> tuple[float, float] | None:
    """(PSNR in dB, SSIM) of the luma of a stored member against its source, means over its frames. Both are compared in
    full range, so that neither range of 8 bits is an advantage. None where not every frame finds its like. Raises
    RefusedError for a source that cannot be read."""
    command = ffmpeg_command(source, probe(source), _Uncompressed(), settings, scratch / "unused")
    command = ["pipe:1" if part == f"file:{scratch / 'unused'}" else part for part in command]
    # Frames are paired by their number: their times may differ by what each container rounds.
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
    return fmean(min(one, _BEST_PSNR) for one in psnr), fmean(ssim)


def _per_frame(path: Path, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, path.read_text())] if path.exists() else []
