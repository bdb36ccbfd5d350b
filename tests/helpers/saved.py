"""How much autograd keeps of a forward pass for the backward pass."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def saved_bytes() -> Iterator[Counter[str]]:
    """Count what autograd keeps within the block of what forward passes compute: each storage once, as "bytes"."""
    known: set[int] = set()
    count: Counter[str] = Counter()
    held = []  # so that no storage gets the address of another

    def pack(value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter) and value.untyped_storage().data_ptr() not in known:
            known.add(value.untyped_storage().data_ptr())
            count["bytes"] += value.untyped_storage().nbytes()
        held.append(value.detach())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield count
