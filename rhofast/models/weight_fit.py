"""Compare tensors with those of a network, before they are loaded or the network is even built.

`load_state_dict` converts any type of number in silence, and a network is allocated before its weights are compared. So
what comes from a file is compared first, with a network that has shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SHOWN = 120  # characters of a name
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def state_on_meta(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return the state dict of a network that would be built, without memory for its tensors.

    Args:
        build: Builds the network.

    Raises:
        ValueError: Its sizes are beyond what a tensor can have.
    """
    try:
        with torch.device("meta"):
            return dict(build().state_dict())
    except (RuntimeError, OverflowError, TypeError) as error:
        text = str(error).partition("\n")[0]
        raise ValueError(f"a network of impossible sizes: {text}") from None


def find_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, exact: bool = True) -> str | None:
    """Return how the entries of a state dict differ from those of a network, or None.

    Args:
        expected: The state dict of the network, whose tensors may lie on the meta device.
        found: What would be loaded.
        exact: Whether types of numbers must be the same. If not, any floating type does for a floating one.

    Returns:
        The first difference in one line: a missing or an unknown entry, another shape, another type of number.
    """
    for name in expected:
        if name not in found:
            return f"{shown(name)} is missing"
    for name in found:
        if name not in expected:
            return f"{shown(name)} is not known"
    for name, own in expected.items():
        if (misfit := misfit_of(own, found[name], exact=exact)) is not None:
            return f"{shown(name)} {misfit}"
    return None


def misfit_of(own: Tensor, found: Any, *, exact: bool = True) -> str | None:
    """Return how a tensor differs from one of a network, or None.

    Args:
        own: The tensor of the network, which may lie on the meta device.
        found: What would be loaded.
        exact: Whether types of numbers must be the same. If not, any floating type does for a floating one.
    """
    if not isinstance(found, Tensor):
        return f"is a {type(found).__name__}, not a tensor"
    if found.layout != torch.strided or found.is_meta or found.is_quantized:
        return "is not a dense tensor with values"
    if found.shape != own.shape:
        return f"has the shape {list(found.shape)}, here {list(own.shape)}"
    alike = found.dtype.is_floating_point if own.dtype.is_floating_point else found.dtype in _WHOLE
    if not (found.dtype == own.dtype if exact else alike):
        return f"has values of type {_name(found.dtype)}, here {_name(own.dtype)}"
    return None


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, or None."""
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            return shown(name)
    return None


def shown(name: str) -> str:
    """Return the name of an entry, safe and short enough for a message."""
    text = name if name.isprintable() and name.isascii() else ascii(name)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
