"""Running statistics that stay finite: what a step that went bad leaves in batch norms is taken back.

An update that is not finite is skipped, so it changes no weight. But the forward before it has moved the running mean
and variance of every batch norm, where a single NaN would stay for good: in every evaluation, and in every checkpoint.
What it is not: it does not notice bad steps (agreement.py), and queues of keys see to themselves (methods).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNormGuard:
    """The running statistics of a module's batch norms, as they were when they were finite last.

    Make it when they are what the next step begins with, and call `mend` after every step. On the device alone: the
    host waits for nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live: list[Tensor] = [
            buffer
            for norm in module.modules()
            if isinstance(norm, nn.modules.batchnorm._NormBase)
            for buffer in norm.buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._kept = _flat(self._live)
        pieces = torch.split(self._kept, [one.numel() for one in self._live])
        self._views = [piece.view(one.shape) for piece, one in zip(pieces, self._live, strict=True)]

    @torch.no_grad()
    def mend(self) -> None:
        """Give each value that is no longer finite the last finite one back."""
        if self._live:
            now = _flat(self._live)
            torch.where(now.isfinite(), now, self._kept, out=self._kept)
            torch._foreach_copy_(self._live, self._views)


def _flat(tensors: list[Tensor]) -> Tensor:
    """All values, f32[N]."""
    return torch.cat(
        [torch.empty(0, device=tensors[0].device if tensors else None), *(one.view(-1) for one in tensors)]
    )
