"""Test videos of gray pictures that show their numbers as bright and dark bars, made by ffmpeg from any encoder."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.containers import open_container

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
BITS, BAR, HEIGHT = 8, 16, 64


def bars(number: int) -> npt.NDArray[np.uint8]:
    """A picture that shows its number."""
    levels = [210 if number >> bit & 1 else 40 for bit in range(BITS)]
    return np.tile(np.repeat(np.array(levels, dtype=np.uint8), BAR), (HEIGHT, 1))


def number_in(picture: npt.NDArray[np.uint8]) -> int:
    """The number that a gray picture u8[H, W] shows."""
    wide = picture.shape[1] // BITS
    levels = picture[:, wide // 2 :: wide].mean(axis=0)
    return sum(int(level > 125) << bit for bit, level in enumerate(levels))


def numbers_in(path: Path) -> list[int]:
    """The number that each picture of a video shows, in the order of decoding by PyAV."""
    with path.open("rb") as file, open_container(file, mp4=False) as container:
        return [number_in(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def run_ffmpeg(*arguments: str | Path, pictures: range = range(0)) -> None:
    """Run ffmpeg, with numbered pictures as its input."""
    command = [FFMPEG, "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, input=b"".join(bars(number).tobytes() for number in pictures))


def write_bars(path: Path, rate: Fraction | int, count: int, *encoder: str) -> Path:
    """Encode pictures 0, 1, ... at a rate."""
    raw = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{BITS * BAR}x{HEIGHT}", "-r", str(rate), "-i", "pipe:0")
    run_ffmpeg(*raw, *encoder, path, pictures=range(count))
    return path
