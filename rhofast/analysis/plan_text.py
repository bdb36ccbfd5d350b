"""The numbers of a clip plan and an augmentation plan, in phrases for captions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from rhofast.data.image_ops import ImageOp
from rhofast.data.types import LUMA, AugmentPlan, ClipPlan


def describe_plan(clips: ClipPlan, augment: AugmentPlan, b: int, p: int, *, fps: float) -> tuple[str, ...]:
    """Describe the plan of one clip.

    Args:
        clips: Clip plan of a batch.
        augment: Augmentation plan of the batch.
        b: Index of the sample in the batch.
        p: Index of the clip in the sample.
        fps: Frames per second of the stored video.

    Returns:
        The phrases.
    """
    frames = clips.frames[b, p]
    left, top, width, height = (int(value) for value in augment.crop[b, p])
    phrases = [
        f"frames {' '.join(map(str, frames))}",
        f"{frames.min() / fps:.1f}-{frames.max() / fps:.1f} s",
        f"crop {width}x{height} at {left},{top}",
    ]
    if augment.flip[b, p]:
        phrases.append("flipped")
    if augment.difference is not None and augment.difference[b, p]:
        phrases.append("difference")
    phrases += describe_color(augment.color[b, p])
    if augment.blur[b, p] > 0:
        phrases.append(f"blur {augment.blur[b, p]:.1f} px")
    if augment.ops is not None and augment.amounts is not None:
        phrases += [
            describe_op(*pair) for pair in zip(augment.ops[b, p], augment.amounts[b, p], strict=True) if pair[0]
        ]
    if augment.erase is not None and augment.erase[b, p, 2]:
        phrases.append("erased {2}x{3} at {0},{1}".format(*augment.erase[b, p]))
    if augment.share is not None and augment.cut is not None and augment.share[b, p] < 1:
        other = "cut {2}x{3} at {0},{1} of".format(*augment.cut[b, p]) if augment.cut[b, p, 2] else "mixed with"
        phrases.append(f"{other} sample {b ^ 1} of the batch, {augment.share[b, p]:.0%} its own")
    return tuple(phrases)


def describe_op(op: int, amount: float) -> str:
    """Describe an operation of RandAugment by its number and amount."""
    kind = ImageOp(op)
    name = kind.name.lower().replace("_", " ")
    unit = {ImageOp.ROTATE: "{:+.0f}°", ImageOp.POSTERIZE: "{:.0f} bits", ImageOp.SOLARIZE: "{:.0f}"}
    unit |= {ImageOp.SOLARIZE_ADD: "{:+.0f}", **dict.fromkeys((ImageOp.SHEAR_X, ImageOp.SHEAR_Y), "{:+.2f}")}
    unit |= dict.fromkeys((ImageOp.TRANSLATE_X, ImageOp.TRANSLATE_Y), "{:+.0%}")
    unit |= dict.fromkeys((ImageOp.COLOR, ImageOp.CONTRAST, ImageOp.BRIGHTNESS, ImageOp.SHARPNESS), "x{:.2f}")
    return f"{name} {unit[kind].format(amount)}" if kind in unit else name


def describe_color(color: npt.NDArray[np.float32]) -> list[str]:
    """Describe the effect of a color matrix f32[3, 4]; return no phrases if it leaves colors as they are.

    Grays stay gray under every operation of color.py, and the linear parts commute, so the composed map is known by
    five numbers: grays are multiplied by a gain (brightness times contrast) and shifted by an offset (contrast), and
    the colors around the gray axis are scaled (saturation) and rotated (hue). The matrix has the eigenvalues g and
    g s exp(+-i h), so its trace is g + 2 g s cos h and its determinant g (g s)^2.
    """
    matrix, offset = color[:, :3].astype(np.float64), float(LUMA @ color[:, 3])
    gain = float(LUMA @ matrix.sum(axis=1))
    phrases = []
    if abs(gain - 1) > 5e-3 or abs(offset) > 0.5:
        phrases.append(f"luma x{gain:.2f} {offset:+.0f}")
    if gain < 1e-3:
        return phrases
    around = math.sqrt(max(float(np.linalg.det(matrix)) / gain, 0.0))  # gain times saturation
    if around < 1e-2 * gain:
        return ["gray", *phrases]
    if abs(around / gain - 1) > 5e-3:
        phrases.append(f"saturation x{around / gain:.2f}")
    cosine = (float(np.trace(matrix)) - gain) / (2 * around)
    turned = matrix @ np.array([1.0, 0.0, 0.0])
    angle = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
    if angle > 0.5:  # toward green, as red turns to yellow, or toward blue
        phrases.append(f"hue {math.copysign(angle, turned[1] - turned[2]):+.0f}°")
    return phrases
