"""Apply the operations of RandAugment that a plan holds, in torch, on finished pictures.

Pixels are taken back to levels in [0, 255], go through the operations of their clip one after another, and are
normalized again. Levels are not rounded in between. Clips without operations are not touched. Pictures that are moved
are interpolated linearly and surrounded by gray, level 128, as in timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rhofast.data.image_ops import ImageOp
from rhofast.data.types import LUMA

_FILL = 128.0
_FRAMES_AT_ONCE = 2
_BINS = 256


def apply_ops(
    pixels: Tensor,
    ops: npt.NDArray[np.int8],
    amounts: npt.NDArray[np.float32],
    *,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
) -> None:
    """Apply the operations of a plan in place.

    On the CPU a few frames go through all operations of their clip before the next ones, and stay in the cache. On a
    GPU the number of kernels counts, and clips with the same operation in the same place go through it together.

    Args:
        pixels: Normalized pixels, f32[B, P, C, T, H, W], channels-last in memory.
        ops: Numbers of ImageOp, i8[B, P, N].
        amounts: How much each does, f32[B, P, N].
        mean: Mean of the normalization, f32[3].
        std: Standard deviation of the normalization, f32[3].
    """
    clips = pixels.permute(0, 1, 3, 4, 5, 2).flatten(0, 1)
    ops, amounts = ops.reshape(len(clips), -1), amounts.reshape(len(clips), -1)
    chosen = np.flatnonzero(ops.any(axis=1))
    if pixels.device.type == "cpu":
        for place in chosen.tolist():
            for frames in torch.split(clips[place : place + 1], _FRAMES_AT_ONCE, dim=1):
                frames.copy_(augmented(frames, ops[[place]], amounts[[place]], mean, std))
    elif len(chosen):
        places = torch.from_numpy(chosen).to(pixels.device)
        clips.index_copy_(0, places, augmented(clips[places], ops[chosen], amounts[chosen], mean, std))


def augmented(
    clips: Tensor,
    ops: npt.NDArray[np.int8],
    amounts: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
) -> Tensor:
    """Return normalized clips after their operations, all clips at once.

    Args:
        clips: f32[n, T, H, W, 3].
        ops: Numbers of ImageOp, i8[n, N].
        amounts: How much each does, f32[n, N].
        mean: As for `apply_ops`.
        std: As for `apply_ops`.

    Returns:
        f32[n, T, H, W, 3].
    """
    width = clips.shape[3]
    scale, offset = (_row(torch.from_numpy(255 * values).to(clips.device), width) for values in (std, mean))
    levels = (clips.flatten(3) * scale).add_(offset).clamp_(0, 255).view(clips.shape)
    for step in range(ops.shape[1]):
        levels = _step(levels, ops[:, step], amounts[:, step])
    return ((levels.flatten(3) - offset) / scale).view(clips.shape)


def _row(colors: Tensor, width: int) -> Tensor:
    """Repeat colors [..., 3] to a row of pixels [..., width * 3]: torch is slow on an innermost length of 3."""
    return colors.repeat(*[1] * (colors.ndim - 1), width)


def _step(levels: Tensor, ops: npt.NDArray[np.int8], amounts: npt.NDArray[np.float32]) -> Tensor:
    """Return clips after one operation each, f32[n, T, H, W, 3]."""
    for op in np.unique(ops[ops != ImageOp.NONE]):
        places = np.flatnonzero(ops == op)
        changed = transformed(
            levels[torch.from_numpy(places).to(levels.device)] if len(places) < len(ops) else levels,
            ImageOp(op),
            torch.from_numpy(amounts[places]).to(levels.device),
        )
        if len(places) == len(ops):
            return changed
        levels[torch.from_numpy(places).to(levels.device)] = changed
    return levels


def transformed(levels: Tensor, op: ImageOp, amount: Tensor) -> Tensor:
    """Return clips after an operation.

    Args:
        levels: f32[n, T, H, W, 3] in [0, 255].
        op: The operation.
        amount: How much it does to each clip, f32[n].

    Returns:
        f32[n, T, H, W, 3] in [0, 255].
    """
    if op in _MOVES:
        return _moved(levels, _MOVES[op](amount))
    return _LEVELS[op](levels, amount[:, None, None, None, None])


def _auto_contrast(x: Tensor, _: Tensor) -> Tensor:
    rows = x.flatten(3)
    low = rows.amin(dim=2).view(*x.shape[:2], *x.shape[3:]).amin(dim=2)  # [n, T, W * 3], then [n, T, 3]
    high = rows.amax(dim=2).view(*x.shape[:2], *x.shape[3:]).amax(dim=2)
    flat = high == low
    low, gain = torch.where(flat, 0.0, low), torch.where(flat, 1.0, 255 / (high - low))
    low, gain = (_row(one, x.shape[3])[:, :, None] for one in (low, gain))
    return ((rows - low) * gain).view_as(x)


def _equalize(x: Tensor, _: Tensor) -> Tensor:
    """Map the levels of each channel of each frame as Pillow does: by a table of sums of its histogram."""
    n, t, height, width, channels = x.shape
    first = _BINS * torch.arange(n * t * channels, device=x.device, dtype=torch.int32).view(n, t, channels)
    bins = x.flatten(3).round().int() + _row(first, width)[:, :, None]
    histogram = torch.bincount(bins.flatten(), minlength=first.numel() * _BINS).view(-1, _BINS)
    brightest = _BINS - 1 - (histogram.flip(1) > 0).int().argmax(dim=1, keepdim=True)
    step = (height * width - histogram.gather(1, brightest)) // (_BINS - 1)
    below = histogram.cumsum(dim=1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=_BINS - 1)
    table = torch.where(step > 0, table, torch.arange(_BINS, device=x.device)).to(x.dtype)
    return table.flatten().index_select(0, bins.flatten()).view_as(x)


def _invert(x: Tensor, _: Tensor) -> Tensor:
    return 255 - x


def _posterize(x: Tensor, bits: Tensor) -> Tensor:
    step = 2 ** (8 - bits)
    return (x.round() / step).floor_() * step


def _solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.addcmul(x, (x >= threshold).to(x.dtype), 255 - 2 * x)


def _solarize_add(x: Tensor, added: Tensor) -> Tensor:
    darker = (x < _BINS // 2).to(x.dtype)
    return x + torch.minimum(darker * added, 255 - x)


def _color(x: Tensor, factor: Tensor) -> Tensor:
    return _away_from(_gray(x), x, factor)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = x.flatten(3).mean(dim=2).view(*x.shape[:2], *x.shape[3:]).mean(dim=2)  # [n, T, 3]
    return _away_from(_gray(mean[:, :, None, None]), x, factor)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 255)


def _sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from the picture smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, or towards it; edges stay."""
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    squares = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    inner = x[:, :, 1:-1, 1:-1]
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = _away_from((squares + 4 * inner) / 13, inner, factor)
    return out


