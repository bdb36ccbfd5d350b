"""Permute numbers by a keyed bijection on [0, N), without an O(N) array.

It is an alternating Feistel network on just the bits that hold N, with cycle walking: it is applied again while the
result is N or more (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The round keys come from
(seed, epoch) and the number of the bijection.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhofast.data.sampling.rng import Stream, UInt64Array, bits

Int64Array = npt.NDArray[np.int64]

_ROUNDS = 8


def sample_at(positions: npt.ArrayLike, num_samples: int, *, seed: int, epoch: int) -> Int64Array:
    """Return the samples at positions of an epoch, in a permutation of all samples.

    Args:
        positions: Positions in [0, num_samples), of any shape.
        num_samples: Number of samples.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        Samples in [0, num_samples), i64 of the same shape.

    Raises:
        ValueError: A position is outside its interval.
    """
    position = check_positions(positions, num_samples)
    keys = round_keys(seed, epoch, 0)
    flat = position.reshape(-1)
    size = np.full(flat.shape, num_samples, dtype=np.int64)
    return permute(flat, size, np.broadcast_to(keys, (*flat.shape, _ROUNDS))).reshape(position.shape)


def round_keys(seed: int, epoch: int, numbers: npt.ArrayLike) -> UInt64Array:
    """Return the round keys of numbered bijections of an epoch.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        numbers: Numbers of the bijections, of any shape.

    Returns:
        u64[..., rounds].
    """
    return bits(seed, epoch, numbers, Stream.ORDER, _ROUNDS)


def check_positions(positions: npt.ArrayLike, num_samples: int) -> Int64Array:
    """Return positions as an array, i64.

    Args:
        positions: Positions of any shape.
        num_samples: Number of positions.

    Returns:
        i64 of the same shape.

    Raises:
        ValueError: A position is outside [0, num_samples).
    """
    position = np.asarray(positions, dtype=np.int64)
    if position.size and (position.min() < 0 or position.max() >= num_samples):
        raise ValueError(f"positions must lie in [0, {num_samples})")
    return position


def permute(position: Int64Array, size: Int64Array, keys: UInt64Array) -> Int64Array:
    """Map each position by a bijection of its own.

    Args:
        position: i64[n].
        size: Size of each bijection's domain [0, size), i64[n].
        keys: Round keys of each bijection, u64[n, rounds].

    Returns:
        i64[n].
    """
    width = np.maximum(2, np.frexp(size - 1.0)[1]).astype(np.uint64)  # the bit length of size - 1, exact below 2**53
    value, bound = position.astype(np.uint64), size.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):  # fewer than two passes on average: the domain is less than twice the size
        value[outside] = _feistel(value[outside], width[outside], keys[outside])
        outside = outside[value[outside] >= bound[outside]]
    return value.astype(np.int64)


def _feistel(value: UInt64Array, width: UInt64Array, keys: UInt64Array) -> UInt64Array:
    one = np.uint64(1)
    low = width // np.uint64(2)
    low_mask, high_mask = (one << low) - one, (one << (width - low)) - one
    left, right = value >> low, value & low_mask
    for number in range(_ROUNDS):
        key = keys[:, number]
        if number % 2 == 0:
            left = left ^ (mix(right + key) & high_mask)
        else:
            right = right ^ (mix(left + key) & low_mask)
    joined: UInt64Array = (left << low) | right
    return joined


def mix(value: UInt64Array) -> UInt64Array:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64Array = value ^ (value >> np.uint64(31))
    return mixed
