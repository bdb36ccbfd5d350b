"""The clip sizes that a backbone accepts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rhofast.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLimits:
    """The clip sizes that a backbone accepts.

    Attributes:
        name: name of the backbone, for error messages.
        num_frames: smallest number of frames.
        size: smallest height and width in pixels.
        exact: whether `num_frames` and `size` are the only ones that it accepts.
        frame_multiple: divisor of the number of frames.
        size_multiple: divisor of height and width in pixels.
    """

    name: str
    num_frames: int = 1
    size: int = 1
    exact: bool = False
    frame_multiple: int = 1
    size_multiple: int = 1

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Refuse clips that the backbone does not accept.

        Args:
            num_frames: number of frames per clip.
            height: height in pixels.
            width: width in pixels.

        Raises:
            ConfigError: with the sizes that the backbone accepts.
        """
        if self.exact:
            fits = (num_frames, height, width) == (self.num_frames, self.size, self.size)
        else:
            fits = num_frames >= self.num_frames and min(height, width) >= self.size
        if fits:
            self._check_multiples(num_frames, height, width)
            return
        accepted = f"{self.num_frames} frames of {self.size} x {self.size} pixels{'' if self.exact else ' or more'}"
        sign = "=" if self.exact else ">="
        raise ConfigError(
            f"backbone {self.name} takes clips of {accepted}, not {num_frames} frames of {height} x {width}",
            hint=f"set clips.num_frames {sign} {self.num_frames} and augment.size {sign} {self.size}",
        )

    def _check_multiples(self, num_frames: int, height: int, width: int) -> None:
        frames, side = self.frame_multiple, self.size_multiple
        if not (num_frames % frames or height % side or width % side):
            return
        near_frames = max(1, num_frames // frames) * frames
        near_size = max(1, min(height, width) // side) * side
        raise ConfigError(
            f"backbone {self.name} takes clips whose number of frames is a multiple of {frames} and whose sides are "
            f"multiples of {side} pixels, not {num_frames} frames of {height} x {width}",
            hint=f"set clips.num_frames = {near_frames} and augment.size = {near_size}",
        )

    def check_input(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Check the input of a forward pass, [N, 3, T, H, W]; a forward pre-hook of the backbone.

        Args:
            _: the backbone.
            arguments: the positional arguments of its forward.

        Raises:
            ConfigError: for clips that the backbone does not accept.
        """
        num_frames, height, width = arguments[0].shape[2:]
        self.check(num_frames, height, width)
