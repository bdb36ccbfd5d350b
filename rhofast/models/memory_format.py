"""The memory format of a network's weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def to_channels_last(network: AnyModule) -> AnyModule:
    """Store the weights of 3D convolutions with channels last, in place; other weights stay as they are.

    `Module.to(memory_format=torch.channels_last_3d)` refuses networks that have 2D convolutions, too.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 5:
            tensor.data = tensor.data.to(memory_format=torch.channels_last_3d)
    return network
