"""Compare hue rotation by a color matrix (rhofast) with hue rotation in HSV per pixel (torchvision).

    python -m benchmarks.data_loading.hue VIDEO_OR_FOLDER... [--out benchmarks/results]

Measured are the difference between the two results at the released strength, the difference that the operation itself
makes, and the CPU time per frame on one thread. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import functional as transforms

from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.color import color_matrix

SIDE = 224
COLUMNS = ("matrix", "shifts", "mean difference to HSV", "95 % within", "99 % within", "mean change by HSV")
COSTS = ("method", "CPU ms per frame, median", "lowest to highest")
HueShift = Callable[[torch.Tensor, float], torch.Tensor]

console = Console(width=120)


def frames_of(path: Path, count: int) -> list[npt.NDArray[np.uint8]]:
    """Return up to `count` evenly spaced frames of a video, cropped to the central square: u8[SIDE, SIDE, 3]."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.to_image() for number, frame in enumerate(container.decode(stream)) if number < 600]
    chosen = np.unique(np.linspace(0, len(shown) - 1, count).astype(int))
    return [np.asarray(central_square(shown[number])) for number in chosen]


def central_square(image: Image.Image) -> Image.Image:
    """Return the central square of a picture, resized to SIDE x SIDE."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def hue_matrix(shift: float) -> torch.Tensor:
    """Return the matrix of rhofast's plan for a hue shift alone, f32[3, 3]."""
    plan = color_matrix(
        factors=np.array([1.0, 1.0, 1.0, shift]),
        order=np.arange(4),
        apply=np.array(True),
        gray=np.array(False),
        mean_rgb=np.zeros(3),
    )
    return torch.from_numpy(plan[:, :3].copy())


