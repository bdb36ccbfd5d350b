"""The operations of RandAugment against torchvision's, and what is promised of clips."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from rhofast.data.decode.rand_augment import apply_ops, augmented, transformed
from rhofast.data.image_ops import ImageOp
from rhofast.data.sampling.rand_augment import OPS

SIZE = 40
MEAN, STD = np.array([0.485, 0.456, 0.406], dtype=np.float32), np.array([0.229, 0.224, 0.225], dtype=np.float32)
LINEAR: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": [128.0, 128.0, 128.0]}


def clips(n: int = 2, t: int = 3) -> torch.Tensor:
    """Levels of smooth pictures with noise, whole numbers, f32[n, T, H, W, 3]; the third channel is narrow."""
    generator = torch.Generator().manual_seed(n + t)
    coarse = torch.rand(n * t, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    levels = (noisy * torch.tensor([230.0, 255.0, 90.0])[:, None, None] + 20).clamp(0, 255).round()
    return levels.view(n, t, 3, SIZE, SIZE).permute(0, 1, 3, 4, 2).contiguous()


def by_torchvision(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor], *, whole: bool) -> torch.Tensor:
    """Apply a function to pictures u8[N, 3, H, W], or to f32[N, 3, H, W] in [0, 1]."""
    planes = x.flatten(0, 1).permute(0, 3, 1, 2)
    out = function(planes.to(torch.uint8)).float() if whole else 255 * function(planes / 255)
    return out.view(len(x), -1, 3, SIZE, SIZE).permute(0, 1, 3, 4, 2)


def surrounded(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Move pictures in a wide frame of gray, so that torchvision's own rule for edges plays no part."""
    planes = torch.nn.functional.pad(x.flatten(0, 1).permute(0, 3, 1, 2), (SIZE,) * 4, value=128.0)
    out = function(planes)[..., SIZE:-SIZE, SIZE:-SIZE]
    return out.view(len(x), -1, 3, SIZE, SIZE).permute(0, 1, 3, 4, 2)


def sheared(x: torch.Tensor, degrees: list[float]) -> torch.Tensor:
    return tv.affine(x, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[SIZE, SIZE], **LINEAR)


@pytest.mark.parametrize(
    ("op", "amount", "reference", "within"),
    [
        (ImageOp.AUTO_CONTRAST, 0.0, tv.autocontrast, 1e-3),
        (ImageOp.INVERT, 0.0, tv.invert, 1e-3),
        (ImageOp.COLOR, 0.37, lambda x: tv.adjust_saturation(x, 0.37), 0.1),  # its weight of red is 0.2989
        (ImageOp.COLOR, 1.63, lambda x: tv.adjust_saturation(x, 1.63), 0.1),
        (ImageOp.CONTRAST, 0.37, lambda x: tv.adjust_contrast(x, 0.37), 0.1),
        (ImageOp.CONTRAST, 1.63, lambda x: tv.adjust_contrast(x, 1.63), 0.1),
        (ImageOp.BRIGHTNESS, 0.37, lambda x: tv.adjust_brightness(x, 0.37), 1e-3),
        (ImageOp.BRIGHTNESS, 1.63, lambda x: tv.adjust_brightness(x, 1.63), 1e-3),
        (ImageOp.SHARPNESS, 0.37, lambda x: tv.adjust_sharpness(x, 0.37), 1e-2),
        (ImageOp.SHARPNESS, 1.63, lambda x: tv.adjust_sharpness(x, 1.63), 1e-2),
    ],
)
def test_operations_on_levels_are_torchvision_s(
    op: ImageOp, amount: float, reference: Callable[[torch.Tensor], torch.Tensor], within: float
) -> None:
    x = clips()
    out = transformed(x, op, torch.full((2,), amount))
    assert (out - by_torchvision(x, reference, whole=False)).abs().max() <= within
    assert (out - x).abs().max() > 5


