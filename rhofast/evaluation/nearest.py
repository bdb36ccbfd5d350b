"""Exact search for the nearest rows of a bank by cosine, on the device, with the queries divided over the ranks.

    bank f32[A, V, D] --> the mean over the views of each row that counts, on the device, f32[N, D]
    queries f32[M, D] --> blocks of QUERY_BLOCK rows --> cosines with the whole bank: a matrix product [B, N]
                      --> topk --> the K nearest rows of each query, the nearest first

Of equally near rows the smaller row number comes first, and is taken first where the K-th and the next are equal.
Blocks are cut from all queries before they are divided, and one rank computes a whole block, so that the number of
ranks changes no bit. Products are in float32, whatever precision the program has allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import rank, world_size

QUERY_BLOCK = 256
"""Queries of one matrix product; it has QUERY_BLOCK * N cosines, 246 MB for the 240,000 rows of Kinetics-400."""

_COPIED = 4096  # rows of the bank that are copied to the device at once
_PADDED = 32  # queries to which the last block is filled up: products of very few rows are rounded in another way


def nearest_rows(
    bank: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    count: int,
    *,
    device: torch.device,
    rows: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Find the rows of a bank that are nearest to each query. Call it in every process, with the same values.

    Args:
        bank: f32[A, D], rows of any length, or f32[A, V, D], of which the mean over V views counts. A row of length 0
            has the cosine 0 with everything. It is read block by block, and not copied on the host.
        queries: f32[M, D], of any length.
        count: K, at most N.
        device: Device of this rank. It holds the means.
        rows: i64[N], the rows of the bank that count. None: all, N = A.

    Returns:
        (cosine f32[M, K], row i64[M, K]), the nearest first, on every rank. A row is a place among the N.
    """
    blocks = [(first, min(first + QUERY_BLOCK, len(queries))) for first in range(0, len(queries), QUERY_BLOCK)]
    ranks = world_size()
    begin, end = (len(blocks) * place // ranks for place in (rank(), rank() + 1))
    found = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), _full_precision():
        units = _unit(_means(bank, rows, device)) if begin < end else None
        for first, last in blocks[begin:end]:
            assert units is not None
            padded = torch.zeros(-(-(last - first) // _PADDED) * _PADDED, queries.shape[1], device=device)
            padded[: last - first] = torch.from_numpy(queries[first:last]).to(device)
            cosine, row = nearest_columns((_unit(padded) @ units.T)[: last - first], count)
            found.append((cosine.cpu().numpy(), row.cpu().numpy()))
    parts = [part for parts in gather_objects(found) for part in parts]
    if not parts:
        return np.empty((0, count), np.float32), np.empty((0, count), np.int64)
    return np.concatenate([cosine for cosine, _ in parts]), np.concatenate([row for _, row in parts])


def nearest_columns(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of each row with their columns; of equal values those of smaller columns come first.

    Args:
        similarity: f[B, N].
        count: K, at most N.

    Returns:
        (values f[B, K], columns i64[B, K]), the largest value first.
    """
    more = min(count + 1, similarity.shape[1])
    value, column = similarity.topk(more)
    if more > count:
        # Which of the values that equal the K-th are among the K is up to topk.
        tied = (value[:, count - 1] == value[:, count]).nonzero()[:, 0]
        value, column = value[:, :count], column[:, :count].contiguous()
        if len(tied):
            column[tied] = _first_columns(similarity[tied], value[tied, -1:], count)
    column = column.sort(dim=1).values
    value, order = similarity.gather(1, column).sort(dim=1, descending=True, stable=True)
    return value, column.gather(1, order)


def _first_columns(similarity: Tensor, least: Tensor, count: int) -> Tensor:
    """Return the columns of all values above `least` and of the first that equal it, i64[B, K] in rising order.

    Args:
        similarity: f[B, N].
        least: f[B, 1], the K-th largest value of each row.
        count: K.
    """
    above, equal = similarity > least, similarity == least
    room = count - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(len(similarity), count)


def _means(bank: npt.NDArray[np.float32], rows: npt.NDArray[np.int64] | None, device: torch.device) -> Tensor:
    """Return the means over the views of rows of a bank, f32[N, D] on a device, without a copy on the host."""
    count = len(bank) if rows is None else len(rows)
    means = torch.empty(count, bank.shape[-1], device=device)
    for first in range(0, count, _COPIED):
        last = min(first + _COPIED, count)
        some = bank[first:last] if rows is None else bank[rows[first:last]]
        means[first:last] = torch.from_numpy(some if some.ndim == 2 else some.mean(axis=1))
    return means


def _unit(rows: Tensor) -> Tensor:
    """Divide rows by their length, in place."""
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny))


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Compute matrix products of float32 in float32, not in TF32 or bf16, within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