def yiq_matrix(shift: float) -> torch.Tensor:
    """Return the matrix of the same rotation in YIQ, as in DALI's own hue operator, f32[3, 3]."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    cos, sin = np.cos(2 * np.pi * shift), np.sin(2 * np.pi * shift)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    return torch.from_numpy(np.linalg.inv(to_yiq) @ turn @ to_yiq).float()


def by_matrix(pictures: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply a matrix to pictures u8[N, 3, H, W]; the result is rounded and clamped."""
    turned = torch.einsum("ij,njhw->nihw", matrix, pictures.float())
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def in_hsv(pictures: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift the hue of pictures u8[N, 3, H, W] with torchvision."""
    return transforms.adjust_hue(pictures, shift)


def in_hsv_leanly(pictures: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift the hue in HSV with as few passes over the pixels as possible: value and chroma stay the same."""
    rgb = pictures.float()
    red, green, blue = rgb.unbind(1)
    value, top = rgb.max(1)
    chroma = value - rgb.amin(1)
    scale = 1 / chroma.clamp(min=1)
    sixth = torch.where(top == 0, (green - blue) * scale, (blue - red) * scale + 2)
    sixth = torch.where(top == 2, (red - green) * scale + 4, sixth) + 6 * shift
    out = torch.empty_like(rgb)
    for channel, place in enumerate((5, 3, 1)):
        ramp = (sixth + place).remainder_(6)
        ramp = torch.minimum(ramp, 4 - ramp).clamp_(0, 1)
        torch.addcmul(value, chroma, ramp, value=-1, out=out[:, channel])
    return out.round_().to(torch.uint8)


MATRICES = {"about the gray axis (rhofast)": hue_matrix, "in YIQ (DALI's hue)": yiq_matrix}
METHODS: dict[str, HueShift] = {
    "matrix": lambda pictures, shift: by_matrix(pictures, hue_matrix(shift)),
    "HSV, torchvision": in_hsv,
    "HSV, fewest passes": in_hsv_leanly,
}


def apart(pictures: torch.Tensor, matrix: Callable[[float], torch.Tensor], shifts: list[float]) -> dict[str, float]:
    """Return differences in levels of 0..255, over all pixels, channels and shifts.

    Args:
        pictures: u8[N, 3, H, W].
        matrix: Returns the matrix of a shift.
        shifts: The hue shifts, as shares of a full turn.

    Returns:
        mean, p95 and p99 of the difference between matrix and HSV; `moved`, the mean difference between a picture and
        its shifted version.
    """
    between, moved = [], []
    for shift in shifts:
        exact = in_hsv(pictures, shift).int()
        between.append((by_matrix(pictures, matrix(shift)).int() - exact).abs().flatten())
        moved.append((pictures.int() - exact).abs().float().mean())
    counts = torch.bincount(torch.cat(between), minlength=256).double()
    share = counts.cumsum(0) / counts.sum()
    return {
        "mean": float((counts * torch.arange(len(counts))).sum() / counts.sum()),
        "p95": int((share < 0.95).sum()),
        "p99": int((share < 0.99).sum()),
        "moved": float(torch.stack(moved).mean()),
    }


def costs(pictures: torch.Tensor, shift: float, rounds: int) -> dict[str, list[float]]:
    """Return CPU milliseconds per frame by method and round, for clips of 8 frames, after a warm-up round."""
    spent: dict[str, list[float]] = {name: [] for name in METHODS}
    clips = [clip for clip in pictures.split(8) if len(clip) == 8][:8]
    for number in range(rounds + 1):
        for name, way in METHODS.items():
            began = time.thread_time()
            for clip in clips:
                way(clip, shift)
            if number:
                spent[name].append(1000 * (time.thread_time() - began) / (8 * len(clips)))
    return spent


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Print a table and return it in Markdown."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [f"| {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--frames", type=int, default=8, help="frames per video (default: %(default)s)")
    parser.add_argument(
        "--shifts", type=int, default=16, help="hue shifts, evenly spaced in the released range (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=11, help="rounds of the timing (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for hue.json and hue.md")
    options = parser.parse_args()

    torch.set_num_threads(1)
    found, load = find_videos(options.videos), os.getloadavg()[0]
    pictures = torch.from_numpy(np.stack([frame for path in found for frame in frames_of(path, options.frames)]))
    pictures = pictures.permute(0, 3, 1, 2).contiguous()
    facts, strength = facts_of_the_machine(("torch", "torchvision", "numpy", "av")), AugmentConfig().hue
    shifts = [float(shift) for shift in np.linspace(-strength, strength, options.shifts)]
    distances = {
        (name, text): apart(pictures, matrix, turns)
        for name, matrix in MATRICES.items()
        for text, turns in ((f"{options.shifts} in +-{strength:g}", shifts), (f"{strength:g}", [strength]))
    }
    agree = (in_hsv(pictures, strength).int() - in_hsv_leanly(pictures, strength).int()).abs().float()
    spent = costs(pictures, strength, options.rounds)

    rows = [
        (*names, f"{each['mean']:.2f} levels", f"{each['p95']}", f"{each['p99']}", f"{each['moved']:.2f}")
        for names, each in distances.items()
    ]
    text = show("Matrix compared with HSV", COLUMNS, rows)
    rows = [
        (name, f"{statistics.median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}") for name, each in spent.items()
    ]
    text += show(f"Cost of hue alone, {SIDE} x {SIDE}, one thread", COSTS, rows)
    foot = (
        f"{len(pictures)} frames of {', '.join(path.name for path in found)}. The two HSV methods differ by "
        f"{agree.mean():.2f} levels on average (torchvision truncates, the other rounds)."
    )
    console.print(foot)
    if options.out is not None:
        report: dict[str, Any] = {
            "machine": facts,
            "levels": {" ".join(names): each for names, each in distances.items()},
            "ms_per_frame": spent,
        }
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "hue.json").write_text(json.dumps(report, indent=1))
        (options.out / "hue.md").write_text("\n".join([*text, foot, "", facts_line(facts, load), ""]))


if __name__ == "__main__":
    main()
