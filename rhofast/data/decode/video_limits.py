"""What a device's video decoder accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLimits:
    """The limits of a device's video decoder for one codec, 8 bits 4:2:0. All limits are inclusive.

    Attributes:
        engines: Number of frames that are decoded at the same time.
        min_width: Smallest width in pixels.
        min_height: Smallest height in pixels.
        max_width: Largest width in pixels.
        max_height: Largest height in pixels.
        max_blocks: Largest number of blocks of 16 x 16 pixels per frame.
    """

    engines: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    max_blocks: int

    def fit(self, width: int, height: int) -> bool:
        """Return whether frames of a size fit; the smallest size and the area count in whole blocks.

        Args:
            width: Width of the frames in pixels.
            height: Height of the frames in pixels.

        Returns:
            True if the decoder accepts them.
        """
        across, down = -(-width // 16), -(-height // 16)
        fits_width = self.min_width <= 16 * across and width <= self.max_width
        fits_height = self.min_height <= 16 * down and height <= self.max_height
        return fits_width and fits_height and across * down <= self.max_blocks
