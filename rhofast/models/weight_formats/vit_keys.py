"""Entries of a `vit` that other programs store in another way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rhofast.models.weight_conversion import Computed


def joined(*thirds: Tensor) -> Tensor:
    """Return the layers of queries, keys and values as one: three of [D, ...] -> [3 D, ...]."""
    return torch.cat(thirds)


def joined_without_key(query: Tensor, value: Tensor) -> Tensor:
    """Return the biases of queries and values, each [D], with 0 for the keys between them: [3 D].

    VideoMAE has no bias of keys: it would add the same to all scores of a query.
    """
    return torch.cat((query, torch.zeros_like(value), value))


def scaled(value: Tensor, gamma: Tensor) -> Tensor:
    """Return the weight or bias of a layer whose output is multiplied with a vector (LayerScale): [D, ...], [D]."""
    return value.float() * gamma.float().reshape(-1, *[1] * (value.ndim - 1))


def no_entry() -> Tensor:
    """Stand for an entry that the other network does not have."""
    raise AssertionError("it has no names")


ABSENT = Computed(names=(), compute=no_entry)


def folded_scales(state: Mapping[str, Tensor], blocks: str, depth: int, names: tuple[str, str]) -> dict[str, Computed]:
    """Return the last layers of attention and MLP, with the vectors that scale their output.

    Args:
        state: the state dict.
        blocks: what stands before the number of a block in names.
        depth: number of blocks.
        names: names, within a block, of the two vectors.

    Returns:
        The entries by the backbone's names. Nothing if there are no such vectors.
    """
    if f"{blocks}0.{names[0]}" not in state:
        return {}
    return {
        f"blocks.{number}.{layer}.{part}": Computed(
            names=(f"{blocks}{number}.{layer}.{part}", f"{blocks}{number}.{gamma}"), compute=scaled
        )
        for number in range(depth)
        for layer, gamma in (("attn.proj", names[0]), ("mlp.fc2", names[1]))
        for part in ("weight", "bias")
    }
