"""The operations of RandAugment by number, and what the amount of each means.

Plans hold these numbers (AugmentPlan.ops); sampling/rand_augment.py draws them, decode/rand_augment.py applies them.
"""

from __future__ import annotations

from enum import IntEnum


class ImageOp(IntEnum):
    """An operation on pictures of levels in [0, 255], named as in Pillow.

    AUTO_CONTRAST and EQUALIZE look at each channel of each frame, and CONTRAST at the mean gray of each frame. The
    numbers are part of the format of a plan: only append.
    """

    NONE = 0
    AUTO_CONTRAST = 1  # no amount: the darkest level of a channel becomes 0, the brightest 255
    EQUALIZE = 2  # no amount: levels of a channel become equally frequent
    INVERT = 3  # no amount: 255 - x
    ROTATE = 4  # degrees, counterclockwise
    POSTERIZE = 5  # number of high bits that are kept, in [0, 8]
    SOLARIZE = 6  # level from which on x becomes 255 - x
    SOLARIZE_ADD = 7  # what is added to levels below 128
    COLOR = 8  # factor of the distance from gray (saturation)
    CONTRAST = 9  # factor of the distance from the mean gray
    BRIGHTNESS = 10  # factor
    SHARPNESS = 11  # factor of the distance from the smoothed picture
    SHEAR_X = 12  # columns by which a row moves to the left, per row from the top
    SHEAR_Y = 13  # rows by which a column moves up, per column from the left
    TRANSLATE_X = 14  # share of the width by which the picture moves to the left
    TRANSLATE_Y = 15  # share of the height by which it moves up