@pytest.mark.parametrize(
    ("op", "amount", "reference"),
    [
        (ImageOp.EQUALIZE, 0.0, tv.equalize),
        (ImageOp.POSTERIZE, 2.0, lambda x: tv.posterize(x, 2)),
        (ImageOp.POSTERIZE, 0.0, lambda x: tv.posterize(x, 0)),
        (ImageOp.SOLARIZE, 77.0, lambda x: tv.solarize(x, 77)),
        (ImageOp.SOLARIZE, 256.0, lambda x: x),
        (ImageOp.SOLARIZE_ADD, 77.0, lambda x: torch.where(x < 128, (x.int() + 77).clamp(max=255).to(torch.uint8), x)),
    ],
)
def test_operations_on_whole_levels_are_exact(
    op: ImageOp, amount: float, reference: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = clips()
    assert torch.equal(transformed(x, op, torch.full((2,), amount)), by_torchvision(x, reference, whole=True))


@pytest.mark.parametrize(
    ("op", "amount", "reference"),
    [
        (ImageOp.ROTATE, 21.0, lambda x: tv.rotate(x, 21.0, **LINEAR)),
        (ImageOp.ROTATE, -9.0, lambda x: tv.rotate(x, -9.0, **LINEAR)),
        (ImageOp.SHEAR_X, 0.21, lambda x: sheared(x, [math.degrees(math.atan(0.21)), 0.0])),
        (ImageOp.SHEAR_X, -0.3, lambda x: sheared(x, [-math.degrees(math.atan(0.3)), 0.0])),
        (ImageOp.SHEAR_Y, 0.21, lambda x: sheared(x, [0.0, math.degrees(math.atan(0.21))])),
        (ImageOp.TRANSLATE_X, 0.3, lambda x: x.roll(-12, dims=-1)),
        (ImageOp.TRANSLATE_Y, -0.45, lambda x: x.roll(18, dims=-2)),
    ],
)
def test_moves_are_torchvision_s(op: ImageOp, amount: float, reference: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = clips()
    out = transformed(x, op, torch.full((2,), amount))
    assert (out - surrounded(x, reference)).abs().max() <= 0.02
    assert out.min() >= 0 and out.max() <= 255


@pytest.mark.parametrize("op", OPS)
def test_all_frames_of_a_clip_get_the_same_and_each_clip_its_own(op: ImageOp) -> None:
    x = clips(3, 1).expand(3, 4, SIZE, SIZE, 3).contiguous()
    amounts = torch.tensor({ImageOp.POSTERIZE: [2.0, 3.0, 4.0], ImageOp.SOLARIZE: [50.0, 90.0, 140.0]}.get(
        op, [0.2, -0.1, 0.3]
    ))  # fmt: skip
    together = transformed(x, op, amounts)
    assert together.shape == x.shape and together.is_contiguous()
    for number in range(3):
        alone = transformed(x[number : number + 1], op, amounts[number : number + 1])[0]
        assert torch.allclose(together[number], alone, atol=1e-4)
        assert all(torch.equal(alone[0], frame) for frame in alone)


@pytest.mark.parametrize("op", [ImageOp.AUTO_CONTRAST, ImageOp.EQUALIZE, ImageOp.CONTRAST, ImageOp.SHARPNESS])
def test_a_picture_of_one_color_stays_finite(op: ImageOp) -> None:
    x = torch.full((1, 2, SIZE, SIZE, 3), 77.0)
    assert torch.allclose(transformed(x, op, torch.tensor([1.7])), x, atol=1e-3)


def test_a_plan_is_applied_in_its_order_to_its_clips_alone() -> None:
    levels = clips(4, 3)
    normalized = (levels / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
    pixels = normalized.view(2, 2, 3, SIZE, SIZE, 3).permute(0, 1, 5, 2, 3, 4).clone()  # [B, P, C, T, H, W]
    before = pixels.clone()
    ops = np.zeros((2, 2, 3), dtype=np.int8)
    amounts = np.zeros((2, 2, 3), dtype=np.float32)
    ops[0, 1], amounts[0, 1] = [ImageOp.ROTATE, 0, ImageOp.SOLARIZE], [20, 0, 100]
    ops[1, 0], amounts[1, 0] = [ImageOp.SOLARIZE, ImageOp.ROTATE, 0], [100, 20, 0]
    apply_ops(pixels, ops, amounts, mean=MEAN, std=STD)
    for b, p in ((0, 0), (1, 1)):
        assert torch.equal(pixels[b, p], before[b, p])
    for b, p in ((0, 1), (1, 0)):
        expected = levels.view(2, 2, 3, SIZE, SIZE, 3)[b : b + 1, p]
        for op, amount in zip(ops[b, p], amounts[b, p], strict=True):
            expected = transformed(expected, ImageOp(op), torch.tensor([amount])) if op else expected
        found = (pixels[b, p].permute(1, 2, 3, 0) * torch.from_numpy(STD) + torch.from_numpy(MEAN)) * 255
        # A level next to the threshold of SOLARIZE may fall on either side after the detour through normalization.
        assert ((found - expected[0]).abs() < 0.01).float().mean() > 0.999


def test_clips_that_go_together_as_on_a_gpu_are_what_each_is_alone() -> None:
    rng = np.random.default_rng(0)
    x = (clips(6, 2) / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
    moves = [ImageOp.NONE, ImageOp.ROTATE, ImageOp.SHARPNESS, ImageOp.BRIGHTNESS, ImageOp.AUTO_CONTRAST, ImageOp.COLOR]
    ops = rng.choice(np.array(moves, dtype=np.int8), (6, 4))
    amounts = rng.uniform(0.5, 1.5, (6, 4)).astype(np.float32)
    together = augmented(x, ops, amounts, MEAN, STD)
    for number in range(6):
        some = slice(number, number + 1)
        alone = augmented(x[some], ops[some], amounts[some], MEAN, STD)
        assert torch.allclose(together[some], alone, atol=1e-4)
