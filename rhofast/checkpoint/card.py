"""What an exported backbone says about itself, as strict models: the metadata of its safetensors file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rhofast.checkpoint.records import Sha256
from rhofast.config.section import Section

_MAX_PIXELS = 1 << 26  # of a clip, over all frames: 256 frames of 512 x 512
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]
_Words = Annotated[str, Field(max_length=2000)]


class InputCard(Section):
    """What goes into a backbone; None: it is not known."""

    text: _Words = ""
    """The same as a sentence."""

    num_frames: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Frames per clip."""

    frame_stride: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Frames from one frame of a clip to the next, at `fps`."""

    fps: _Positive | None = None
    """Frames per second at which clips are sampled."""

    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Height and width in pixels."""

    mean: Annotated[list[_Finite], Field(min_length=3, max_length=3)] | None = None
    """What is subtracted from red, green and blue in [0, 1]."""

    std: Annotated[list[_Positive], Field(min_length=3, max_length=3)] | None = None
    """By what the differences are divided."""

    @model_validator(mode="after")
    def _check_pixels(self) -> InputCard:
        frames, size = self.num_frames or 1, self.size or 1
        if frames * size * size > _MAX_PIXELS:
            raise ValueError(f"clips of {frames} frames of {size} x {size} pixels are more than {_MAX_PIXELS} pixels")
        return self


class Card(BaseModel):
    """The card of an export. It may hold less, and more: the training data, metrics."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    origin: _Words = "unknown origin"
    input: InputCard = InputCard()
    num_features: int | None = Field(default=None, ge=1)


class _Backbone(BaseModel):
    """Name and options of a backbone. The options are parsed when it is built."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: _Words


class Notes(BaseModel):
    """The text `rhofast` in the metadata of an export.

    Attributes:
        version: Version of the format.
        backbone: Name and options of the backbone.
        card: The card.
        code: The SHA-256 of the file that defines the backbone, where it is code of a user; otherwise None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    backbone: _Backbone
    card: Card
    code: Sha256 | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The backbone's options."""
        return dict(self.backbone.__pydantic_extra__ or {})
