"""Test videos whose pixels tell what they are: color patches in the corners, the frame's number in the middle.

Pictures are made in RGB and converted to Y'CbCr here, by the formulas of BT.601, BT.709 and BT.2020, so that what a
transcoder makes of them is checked against something that no ffmpeg has touched.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

CORNERS = {(0, 0): (200, 40, 50), (0, 1): (40, 180, 60), (1, 0): (50, 60, 210), (1, 1): (210, 190, 40)}
RATE, FRAMES = 10, 6
KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
TAGS = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}

Picture = npt.NDArray[np.uint8]


def gray_of(number: int) -> int:
    return 20 + 14 * number


def number_of(picture: npt.NDArray[np.generic]) -> float:
    """The number that a picture shows in its middle."""
    height, width = picture.shape[:2]
    middle = picture[height * 4 // 10 : height * 6 // 10 or 1, width * 4 // 10 : width * 6 // 10 or 1]
    return (float(middle.mean()) - 20) / 14


def paint(number: int, size: tuple[int, int]) -> Picture:
    """Frame `number` in RGB, u8[H, W, 3]."""
    width, height = size
    picture = np.full((height, width, 3), gray_of(number), dtype=np.uint8)
    for (below, right), color in CORNERS.items():
        rows = slice(height - height // 3, height) if below else slice(0, height // 3)
        columns = slice(width - width // 3, width) if right else slice(0, width // 3)
        picture[rows, columns] = color
    return picture


def corners_of(picture: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """The colors of the corner patches: f64[2, 2, 3], by row and column."""
    height, width = picture.shape[:2]

    def patch(below: int, right: int) -> npt.NDArray[np.float64]:
        y, x = (height * 5 // 6 if below else height // 6), (width * 5 // 6 if right else width // 6)
        around_y, around_x = max(1, height // 20), max(1, width // 20)
        area = picture[y - around_y : y + around_y, x - around_x : x + around_x]
        return np.asarray(area.reshape(-1, 3).mean(axis=0), dtype=np.float64)

    return np.array([[patch(below, right) for right in (0, 1)] for below in (0, 1)])


UPRIGHT = np.array([[CORNERS[below, right] for right in (0, 1)] for below in (0, 1)], dtype=np.float64)


def to_planes(picture: Picture, *, matrix: str, full: bool, bits: int, chroma: str) -> bytes:
    """RGB to planar Y'CbCr, little endian where more than 8 bits."""
    red, green, blue = np.moveaxis(picture.astype(np.float64) / 255, -1, 0)
    kr, kb = KR_KB[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    across, down = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[chroma]
    out = b""
    for number, plane in enumerate(planes):
        if number:
            padded = np.pad(plane, ((0, -plane.shape[0] % down), (0, -plane.shape[1] % across)), mode="edge")
            rows, columns = padded.shape
            plane = padded.reshape(rows // down, down, columns // across, across).mean(axis=(1, 3))
        if full:
            levels = plane * (2**bits - 1) + (2 ** (bits - 1) if number else 0)
        else:
            levels = plane * (224 if number else 219) * 2 ** (bits - 8) + (128 if number else 16) * 2 ** (bits - 8)
        out += np.clip(np.round(levels), 0, 2**bits - 1).astype("u1" if bits == 8 else "<u2").tobytes()
    return out


def write_video(
    program: str,
    path: Path,
    *encoder: str,
    size: tuple[int, int] = (64, 48),
    frames: int = FRAMES,
    rate: str = str(RATE),
    matrix: str = "bt601",
    full: bool = False,
    bits: int = 8,
    chroma: str = "420",
    rgb: bool = False,
    tagged: bool = True,
    filters: str = "",
    more_input: tuple[str, ...] = (),
    shown: npt.NDArray[np.uint8] | None = None,
) -> Path:
    """Encode frames 0, 1, ... with an ffmpeg program. encoder: its output options. shown: other pictures instead."""
    pictures = [paint(number, size) for number in range(frames)] if shown is None else list(shown)
    size = (pictures[0].shape[1], pictures[0].shape[0])
    if rgb:
        content, pixel_format = b"".join(picture.tobytes() for picture in pictures), "rgb24"
    else:
        content = b"".join(
            to_planes(picture, matrix=matrix, full=full, bits=bits, chroma=chroma) for picture in pictures
        )
        pixel_format = f"yuv{chroma}p" + ("" if bits == 8 else f"{bits}le")
    chain = [f"setparams=colorspace={TAGS[matrix]}:range={'pc' if full else 'tv'}"] if tagged and not rgb else []
    chain += [filters] if filters else []
    command = [program, "-y", "-hide_banner", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", pixel_format, "-s", f"{size[0]}x{size[1]}", "-r", rate, "-i", "pipe:0"]
    command += [*more_input, *(["-vf", ",".join(chain)] if chain else []), "-threads", "1", *encoder, f"file:{path}"]
    done = subprocess.run(command, input=content, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
    return path
