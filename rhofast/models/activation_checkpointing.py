"""Activation checkpointing: a backbone's blocks keep only their inputs and recompute their activations in backward.

It costs about one more forward pass of the trained network and changes nothing else: gradients are the same, random
layers draw the same numbers, batch norm counts each batch once, and names in the state dict stay. Batch norm over
several ranks exchanges its statistics a second time, at the same place in every rank's backward pass. Forward passes
without a graph (momentum networks, evaluation) are not affected. Whole blocks are checkpointed, not single operations.
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
    """Make every block of a backbone recompute its activations in backward, in place, and return their number.

    A block is a module with several layers that stands in a list or a sequence of the network (also in nested ones,
    such as a ResNet's stages): residual blocks, inception blocks, transformer blocks. Everything else, such as stems,
    stays as it is.
    """
    blocks = list(_blocks(backbone))
    for block in blocks:
        block.forward = functools.partial(_forward, block, block.forward)  # no wrapper, so state dict names stay
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in _CONTAINERS:  # not subclasses, such as convolution, norm and ReLU as one layer
            yield from _blocks(child)
        elif type(module) in _CONTAINERS and any(True for _ in child.children()):
            yield child


def _forward(block: nn.Module, forward: Callable[..., Any], *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=functools.partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of its repetition."""
    return contextlib.nullcontext(), _keep_statistics(block)


@contextlib.contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch norms write their running statistics into copies that are thrown away.

    They still write, so that autograd saves the same number of tensors as in the forward pass.
    """
    saved = []
    for norm in block.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            saved.append((norm, dict(norm._buffers)))
    try:
        for norm, buffers in saved:
            for name, buffer in buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for norm, buffers in saved:
            norm._buffers.update(buffers)
