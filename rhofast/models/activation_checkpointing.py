"""Activation checkpointing: a backbone's blocks keep what goes in, and backward computes the rest again.

It costs about one more forward of the trained network and changes nothing else: gradients are the same, random layers
draw the same numbers, batch norm counts each batch once, and names in the state dict stay. Batch norm over several
ranks exchanges its statistics a second time; every rank's backward comes to that at the same place. Forwards without a
graph (key networks, evaluation) are left alone. What it is not: a choice of single operations to keep.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def checkpoint_blocks(backbone: nn.Module) -> int:
    """Let every block of `backbone`, in place, compute its activations again in backward. Returns how many there are.

    A block is what stands in a list or a chain of the network (also in chains of chains: a ResNet's stages) and is made
    of several layers: residual and inception blocks, those of transformers. The rest, stems say, is as before.
    """
    blocks = list(_blocks(backbone))
    for block in blocks:
        block.forward = functools.partial(_forward, block, block.forward)  # in place: names in the state dict stay
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in _CONTAINERS:  # not those derived from them: convolution, norm and ReLU as one layer, say
            yield from _blocks(child)
        elif type(module) in _CONTAINERS and any(True for _ in child.children()):
            yield child


def _forward(block: nn.Module, forward: Callable[..., Any], *given: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given)
    return checkpoint(forward, *given, use_reentrant=False, context_fn=functools.partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward, and around its repetition."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms write their running statistics into copies that are thrown away. (That they do write keeps the
    number of tensors that autograd saves the same as in the forward.)"""
    kept = []
    for norm in block.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            kept.append((norm, dict(norm._buffers)))
    try:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)
