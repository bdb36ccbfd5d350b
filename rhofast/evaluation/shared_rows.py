"""Rows of numbers that all ranks compute and read, with one copy in the memory of each machine.

    rank 0 --rows--> file of machine 0, mapped by its ranks <--rows-- rank 1
                            | rows that other machines lack, by broadcast
                            v
                     file of machine 1, mapped by its ranks

The features of Kinetics-400 are 4 GB; a copy per process would be 34 GB on a machine with eight. The file has no name
once all ranks have opened it, so nothing is left of it when they end, however they end. A machine with one rank needs
no file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import rank, ranks_per_node, world_size
from rhofast.errors import ConfigError

_BROADCAST = 1 << 24  # numbers that are sent to other machines at once


class SharedRows:
    """f32[N, ...], one row per item. Every rank writes its own rows, and reads all of them after `join`.

    The ranks of a machine follow each other, and all machines have as many.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        """Call it in every process, with the same values.

        Args:
            count: N.
            device: Device through which machines exchange rows: of this rank, for its process group.

        Raises:
            ConfigError: If the folder of temporary files does not take one.
        """
        self._count, self._device = count, device
        self._per_node = ranks_per_node(world_size())
        self._values: npt.NDArray[np.float32] | None = None
        self._descriptor = self._open() if self._per_node > 1 else None

    @property
    def is_first(self) -> bool:
        """Return whether this rank is the first of its machine."""
        return rank() % self._per_node == 0

    def write(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        """Write rows that no other rank of this machine writes.

        Args:
            rows: i64[B], numbers of the rows.
            values: f32[B, ...].

        Raises:
            ConfigError: If there is no room for all rows.
        """
        self._mapped(values.shape[1:])[rows] = values

    def join(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Exchange rows with other machines; call it in every process, when all rows are written.

        Args:
            rows: i64[n], the rows that this rank has written, and that not all machines have.

        Returns:
            f32[N, ...], all rows, which are to be read only. Rows that nobody has written are undefined.

        Raises:
            ConfigError: If there is no room for all rows.
        """
        shape = None if self._values is None else self._values.shape[1:]
        parts = gather_objects((rows, shape))  # from here on, all rows of this machine are there
        shape = next((shape for _, shape in parts if shape is not None), (0,))
        values = self._mapped(shape)
        if self._per_node < world_size():
            for source, (others, _) in enumerate(parts):
                self._send(values, others, source)
            gather_objects(None)
        return values

    def compact(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Keep some rows of all, in place; call it in every process, after `join`.

        Args:
            rows: i64[n], numbers of the rows that are kept, ascending.

        Returns:
            f32[n, ...], these rows, which are to be read only.
        """
        assert self._values is not None, "rows are joined first"
        if len(rows) < self._count:
            if self.is_first:
                for first in range(0, len(rows), 4096):
                    kept = rows[first : first + 4096]  # none of them lies before the place to which it moves
                    self._values[first : first + len(kept)] = self._values[kept]
            gather_objects(None)
        return self._values[: len(rows)]

    def _send(self, values: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], source: int) -> None:
        """Send rows of one rank to the other machines, where the first rank writes them."""
        takes = self.is_first and source // self._per_node != rank() // self._per_node
        width = max(1, int(np.prod(values.shape[1:])))
        for first in range(0, len(rows), max(1, _BROADCAST // width)):
            some = rows[first : first + max(1, _BROADCAST // width)]
            sent = torch.from_numpy(values[some]) if rank() == source else torch.empty(len(some), *values.shape[1:])
            sent = sent.to(self._device)
            dist.broadcast(sent, src=source)
            if takes:
                values[some] = sent.cpu().numpy()

    def _mapped(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return all rows, for which memory is taken when the first ones are known."""
        if self._values is None:
            whole = (self._count, *shape)
            size = int(np.prod(whole)) * np.dtype(np.float32).itemsize
            if self._descriptor is None or not size:
                self._values = np.empty(whole, np.float32)
            else:
                try:  # without it, a full disk would end the process without a word when a row is written
                    os.posix_fallocate(self._descriptor, 0, size)
                    mapped = mmap.mmap(self._descriptor, size)
                except OSError as error:
                    raise _no_room(f"{size / 1e9:.2f} GB: {error.strerror}") from None
                os.close(self._descriptor)
                self._values = np.frombuffer(mapped, np.float32).reshape(whole)
        return self._values

    def _open(self) -> int:
        """Open the file of this machine, which its first rank makes; return the descriptor."""
        descriptor, made = -1, ("", "")
        if self.is_first:
            try:
                descriptor, path = tempfile.mkstemp(prefix="rhofast-rows-")
                made = (path, "")
            except OSError as error:
                made = ("", str(error.strerror))
        every = gather_objects(made)
        path, _ = every[rank() // self._per_node * self._per_node]
        failed = next((failure for _, failure in every if failure), "")
        if not failed and not self.is_first:
            try:
                descriptor = os.open(path, os.O_RDWR)
            except OSError as error:
                failed = f"{error.filename}: {error.strerror}"
        failed = next((failure for failure in gather_objects(failed) if failure), "")
        if self.is_first and path:
            with contextlib.suppress(OSError):
                Path(path).unlink()
        if failed:
            raise _no_room(failed)
        return descriptor


def _no_room(why: Any) -> ConfigError:
    return ConfigError(
        f"{tempfile.gettempdir()}: the processes of this machine cannot share features there: {why}",
        hint="set TMPDIR to a folder on a local disk with room",
    )
