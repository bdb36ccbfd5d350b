"""Randomness by address: a number is a pure function of (seed, epoch, sample, stream, i).

What it is: Philox-4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3" (SC 2011), vectorized over samples. The address *is* the counter:

    key      word 0, 1   seed, low and high half
    counter  word 0      sample, low half
             word 1      epoch, of the run or of each sample
             word 2      stream << 24 | sample, high 24 bits
             word 3      i // 2          (one block of 128 bits holds the doubles i = 2k and 2k + 1)

So any batch can be planned on any rank, in any order, by any thread, and a new stream disturbs no other.
What it is not: a source of sequential state. There is none.
"""

from collections.abc import Mapping
from enum import IntEnum

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]
Epoch = int | npt.NDArray[np.int64]  # one for all samples, or one a sample

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
    CLIP_RATE = 13
    DIFFERENCE = 14
    MIXTURE = 15
    DROPOUT = 16


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


def bits(seed: int, epoch: Epoch, samples: npt.ArrayLike, stream: Stream, count: int) -> UInt64Array:
    """`count` random 64-bit words for each sample: u64[..., count], with the shape that `samples` and `epoch` broadcast
    to in front.

    Raises ValueError outside 0 <= seed < 2**64, 0 <= epoch < 2**32, 0 <= sample < 2**56, 0 <= stream < 256.
    """
    return _words(seed, epoch, samples, {stream: count})[..., :count]


def uniform(seed: int, epoch: Epoch, samples: npt.ArrayLike, stream: Stream, count: int) -> FloatArray:
    """`count` doubles in [0, 1) for each sample, f64[..., count]; 53 random bits each. Raises as `bits` does."""
    return _doubles(bits(seed, epoch, samples, stream, count))


def uniforms(seed: int, epoch: Epoch, samples: npt.ArrayLike, counts: Mapping[Stream, int]) -> dict[Stream, FloatArray]:
    """The same numbers as `uniform` for several streams at once, which is faster than one after another."""
    every = _doubles(_words(seed, epoch, samples, counts))
    drawn, place = {}, 0
    for stream, count in counts.items():
        drawn[stream] = every[..., place : place + count]
        place += 2 * _blocks(count)
    return drawn


def _words(seed: int, epoch: Epoch, samples: npt.ArrayLike, counts: Mapping[Stream, int]) -> UInt64Array:
    """u64[..., n]: whole blocks of two words of each stream, one stream after another."""
    sample, when = np.broadcast_arrays(np.asarray(samples, dtype=np.int64), np.asarray(epoch, dtype=np.int64))
    if not 0 <= seed < 2**64 or (when.size and (when.min() < 0 or when.max() >= 2**32)):
        raise ValueError(f"seed {seed} or epoch {epoch} does not fit the generator's address")
    if sample.size and (sample.min() < 0 or sample.max() >= 2**56):
        raise ValueError("sample numbers must lie in [0, 2**56)")
    words = sample.astype(np.uint64)
    stream = np.concatenate(
        [np.full(_blocks(count), int(stream) << 24, dtype=np.uint64) for stream, count in counts.items()]
    )
    block = np.concatenate([np.arange(_blocks(count), dtype=np.uint64) for count in counts.values()])
    counter = np.empty((*sample.shape, len(block), 4), dtype=np.uint64)
    counter[..., 0] = (words & _LOW)[..., None]
    counter[..., 1] = when[..., None]
    counter[..., 2] = stream | (words >> _SHIFT)[..., None]
    counter[..., 3] = block
    out = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = (out[..., 0::2] << _SHIFT) | out[..., 1::2]  # [..., blocks, 2]
    return pairs.reshape(*sample.shape, 2 * len(block))


def _blocks(count: int) -> int:
    return (count + 1) // 2


def _doubles(words: UInt64Array) -> FloatArray:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def torch_seed(seed: int, step: int, rank: int, stream: Stream = Stream.MODEL) -> int:
    """Of a torch generator in a step of a rank, by default the global one: what the model draws has an address, too."""
    return int(bits(seed, step, rank, stream, 1)[0] >> 1)
