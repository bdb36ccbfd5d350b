"""Positions of a video transformer's tokens: fixed tables that are added to tokens, and rotations of queries and keys.

Tokens lie on a grid T' x H' x W' and are numbered along W', then H', then T'. All tables are computed from the size of
the grid, so that one network takes clips of any size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]  # tokens along time, height and width: T', H', W'
Pairs = Literal["adjacent", "tiled"]
Angles = tuple[Tensor, Tensor]  # cosines and sines of the rotation of each entry

_BASE = 10000.0


def sincos_1d(grid: Grid, width: int, device: torch.device) -> Tensor:
    """Return the table of VideoMAE: sines and cosines of the number of a token, in turn.

    Args:
        grid: tokens along time, height and width.
        width: width of a token.
        device: where the table is made.

    Returns:
        f32[T' H' W', width].
    """
    count = grid[0] * grid[1] * grid[2]
    position = torch.arange(count, dtype=torch.float64, device=device)
    return _sines(position, width).float()


def sincos_3d(grid: Grid, width: int, device: torch.device) -> Tensor:
    """Return a table with a part for each of the three axes: sines and cosines of a token's place along the axis.

    Height and width have a third of the entries each, rounded down to an even number, and time has the rest.

    Args:
        grid: tokens along time, height and width.
        width: width of a token; an even number.
        device: where the table is made.

    Returns:
        f32[T' H' W', width].
    """
    side = width // 6 * 2
    parts = [
        _sines(places, entries)
        for places, entries in zip(_places(grid, device), (width - 2 * side, side, side), strict=True)
    ]
    return torch.cat(parts, dim=1).float()


def resized_table(table: Tensor, grid: Grid) -> Tensor:
    """Return a learned table of one frame for another grid: bicubic in space, the same for every place in time.

    Args:
        table: [1, S * S, D], for S x S tokens.
        grid: tokens along time, height and width.

    Returns:
        [T' H' W', D].
    """
    return resized_frames(table[0], int(table.shape[1] ** 0.5), (1, *grid[1:])).repeat(grid[0], 1)


def resized_frames(table: Tensor, side: int, grid: Grid) -> Tensor:
    """Return a table for another grid with as many places in time, bicubic in space.

    Args:
        table: [T' S S, D], for S x S tokens per place in time.
        side: S.
        grid: tokens along time, height and width.

    Returns:
        [T' H' W', D].
    """
    if grid[1:] == (side, side):
        return table
    frames = table.reshape(grid[0], side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(frames, grid[1:], mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).flatten(0, 1)


def rotary_angles(grid: Grid, head: int, pairs: Pairs, side: int | None, device: torch.device) -> Angles:
    """Return cosines and sines of the angles by which queries and keys are rotated.

    Each of the three axes rotates a third of a head's entries (rounded down to an even number), two entries by one
    angle. The entries that are left are not rotated.

    Args:
        grid: tokens along time, height and width.
        head: width of a head.
        pairs: which entries of a third have the same angle: "adjacent" ones, as those that are rotated together, or
            those half a third apart ("tiled").
        side: places along height and width are stretched to 0 ... side - 1; None: they are counted from 0.
        device: where the tables are made.

    Returns:
        Two f32[T' H' W', head]. Entries that are not rotated have cosine 1 and sine 0.
    """
    third = head // 3 // 2 * 2
    time, height, width = _places(grid, device)
    if side is not None:
        height, width = height * (side - 1) / max(1, grid[1] - 1), width * (side - 1) / max(1, grid[2] - 1)
    frequency = _BASE ** (-torch.arange(third // 2, dtype=torch.float64, device=device) / (third / 2))
    angles = []
    for places in (time, height, width):
        angle = places[:, None] * frequency
        angles.append(angle.repeat_interleave(2, dim=1) if pairs == "adjacent" else angle.repeat(1, 2))
    angle = F.pad(torch.cat(angles, dim=1), (0, head - 3 * third))
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs of adjacent entries: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x: queries or keys, [N, heads, L, head].
        cosines: [L, head] or [N, 1, L, head].
        sines: like `cosines`.

    Returns:
        The rotated queries or keys, with the dtype of x.
    """
    first, second = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-second, first), dim=-1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


def _places(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of all tokens along time, height and width, each f64[T' H' W']."""
    axes = [torch.arange(length, dtype=torch.float64, device=device) for length in grid]
    time, height, width = torch.meshgrid(*axes, indexing="ij")
    return time.flatten(), height.flatten(), width.flatten()


def _sines(places: Tensor, entries: int) -> Tensor:
    """Return sin and cos of places times falling frequencies, in turn: f64[L] -> f64[L, entries]."""
    frequency = _BASE ** (-torch.arange(0, entries, 2, dtype=torch.float64, device=places.device) / entries)
    angle = places[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
