"""The options of augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rhofast.config.section import Probability, Range, Section, Size, Triple


class AugmentConfig(Section):
    """Augmentation of the pixels, drawn per clip. The defaults are those of the released configurations."""

    size: Size = 224
    """Side of the square output in pixels."""

    crop: Literal["area", "short_side", "center"] = "area"
    """How clips are cropped: "area" draws a rectangle by `area` and `aspect`, "short_side" scales the short side to a
    length drawn from `short_side` and crops a square of `size`, "center" takes the central square (nothing random)."""

    area: Range = (0.2, 0.766)
    """Interval [low, high] of the crop's share of the frame's area, for `crop = "area"`."""

    aspect: Range = (0.75, 1.3333)
    """Interval [low, high] of the crop's aspect ratio (width / height), for `crop = "area"`."""

    short_side: Range = (256, 320)
    """Interval [low, high] of the short side in pixels, for `crop = "short_side"`."""

    short_side_inverse: bool = False
    """Whether 1 / short side is drawn uniformly, in place of the short side: small ones become more frequent (released
    code for Charades and Something-Something V2)."""

    flip: Probability = 0.5
    """Probability of a horizontal flip. 0: off; other augmentations draw the same numbers as before."""

    color: Probability = 0.8
    """Probability of the color jitter (`brightness`, `contrast`, `saturation` and `hue`, in random order). 0: off."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Strength b of the brightness jitter: the factor is drawn from [1 - b, 1 + b]."""

    contrast: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Strength c of the contrast jitter: the factor is drawn from [1 - c, 1 + c]."""

    saturation: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Strength s of the saturation jitter: the factor is drawn from [1 - s, 1 + s]."""

    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Strength h of the hue jitter: the hue is rotated by a share of a full turn drawn from [-h, h]."""

    gray: Probability = 0.2
    """Probability that a clip is turned to grayscale. 0: off."""

    blur: Probability = 0.5
    """Probability of a Gaussian blur. 0: off."""

    blur_sigma: Range = (0.1, 2.0)
    """Interval [low, high] of the blur's standard deviation, in output pixels."""

    difference: Probability = 0.0
    """Probability that a clip shows changes over time in gray: each frame's luma minus that of the next frame of the
    video, halved, centered at 127.5, before all color augmentations. The paper tries 0.2. 0: off."""

    rand_ops: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of operations of RandAugment per clip, each drawn from the 15 of timm's "increasing" set; all frames of a
    clip get the same ones. They follow the crop and the blur. VideoMAE: 4. 0: off."""

    rand_magnitude: Annotated[float, Field(ge=0, le=10)] = 7.0
    """Mean strength of the operations, in [0, 10]."""

    rand_spread: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Standard deviation of the strength, which is drawn anew for each operation."""

    rand_probability: Probability = 0.5
    """Probability that a drawn operation is applied."""

    erase: Probability = 0.0
    """Probability that a rectangle of the clip is erased, the same one in all frames (random erasing). VideoMAE: 0.25.
    0: off."""

    erase_area: Range = (0.02, 0.3333)
    """Interval [low, high] of the erased share of the clip's area."""

    erase_aspect: Range = (0.3, 3.3333)
    """Interval [low, high] of the erased rectangle's aspect ratio (height / width)."""

    erase_fill: Literal["noise", "mean"] = "noise"
    """What an erased rectangle shows: normal "noise" with standard deviation 1, of each pixel of each frame, or the
    "mean", both after normalization."""

    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of mixup: the clips of two videos of a batch are blended by a share drawn from Beta(alpha, alpha). Only a
    classifier can be trained with it. VideoMAE: 0.8. 0: off."""

    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of CutMix: a rectangle of a clip, the same one in all frames, shows another video of the batch; the
    rectangle's share of the area is drawn from Beta(alpha, alpha). VideoMAE: 1. 0: off."""

    mix: Probability = 1.0
    """Probability that a clip is mixed at all, where `mixup` or `cutmix` is on."""

    cutmix_share: Probability = 0.5
    """Probability of CutMix where `mixup` is on, too."""

    mean: Triple = (0.45, 0.45, 0.45)
    """Mean of each channel (R, G, B) that is subtracted from the pixels, which are in [0, 1]."""

    std: Triple = (0.225, 0.225, 0.225)
    """Standard deviation of each channel (R, G, B) by which the pixels are divided."""

    @property
    def mixes(self) -> bool:
        """Whether clips of different videos are mixed."""
        return self.mix > 0 and (self.mixup > 0 or self.cutmix > 0)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name in ("area", "aspect", "short_side", "blur_sigma", "erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"augment.{name}=[{low}, {high}] must satisfy 0 < low <= high.")
        for name in ("area", "erase_area"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"augment.{name}={list(getattr(self, name))} is a share and must not exceed 1.")
        if self.short_side[0] < self.size and self.crop == "short_side":
            raise ValueError(
                f"augment.short_side={list(self.short_side)} must not start below augment.size={self.size}."
            )
        if min(self.std) <= 0:
            raise ValueError(f"augment.std={list(self.std)} must be positive.")
        return self
