"""Slow-R50's convolutions in three dimensions, as torch has them, and folded into two (backbones/convolution.py).

    python benchmarks/convolution.py [--width 16] [--size 112] [--clips 8] [--rounds 7] [--threads 2]

Forward and backward of each kernel that the network has, channels innermost; both take turns. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from machine import facts_line, facts_of_the_machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from rhofast.backbones import build_backbone
from rhofast.backbones.convolution import Conv3d

LAYOUT = torch.channels_last_3d


def convolutions(width: int, clip: torch.Tensor) -> dict[str, tuple[Conv3d, torch.Size]]:
    """The different convolutions of Slow-R50, and what goes in."""
    found: dict[str, tuple[Conv3d, torch.Size]] = {}

    def see(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, Conv3d)
        kernel = "x".join(map(str, module.kernel_size)) + (" / 2" if module.stride[1] == 2 else "")
        text = f"{kernel}, {module.in_channels} to {module.out_channels}, {given[0].shape[3]} px"
        found.setdefault(text, (module, given[0].shape))

    network = build_backbone("slow_r50", {"width": width})
    for module in network.modules():
        if isinstance(module, Conv3d):
            module.register_forward_pre_hook(see)
    with torch.no_grad():
        network(clip)
    return found


def turn(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of a forward and a backward."""
    began = time.perf_counter()
    forward(x).backward(gradient)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {"width": 16, "size": 112, "clips": 8, "frames": 8, "rounds": 7, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = torch.randn(given.clips, 3, given.frames, given.size, given.size)
    table = Table("kernel", "3D, ms", "folded, ms", "of its time", title="forward and backward, medians")
    total = [0.0, 0.0]
    for text, (conv, shape) in track(convolutions(given.width, clip).items(), description="convolutions"):
        conv = conv.to(device, memory_format=LAYOUT)  # type: ignore[call-overload]
        x = torch.randn(shape, device=device).to(memory_format=LAYOUT).requires_grad_(shape[1] > 3)
        gradient = torch.randn_like(conv(x))
        ways = [lambda x, conv=conv: nn.Conv3d.forward(conv, x), conv.forward]
        seconds = [[turn(way, x, gradient) for way in ways] for _ in range(given.rounds + 1)][1:]
        medians = [statistics.median(pair[way] for pair in seconds) for way in (0, 1)]
        ratio = statistics.median(pair[1] / pair[0] for pair in seconds)
        table.add_row(text, *(f"{1000 * value:.2f}" for value in medians), f"{ratio:.2f}")
        total = [before + value for before, value in zip(total, medians, strict=True)]
    table.add_row("each once", *(f"{1000 * value:.1f}" for value in total), f"{total[1] / total[0]:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(facts_line(facts_of_the_machine(("torch",)), os.getloadavg()[0]), highlight=False)


if __name__ == "__main__":
    main()
