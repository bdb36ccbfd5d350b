"""Randomness by address: a number is a pure function of (seed, epoch, sample, stream, i).

What it is: Philox-4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3" (SC 2011), vectorized over samples. The address *is* the counter:

    key      word 0, 1   seed, low and high half
    counter  word 0      sample, low half
             word 1      epoch
             word 2      stream << 24 | sample, high 24 bits
             word 3      i // 2          (one block of 128 bits holds the doubles i = 2k and 2k + 1)

So any batch can be planned on any rank, in any order, by any thread, and a new stream disturbs no other.
What it is not: a source of sequential state. There is none.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """One stream a knob, so that turning one knob leaves all others where they were. Numbers are part of the format
    of a run: never renumber, only append."""

    ORDER = 0
    CLIP = 1
    CLIP_PERMUTATION = 2
    CROP = 3
    FLIP = 4
    COLOR_APPLY = 5
    COLOR = 6
    COLOR_ORDER = 7
    GRAY = 8
    BLUR_APPLY = 9
    BLUR = 10
    REPLACEMENT = 11
    MODEL = 12


def philox(counter: UInt64Array, key: tuple[int, int]) -> UInt64Array:
    """Philox-4x32 with ten rounds.

    counter: u64[..., 4], each word below 2**32. key: two words below 2**32. Returns u64[..., 4], words below 2**32.
    """
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def bits(seed: int, epoch: int, samples: npt.ArrayLike, stream: Stream, count: int) -> UInt64Array:
    """`count` random 64-bit words for each sample: u64[..., count], with the shape of `samples` in front.

    Raises ValueError outside 0 <= seed < 2**64, 0 <= epoch < 2**32, 0 <= sample < 2**56, 0 <= stream < 256.
    """
    sample = np.asarray(samples, dtype=np.int64)
    if not 0 <= seed < 2**64 or not 0 <= epoch < 2**32:
        raise ValueError(f"seed {seed} or epoch {epoch} does not fit the generator's address")
    if sample.size and (sample.min() < 0 or sample.max() >= 2**56):
        raise ValueError("sample numbers must lie in [0, 2**56)")
    blocks = (count + 1) // 2
    words = sample.astype(np.uint64)
    counter = np.empty((*sample.shape, blocks, 4), dtype=np.uint64)
    counter[..., 0] = (words & _LOW)[..., None]
    counter[..., 1] = np.uint64(epoch)
    counter[..., 2] = (np.uint64(int(stream) << 24) | (words >> _SHIFT))[..., None]
    counter[..., 3] = np.arange(blocks, dtype=np.uint64)
    out = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = (out[..., 0::2] << _SHIFT) | out[..., 1::2]  # [..., blocks, 2]
    return pairs.reshape(*sample.shape, 2 * blocks)[..., :count]


def uniform(seed: int, epoch: int, samples: npt.ArrayLike, stream: Stream, count: int) -> FloatArray:
    """`count` doubles in [0, 1) for each sample, f64[..., count]; 53 random bits each. Raises as `bits` does."""
    return (bits(seed, epoch, samples, stream, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
