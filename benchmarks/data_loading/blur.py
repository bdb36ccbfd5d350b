"""Compare ways to blur the clips of a batch: one after the other, as on a CPU, and all at once, as on a GPU.

    python -m benchmarks.data_loading.blur [--clips 32] [--threads 1] [--out benchmarks/results]

Every clip has its own Gaussian. All ways get the same clips and sigmas, in the memory layout of the loader, and each
result is compared with the first one bit by bit. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.machine import facts_line, facts_of_the_machine, write_table
from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.finish import blur_clips, blur_kernels

FRAMES, SIDE = 8, 224
COLUMNS = ("way", "CPU ms per clip, median", "lowest to highest", "ratio, median", "apart, at most")


def clip_by_clip(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per clip: rhofast on a CPU."""
    for place, sigma in enumerate(sigmas):
        clips[place] = blur_clips(clips[place : place + 1], [sigma])[0]


def all_at_once(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per batch, with the kernel of each clip padded to the largest: rhofast on a GPU."""
    clips.copy_(blur_clips(clips, sigmas))


def by_kernel_size(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per kernel size, for all clips that have it."""
    sizes = [blur_kernels([sigma], SIDE).shape[1] for sigma in sigmas]
    for size in sorted(set(sizes)):
        places = [place for place, other in enumerate(sizes) if other == size]
        numbers = torch.tensor(places)
        blurred = blur_clips(clips.index_select(0, numbers), [sigmas[place] for place in places])
        clips.index_copy_(0, numbers, blurred)


def interleaved(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per frame of sixteen clips, whose 48 channels lie side by side in memory."""
    for first in range(0, len(sigmas), 16):
        some = slice(first, first + 16)
        kernels = blur_kernels(sigmas[some], SIDE).repeat_interleave(3, dim=0)[:, None, None, :]
        reach = kernels.shape[3] // 2
        for frame in range(FRAMES):
            picture = clips[some, frame].permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)[None]
            padded = functional.pad(picture, (reach,) * 4, mode="reflect")
            padded = padded.contiguous(memory_format=torch.channels_last)
            across = functional.conv2d(padded, kernels, groups=len(kernels))
            blurred = functional.conv2d(across, kernels.transpose(2, 3), groups=len(kernels))
            clips[some, frame] = blurred[0].unflatten(0, (-1, 3))


def padded_clip_by_clip(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per clip with a kernel padded to the largest of the batch: what padding alone costs."""
    for clip, kernel in zip(clips, blur_kernels(sigmas, SIDE), strict=True):
        clip.copy_(_convolve(clip, kernel))


def planes_clip_by_clip(clips: torch.Tensor, sigmas: list[float]) -> None:
    """Two convolutions per clip on contiguous planes of color: what the layout of the batch form alone costs."""
    for clip, sigma in zip(clips, sigmas, strict=True):
        clip.copy_(_convolve(clip.contiguous(), blur_kernels([sigma], SIDE)[0]))


def _convolve(clip: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Blur a clip f32[T, C, H, W] in two convolutions with a kernel f32[2 * reach + 1]."""
    weights = kernel.expand(3, 1, 1, -1).contiguous()
    padded = functional.pad(clip, (len(kernel) // 2,) * 4, mode="reflect")
    across = functional.conv2d(padded, weights, groups=3)
    return functional.conv2d(across, weights.transpose(2, 3), groups=3)


def sums_clip_by_clip(clips: torch.Tensor, sigmas: list[float]) -> None:
    """A weighted sum of shifted pictures per clip, without a convolution."""
    for clip, sigma in zip(clips, sigmas, strict=True):
        (kernel,) = blur_kernels([sigma], SIDE)
        padded = functional.pad(clip, (len(kernel) // 2,) * 4, mode="reflect")
        across = padded[..., :SIDE] * kernel[0]
        for shift, weight in enumerate(kernel.tolist()[1:], start=1):
            across.add_(padded[..., shift : shift + SIDE], alpha=weight)
        blurred = across[..., :SIDE, :] * kernel[0]
        for shift, weight in enumerate(kernel.tolist()[1:], start=1):
            blurred.add_(across[..., shift : shift + SIDE, :], alpha=weight)
        clip.copy_(blurred)


def sums_at_once(clips: torch.Tensor, sigmas: list[float]) -> None:
    """The same for all clips together, each with its weights."""
    kernels = blur_kernels(sigmas, SIDE)
    reach = kernels.shape[1] // 2
    flat = functional.pad(clips.flatten(0, 1), (reach,) * 4, mode="reflect")
    padded = flat.unflatten(0, clips.shape[:2])
    weights = kernels.T[..., None, None, None, None]
    across = padded[..., :SIDE] * weights[0]
    for shift in range(1, len(weights)):
        across.addcmul_(padded[..., shift : shift + SIDE], weights[shift])
    torch.mul(across[..., :SIDE, :], weights[0], out=clips)
    for shift in range(1, len(weights)):
        clips.addcmul_(across[..., shift : shift + SIDE, :], weights[shift])


WAYS: dict[str, Callable[[torch.Tensor, list[float]], None]] = {
    "clip by clip (rhofast on a CPU)": clip_by_clip,
    "all at once (rhofast on a GPU)": all_at_once,
    "all of one kernel size at once": by_kernel_size,
    "16 clips at once, interleaved": interleaved,
    "clip by clip, the largest kernel": padded_clip_by_clip,
    "clip by clip, contiguous planes": planes_clip_by_clip,
    "clip by clip, sums": sums_clip_by_clip,
    "all at once, sums": sums_at_once,
}


def make_clips(count: int) -> tuple[torch.Tensor, list[float]]:
    """Return clips f32[n, T, C, H, W], channels-last in memory, and sigmas drawn as training draws them."""
    pixels = torch.randn(count, FRAMES, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    sigmas = np.random.default_rng(0).uniform(*AugmentConfig().blur_sigma, count)
    return pixels.permute(0, 1, 4, 2, 3), sigmas.astype(np.float32).tolist()


def copy_of(clips: torch.Tensor) -> torch.Tensor:
    return clips.clone(memory_format=torch.preserve_format)


def compare(clips: torch.Tensor, sigmas: list[float]) -> dict[str, float]:
    """Return the largest difference between each way's result and the first one's; 0 means equal to the bit."""
    expected = copy_of(clips)
    clip_by_clip(expected, sigmas)
    apart = {}
    for name, way in WAYS.items():
        result = copy_of(clips)
        way(result, sigmas)
        apart[name] = 0.0 if torch.equal(result, expected) else float((result - expected).abs().max())
    return apart


def measure(clips: torch.Tensor, sigmas: list[float], rounds: int) -> dict[str, list[float]]:
    """Return CPU milliseconds of all threads per clip, by way and round, after a round that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            given = copy_of(clips)
            began = time.process_time()
            WAYS[name](given, sigmas)
            if number:
                spent[name].append(1000 * (time.process_time() - began) / len(sigmas))
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=32, help="clips to blur (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for blur.json and blur.md")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    load, facts = os.getloadavg()[0], facts_of_the_machine(("torch", "numpy"))
    clips, sigmas = make_clips(options.clips)
    apart, spent = compare(clips, sigmas), measure(clips, sigmas, options.rounds)
    first = next(iter(spent.values()))
    ratios = {name: [one / base for one, base in zip(each, first, strict=True)] for name, each in spent.items()}

    rows = [
        (
            name,
            f"{statistics.median(each):.2f}",
            f"{min(each):.2f} to {max(each):.2f}",
            f"{statistics.median(ratios[name]):.2f}",
            "0" if apart[name] == 0 else f"{apart[name]:.1g}",
        )
        for name, each in spent.items()
    ]
    foot = (
        f"{options.clips} clips of {FRAMES} frames of {SIDE} x {SIDE} pixels, {options.rounds} rounds, "
        f"torch.set_num_threads({options.threads}). Ratios are to the first way, within a round."
    )
    report = {"machine": facts, "options": {**vars(options), "out": None}, "ms_per_clip": spent, "apart": apart}
    title = f"{options.clips} clips of {FRAMES} frames of {SIDE} x {SIDE}"
    write_table("blur", title, COLUMNS, rows, notes=[foot, facts_line(facts, load)], report=report, out=options.out)


if __name__ == "__main__":
    main()
