"""Keep memory alive until the device has read it."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch


class Event(Protocol):
    """A mark in the work of a device, like torch.cuda.Event."""

    def query(self) -> bool:
        """Return whether the device has come past it."""
        ...


class MemoryInUse:
    """Holds tensors whose memory belongs to somebody who does not know that another stream reads them.

    DALI, or torch for another stream, gives memory to the next batch as soon as no tensor refers to it, while the
    device may have yet to read it. Events must be recorded on one stream, so that they pass in order. It is not
    thread-safe.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[Event, torch.Tensor]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, tensor: torch.Tensor, until: Event) -> None:
        """Hold a tensor until an event has passed, and let go of those whose event has.

        The host does not wait: a tensor is let go when another one comes.

        Args:
            tensor: The tensor.
            until: Event after the work that reads it.
        """
        self._held.append((until, tensor))
        while self._held and self._held[0][0].query():
            self._held.popleft()
