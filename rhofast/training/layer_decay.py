"""Layer-wise learning rate decay: the further a layer is from the output, the lower its rate (BEiT, arXiv 2106.08254).

A backbone has `layers()`, the names of its modules and parameters by layer, the layer next to the input first. With L
layers, layer i in [0, L) gets the share decay^(L - i) of the rate, and what is in no layer (the last normalization, the
classifier) gets all of it. For a ViT with d blocks, L = d + 1 with the projection of patches: the released code of BEiT
and VideoMAE gives the same rates.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rhofast.errors import ConfigError


def layer_scales(backbone: nn.Module, decay: float, name: str) -> dict[int, float]:
    """Return the share of the learning rate that each parameter of a backbone gets.

    Args:
        backbone: The backbone.
        decay: `optim.layer_decay`, in (0, 1].
        name: Name of the backbone in the configuration, for errors.

    Returns:
        Share in (0, 1] by the `id` of each parameter that belongs to a layer; {} for a decay of 1.

    Raises:
        ConfigError: The backbone does not say what its layers are, or names what it does not have.
    """
    if decay == 1:
        return {}
    method = getattr(backbone, "layers", None)
    if not callable(method):
        raise ConfigError(
            f"optim.layer_decay={decay:g}: backbone.name={name} does not say what its layers are",
            hint="set optim.layer_decay=1, or give the network a method layers() that returns their names",
        )
    layers = method()
    if not isinstance(layers, Sequence) or any(isinstance(one, str) or not isinstance(one, Sequence) for one in layers):
        raise ConfigError(f"backbone.name={name}: layers() must return a list of lists of names")
    scales: dict[int, float] = {}
    for number, names in enumerate(layers):
        for part in names:
            found = [p for key, p in backbone.named_parameters() if f"{key}.".startswith(f"{part}.")]
            if not found:
                raise ConfigError(f"backbone.name={name}: layers() names {part!r}, of which there are no parameters")
            scales |= {id(p): decay ** (len(layers) - number) for p in found}
    return scales