def _gray(x: Tensor) -> Tensor:
    """Return the luma of pixels: [..., 3] -> [..., 1]."""
    return (x @ torch.tensor(LUMA, dtype=x.dtype, device=x.device))[..., None]


def _away_from(origin: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).add_(origin * (1 - factor)).clamp_(0, 255)


_LEVELS: dict[ImageOp, Callable[[Tensor, Tensor], Tensor]] = {
    ImageOp.AUTO_CONTRAST: _auto_contrast,
    ImageOp.EQUALIZE: _equalize,
    ImageOp.INVERT: _invert,
    ImageOp.POSTERIZE: _posterize,
    ImageOp.SOLARIZE: _solarize,
    ImageOp.SOLARIZE_ADD: _solarize_add,
    ImageOp.COLOR: _color,
    ImageOp.CONTRAST: _contrast,
    ImageOp.BRIGHTNESS: _brightness,
    ImageOp.SHARPNESS: _sharpness,
}


# The source of a pixel for places in [-1, 1]^2, as rows of a 2 x 3 matrix f32[n, 2, 3].


def _rows(x: tuple[Tensor, Tensor, Tensor], y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(x, dim=-1), torch.stack(y, dim=-1)], dim=-2)


def _rotate(degrees: Tensor) -> Tensor:
    cosine, sine = torch.cos(degrees * (math.pi / 180)), torch.sin(degrees * (math.pi / 180))
    zero = torch.zeros_like(degrees)
    return _rows((cosine, -sine, zero), (sine, cosine, zero))


def _shear_x(amount: Tensor) -> Tensor:
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _rows((one, amount, amount), (zero, one, zero))  # the top row, y = -1, stays


def _shear_y(amount: Tensor) -> Tensor:
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _rows((one, zero, zero), (amount, one, amount))


def _translate_x(share: Tensor) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _rows((one, zero, 2 * share), (zero, one, zero))


def _translate_y(share: Tensor) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _rows((one, zero, zero), (zero, one, 2 * share))


_MOVES: dict[ImageOp, Callable[[Tensor], Tensor]] = {
    ImageOp.ROTATE: _rotate,
    ImageOp.SHEAR_X: _shear_x,
    ImageOp.SHEAR_Y: _shear_y,
    ImageOp.TRANSLATE_X: _translate_x,
    ImageOp.TRANSLATE_Y: _translate_y,
}


def _moved(x: Tensor, sources: Tensor) -> Tensor:
    """Return clips whose pixels come from other places, the same ones in all frames.

    Args:
        x: f32[n, T, H, W, 3], with H = W.
        sources: f32[n, 2, 3].
    """
    n, t, height, width, channels = x.shape
    line = (2 * torch.arange(width, device=x.device) + 1) / width - 1  # centers of pixels
    across, down, start = sources[:, None, None].unbind(dim=-1)  # [n, 1, 1, 2]
    grid = torch.empty(n, height, width, 2, device=x.device)
    for axis in range(2):  # several times as fast as torch's affine_grid
        rows = down[..., axis] * line[:, None] + start[..., axis]  # [n, H, 1]
        torch.addcmul(rows, across[..., axis], line, out=grid[..., axis])
    # Frames and colors are the channels of one picture, so that weights are computed once.
    planes = (x - _FILL).permute(0, 1, 4, 2, 3).reshape(n, t * channels, height, width)
    moved = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.view(n, t, channels, height, width).permute(0, 1, 3, 4, 2).add(_FILL).contiguous()
