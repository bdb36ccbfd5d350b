"""The last steps of augmentation in torch, on the output of the DALI graph: clamp and blur.

They run here because the convolution of torch over the innermost channels takes a third of the time of DALI's blur on a
CPU, and because they can run in another thread while DALI decodes the next batch.

The blur is a Gaussian cut at 2.5 sigma. The released one is three passes of a box, which end at 2.3 sigma.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

_BLUR_REACH = 2.5  # sigmas

Bound = float | torch.Tensor


def finish(
    pixels: torch.Tensor,
    *,
    bounds: tuple[Bound, Bound] | None,
    sigmas: npt.NDArray[np.float32] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Clamp and blur the clips of a batch in place, then convert them on a GPU.

    Args:
        pixels: Normalized pixels on the device, f32[B, P, C, T, H, W], channels-last in memory. They are overwritten.
        bounds: Smallest and largest value, as a number or as f32[C] on the device of `pixels`; None to skip the clamp.
        sigmas: Sigma of the Gaussian for each clip in pixels, f32[B, P]; None to skip the blur.
        dtype: Dtype of the result on a GPU, float32 or float16. On the CPU the result is always float32.

    Returns:
        `pixels` on the CPU. On a GPU a copy in memory of torch, which knows on which streams it is in use; the memory
        of `pixels` belongs to DALI.
    """
    if bounds is not None:
        pixels.permute(0, 1, 3, 4, 5, 2).clamp_(*bounds)  # type: ignore[arg-type]
    if sigmas is not None:
        _blur(pixels.transpose(2, 3), sigmas)
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


def _blur(pixels: torch.Tensor, sigmas: npt.NDArray[np.float32]) -> None:
    """Blur clips in place; beyond its edges a picture is mirrored.

    Args:
        pixels: The clips, f32[B, P, T, C, H, W].
        sigmas: Sigma for each clip in pixels, f32[B, P]; 0 leaves a clip as it is.
    """
    size = pixels.shape[-1]
    for b, p in np.argwhere(sigmas > 0).tolist():
        sigma = float(sigmas[b, p])
        reach = min(math.ceil(_BLUR_REACH * sigma), size - 1)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=pixels.device) / sigma) ** 2)
        horizontal = (weights / weights.sum()).expand(pixels.shape[3], 1, 1, -1)
        padded = functional.pad(pixels[b, p], (reach,) * 4, mode="reflect")
        blurred = functional.conv2d(padded, horizontal, groups=len(horizontal))
        pixels[b, p] = functional.conv2d(blurred, horizontal.transpose(2, 3), groups=len(horizontal))
