"""The last steps of augmentation in torch, on the output of the DALI graph.

    clamp --> blur --> RandAugment (rand_augment.py) --> erase --> mix with the neighbor (mixing.py)

They run here because the convolution of torch over the innermost channels takes a third of the time of DALI's blur on a
CPU, and because they can run in another thread while DALI decodes the next batch.

The blur is a Gaussian cut at 2.5 sigma. The released one is three passes of a box, which end at 2.3 sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rhofast.data.decode.mixing import erase_boxes, mix_neighbors
from rhofast.data.decode.rand_augment import apply_ops
from rhofast.data.types import AugmentPlan

_BLUR_REACH = 2.5  # sigmas

Bound = float | torch.Tensor


def finish(
    pixels: torch.Tensor,
    plan: AugmentPlan,
    *,
    bounds: tuple[Bound, Bound] | None,
    blur: bool,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Finish the clips of a batch in place as their plan says, then convert them on a GPU.

    Args:
        pixels: Normalized pixels on the device, f32[B, P, C, T, H, W], channels-last in memory. They are overwritten.
        plan: Augmentation of the clips.
        bounds: Smallest and largest value, as a number or as f32[C] on the device of `pixels`; None to skip the clamp.
        blur: Whether clips may be blurred.
        mean: Mean of the normalization, f32[3].
        std: Standard deviation of the normalization, f32[3].
        dtype: Dtype of the result on a GPU, float32 or float16. On the CPU the result is always float32.

    Returns:
        `pixels` on the CPU. On a GPU a copy in memory of torch, which knows on which streams it is in use; the memory
        of `pixels` belongs to DALI.
    """
    if bounds is not None:
        pixels.permute(0, 1, 3, 4, 5, 2).clamp_(*bounds)  # type: ignore[arg-type]
    if blur:
        _blur(pixels.transpose(2, 3), plan.blur)
    if plan.ops is not None and plan.amounts is not None:
        apply_ops(pixels, plan.ops, plan.amounts, mean=mean, std=std)
    if plan.erase is not None:
        erase_boxes(pixels, plan.erase, plan.noise)
    if plan.share is not None and plan.cut is not None:
        mix_neighbors(pixels, plan.share, plan.cut)
    if pixels.device.type == "cpu":
        return pixels
    return pixels.to(dtype, copy=True)


def channel_bound(values: npt.NDArray[np.float32], device: torch.device) -> Bound:
    """Return one bound per channel in the form that `finish` clamps with.

    Args:
        values: The bound of each channel, f32[C].
        device: Device of the pixels.

    Returns:
        A number if all channels have the same bound, which is faster; otherwise f32[C] on the device.
    """
    if np.ptp(values) == 0:
        return float(values[0])
    return torch.from_numpy(values).to(device)


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device; to a GPU, the copy is queued on the current stream without a wait."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _blur(pixels: torch.Tensor, sigmas: npt.NDArray[np.float32]) -> None:
    """Blur clips in place.

    On the CPU one clip follows the other, where it lies. All clips at once would need another memory layout, and take
    four to five times as long (benchmarks/data_loading/blur.py, which tries other forms, too). On a GPU the number of
    kernels counts, so all clips are blurred at once, with the same result.

    Args:
        pixels: The clips, f32[B, P, T, C, H, W].
        sigmas: Sigma for each clip in pixels, f32[B, P]; 0 leaves a clip as it is.
    """
    clips, flat = pixels.flatten(0, 1), sigmas.reshape(-1)
    places = torch.from_numpy(np.flatnonzero(flat > 0))
    if pixels.device.type == "cpu":
        for place in places.tolist():
            clips[place] = blur_clips(clips[place : place + 1], flat[place : place + 1].tolist())[0]
    elif len(places):
        numbers = copy_to_device(places, pixels.device)
        clips.index_copy_(0, numbers, blur_clips(clips.index_select(0, numbers), flat[places.numpy()].tolist()))


def blur_clips(clips: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Blur clips, each with its own Gaussian, in two convolutions; beyond its edges a picture is mirrored.

    Args:
        clips: f32[n, T, C, H, W], with H = W.
        sigmas: Sigma of each clip in pixels, n numbers > 0.

    Returns:
        The blurred clips, f32[n, T, C, H, W].
    """
    n, t, c, height, width = clips.shape
    weights = blur_kernels(sigmas, width)
    most = weights.shape[1] // 2
    horizontal = copy_to_device(weights.repeat_interleave(c, dim=0)[:, None, None, :], clips.device)
    planes = clips.transpose(0, 1).reshape(t, n * c, height, width)  # a channel per clip and color
    blurred = functional.conv2d(functional.pad(planes, (most,) * 4, mode="reflect"), horizontal, groups=n * c)
    blurred = functional.conv2d(blurred, horizontal.transpose(2, 3), groups=n * c)
    return blurred.view(t, n, c, height, width).transpose(0, 1)


def blur_kernels(sigmas: Sequence[float], width: int) -> torch.Tensor:
    """Return the Gaussian of each clip, padded with zeros on both sides to the longest.

    Args:
        sigmas: Sigma of each clip in pixels, n numbers > 0.
        width: Width of the pictures in pixels.

    Returns:
        f32[n, 2 * reach + 1], where reach is the largest of 2.5 sigma, less than `width`.
    """
    reaches = [min(math.ceil(_BLUR_REACH * sigma), width - 1) for sigma in sigmas]
    most = max(reaches)
    kernels = torch.zeros(len(sigmas), 2 * most + 1)
    for row, sigma, reach in zip(kernels, sigmas, reaches, strict=True):
        bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        row[most - reach : most + reach + 1] = bell / bell.sum()
    return kernels
