"""Which sample stands at which position of which epoch: a stateless permutation, never an O(N) array.

A keyed bijection on [0, N): an alternating Feistel network on just the bits that hold N, and cycle walking (apply
again while the result is N or above; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The
round keys come from (seed, epoch), so every epoch has another order, and position 10**8 costs what position 0 costs:
resuming is arithmetic.

    positions  0 1 2 3 | 4 5 6 7 | ...       one global batch after another
    rank       0 0 1 1 | 0 0 1 1 | ...       each rank takes its slice of every global batch
"""

import numpy as np
import numpy.typing as npt

from rhofast.rng import Stream, UInt64Array, bits

_ROUNDS = 8


def sample_at(positions: npt.ArrayLike, num_samples: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The samples at the given positions of an epoch: i64, same shape, a permutation of [0, num_samples) over all.

    Raises ValueError if a position is outside [0, num_samples).
    """
    position = np.asarray(positions, dtype=np.int64)
    if position.size and (position.min() < 0 or position.max() >= num_samples):
        raise ValueError(f"positions must lie in [0, {num_samples})")
    width = max(2, (num_samples - 1).bit_length())
    keys = bits(seed, epoch, 0, Stream.ORDER, _ROUNDS)
    value = position.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():  # on average below two times: the domain is less than twice num_samples
        value[outside] = _feistel(value[outside], width, keys)
        outside = value >= np.uint64(num_samples)
    return value.astype(np.int64)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole global batches in one pass; the rest of the permutation is left for other epochs' orders. Raises
    ValueError if there is not even one."""
    if batch_size > num_samples:
        raise ValueError(f"a batch of {batch_size} does not fit into {num_samples} samples")
    return num_samples // batch_size


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of every global batch that a rank takes. Raises ValueError where the ranks do not divide it."""
    if batch_size % world_size:
        raise ValueError(f"a global batch of {batch_size} cannot be divided among {world_size} processes")
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def _feistel(value: UInt64Array, width: int, keys: UInt64Array) -> UInt64Array:
    low = np.uint64(width // 2)
    low_mask, high_mask = np.uint64((1 << (width // 2)) - 1), np.uint64((1 << (width - width // 2)) - 1)
    left, right = value >> low, value & low_mask
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = left ^ (_mix(right + key) & high_mask)
        else:
            right = right ^ (_mix(left + key) & low_mask)
    return (left << low) | right


def _mix(value: UInt64Array) -> UInt64Array:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64Array = value ^ (value >> np.uint64(31))
    return mixed
