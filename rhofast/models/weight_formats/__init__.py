"""The weight files of other programs, in one table.

To add a format, write a `WeightFormat` in a file of its own and add a line to WEIGHT_FORMATS. `rhofast import`,
`rhofast export` and the evaluations then know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rhofast.errors import ConfigError
from rhofast.models.weight_conversion import Imported, WeightFormat, fill_backbone, list_names
from rhofast.models.weight_file import WeightFile
from rhofast.models.weight_formats.pyslowfast import PYSLOWFAST
from rhofast.models.weight_formats.timm import TIMM
from rhofast.models.weight_formats.torchvision import TORCHVISION
from rhofast.models.weight_formats.transformers import TRANSFORMERS_VIDEOMAE, TRANSFORMERS_VJEPA2
from rhofast.models.weight_formats.videomae import VIDEOMAE
from rhofast.models.weight_formats.vjepa import VJEPA

# Those whose entries tell what they are come before torchvision's, which may have any names.
WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "pyslowfast": PYSLOWFAST,
    "videomae": VIDEOMAE,
    "vjepa": VJEPA,
    "transformers_videomae": TRANSFORMERS_VIDEOMAE,
    "transformers_vjepa2": TRANSFORMERS_VJEPA2,
    "timm": TIMM,
    "torchvision": TORCHVISION,
}


def format_for(file: WeightFile, backbone: str) -> WeightFormat:
    """Return the format in which a file holds the weights of a given backbone.

    Args:
        file: the file.
        backbone: name of the backbone.

    Returns:
        The format.

    Raises:
        ConfigError: if no format of this backbone's weights recognizes the content.
    """
    fitting = [known for known in WEIGHT_FORMATS.values() if backbone in known.backbones]
    for known in fitting:
        if known.recognizes(file.content):
            return known
    wanted = " or ".join(known.title for known in fitting) or "file of a known format"
    raise ConfigError(f"{file.path}: not a {wanted}, which backbone {backbone!r} needs", hint=_content_of(file))


def backbone_in(file: WeightFile) -> str | None:
    """Return the name of the backbone in a file, where its content or the name of the file tells it.

    Args:
        file: the file.

    Returns:
        The backbone's name, or None where the config must name it.

    Raises:
        ConfigError: if no format recognizes the content and the name of the file.
    """
    recognized = [known for known in WEIGHT_FORMATS.values() if known.recognizes(file.content)]
    for known in recognized:
        if len(known.backbones) == 1:
            return known.backbones[0]
        if known.backbone_of is None:
            return None
        name = known.backbone_of(file.path.name)
        if name is not None:
            return name
    if recognized:
        names = ", ".join(name for known in recognized for name in known.backbones)
        raise ConfigError(
            f"{file.path}: a state dict of an unknown family, whose file name does not say which backbone it holds",
            hint=f"{_content_of(file)}; names of torchvision's files begin with {names}",
        )
    titles = " or a ".join(known.title for known in WEIGHT_FORMATS.values())
    raise ConfigError(f"{file.path}: not a {titles}", hint=_content_of(file))


def options_for(file: WeightFile, known: WeightFormat, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the backbone in a file: those that the file says, and the user's.

    Args:
        file: the file.
        known: its format.
        given: the options that the user gave.

    Raises:
        ConfigError: if the user's options do not suit the file, or the file and they do not say enough.
    """
    return dict(given) if known.options_in is None else known.options_in(file, given)


def load_into(backbone: nn.Module, *, name: str, known: WeightFormat, file: WeightFile) -> Imported:
    """Load the weights in a file into a backbone, in place.

    Args:
        backbone: the backbone. It stays as it was if the weights do not fit.
        name: its name.
        known: the format of the file.
        file: the file.

    Returns:
        What happened to each entry of the file.

    Raises:
        ConfigError: if the weights are those of another network. The message names the file.
    """
    state = known.unwrap(file.content)
    try:
        done = fill_backbone(backbone, state, known.keys_in(name, backbone, state))
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error.message}", hint=error.hint) from None
    dropped = [*done.dropped, *known.other_parts(file.content)]
    return Imported(matched=done.matched, dropped=dropped, missing=done.missing)


def _content_of(file: WeightFile) -> str:
    """Say what is in a file. torchvision's names are any names, so that they tell nothing."""
    others = [known for known in WEIGHT_FORMATS.values() if known is not TORCHVISION]
    found = next((known.title for known in others if known.recognizes(file.content)), None)
    return f"it is a {found}" if found else f"it holds {list_names([str(key) for key in file.content])}"
