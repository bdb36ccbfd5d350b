"""Hue turned by the color matrix, as rhofast does, against hue turned in HSV pixel by pixel, as torchvision does.

    python -m benchmarks.data_loading.hue VIDEO_OR_FOLDER... [--out benchmarks/results]

How far the pictures are apart at the released strength, against how far they are from the pictures before, and what
either costs a frame on one thread. benchmarks/README.md says what is measured and what is not.
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
from rhofast.data.sampling.augment import color_matrix

SIDE = 224
COLUMNS = ("matrix", "shifts", "apart from HSV, mean", "95 % within", "99 % within", "HSV moves them by, mean")
COSTS = ("way", "CPU ms a frame, median", "lowest to highest")
Turn = Callable[[torch.Tensor, float], torch.Tensor]

console = Console(width=120)


def frames_of(path: Path, count: int) -> list[npt.NDArray[np.uint8]]:
    """`count` frames of a video, or all, evenly apart: central squares, u8[SIDE, SIDE, 3]."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.to_image() for number, frame in enumerate(container.decode(stream)) if number < 600]
    chosen = np.unique(np.linspace(0, len(shown) - 1, count).astype(int))
    return [np.asarray(central_square(shown[number])) for number in chosen]


def central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def hue_matrix(shift: float) -> torch.Tensor:
    """What rhofast's plan holds for a hue shift alone, f32[3, 3]."""
    plan = color_matrix(
        factors=np.array([1.0, 1.0, 1.0, shift]),
        order=np.arange(4),
        apply=np.array(True),
        gray=np.array(False),
        mean_rgb=np.zeros(3),
    )
    return torch.from_numpy(plan[:, :3].copy())


def yiq_matrix(shift: float) -> torch.Tensor:
    """The same turn in YIQ, which is what DALI's own hue does, f32[3, 3]."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    cos, sin = np.cos(2 * np.pi * shift), np.sin(2 * np.pi * shift)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    return torch.from_numpy(np.linalg.inv(to_yiq) @ turn @ to_yiq).float()


def by_matrix(pictures: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """u8[N, 3, H, W]; rounded and clamped."""
    turned = torch.einsum("ij,njhw->nihw", matrix, pictures.float())
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def in_hsv(pictures: torch.Tensor, shift: float) -> torch.Tensor:
    """u8[N, 3, H, W], torchvision's."""
    return transforms.adjust_hue(pictures, shift)


def in_hsv_leanly(pictures: torch.Tensor, shift: float) -> torch.Tensor:
    """The same with as few passes over the pixels as we found: value and chroma stay, the hue's ramp is read anew."""
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
WAYS: dict[str, Turn] = {
    "a matrix": lambda pictures, shift: by_matrix(pictures, hue_matrix(shift)),
    "HSV, torchvision": in_hsv,
    "HSV, fewest passes": in_hsv_leanly,
}


def apart(pictures: torch.Tensor, matrix: Callable[[float], torch.Tensor], shifts: list[float]) -> dict[str, float]:
    """Levels (0..255) between matrix and HSV over all pixels, channels and shifts, and between before and after."""
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
    """CPU ms a frame of each way in each round, in turn, after one to warm up; a clip of 8 frames at a time."""
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    clips = [clip for clip in pictures.split(8) if len(clip) == 8][:8]
    for turn in range(rounds + 1):
        for name, way in WAYS.items():
            began = time.thread_time()
            for clip in clips:
                way(clip, shift)
            if turn:
                spent[name].append(1000 * (time.thread_time() - began) / (8 * len(clips)))
    return spent


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Print a table; the same in Markdown."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [f"| {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--frames", type=int, default=8, help="of each video")
    parser.add_argument("--shifts", type=int, default=16, help="evenly in the released range")
    parser.add_argument("--rounds", type=int, default=11)
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
    text = show("Matrix against HSV", COLUMNS, rows)
    rows = [
        (name, f"{statistics.median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}") for name, each in spent.items()
    ]
    text += show(f"Cost of hue alone, {SIDE} x {SIDE}, one thread", COSTS, rows)
    foot = (
        f"{len(pictures)} frames of {', '.join(path.name for path in found)}. The two HSV ways differ by "
        f"{agree.mean():.2f} levels in the mean (torchvision cuts off, the other rounds)."
    )
    console.print(foot)
    if options.out is not None:
        report: dict[str, Any] = {
            "machine": facts,
            "levels": {" ".join(names): each for names, each in distances.items()},
            "ms_a_frame": spent,
        }
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "hue.json").write_text(json.dumps(report, indent=1))
        (options.out / "hue.md").write_text("\n".join([*text, foot, "", facts_line(facts, load), ""]))


if __name__ == "__main__":
    main()
