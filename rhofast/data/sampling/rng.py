"""Random numbers by address: each is a pure function of (seed, epoch, sample, stream, i).

The generator is Philox-4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3" (SC 2011), vectorized over samples. The address is the counter:

    key      word 0, 1   seed, low and high half
    counter  word 0      sample, low half
             word 1      epoch, of the run or of each sample
             word 2      stream << 24 | sample, high 24 bits
             word 3      i // 2          (one block of 128 bits holds the doubles i = 2k and 2k + 1)

So any batch can be planned on any rank, in any order, by any thread, and a new stream leaves all others unchanged.
There is no sequential state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]
Epoch = int | npt.NDArray[np.int64]  # one for all samples, or one per sample

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """The random streams, one per knob, so that changing one knob leaves the draws of all others unchanged.

    The numbers are part of the format of a run: never renumber them, only append.
    """

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
    VISITS = 17
    RAND_OP = 18
    RAND_APPLY = 19
    RAND_STRENGTH = 20
    RAND_SIGN = 21
    ERASE_APPLY = 22
    ERASE_BOX = 23
    ERASE_NOISE = 24
    MIX_APPLY = 25
    MIX_KIND = 26
    MIX_SHARE = 27
    MIX_CENTER = 28


def philox(counter: UInt64Array, key: tuple[int, int]) -> UInt64Array:
    """Compute Philox-4x32 with ten rounds.

    Args:
        counter: u64[..., 4], words below 2**32.
        key: Two words below 2**32.

    Returns:
        u64[..., 4], words below 2**32.
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
    """Draw random 64-bit words for each sample.

    Args:
        seed: Seed of the run, in [0, 2**64).
        epoch: Epoch of all samples, or one per sample, in [0, 2**32).
        samples: Numbers of the samples, in [0, 2**56).
        stream: The random stream.
        count: Number of words per sample.

    Returns:
        u64[..., count], where ... is the shape that `samples` and `epoch` broadcast to.

    Raises:
        ValueError: The seed, an epoch or a sample is outside its interval.
    """
    return _words(seed, epoch, samples, {stream: count})[..., :count]


def uniform(seed: int, epoch: Epoch, samples: npt.ArrayLike, stream: Stream, count: int) -> FloatArray:
    """Draw uniform numbers for each sample, with 53 random bits each.

    Args:
        seed: Seed of the run, in [0, 2**64).
        epoch: Epoch of all samples, or one per sample, in [0, 2**32).
        samples: Numbers of the samples, in [0, 2**56).
        stream: The random stream.
        count: Number of numbers per sample.

    Returns:
        f64[..., count] in [0, 1).

    Raises:
        ValueError: The seed, an epoch or a sample is outside its interval.
    """
    return _doubles(bits(seed, epoch, samples, stream, count))


def uniforms(seed: int, epoch: Epoch, samples: npt.ArrayLike, counts: Mapping[Stream, int]) -> dict[Stream, FloatArray]:
    """Draw the numbers of `uniform` for several streams at once, which is faster than one after another.

    Args:
        seed: Seed of the run, in [0, 2**64).
        epoch: Epoch of all samples, or one per sample, in [0, 2**32).
        samples: Numbers of the samples, in [0, 2**56).
        counts: Number of numbers per sample for each stream.

    Returns:
        f64[..., count] in [0, 1) for each stream.

    Raises:
        ValueError: The seed, an epoch or a sample is outside its interval.
    """
    numbers = _doubles(_words(seed, epoch, samples, counts))
    drawn, place = {}, 0
    for stream, count in counts.items():
        drawn[stream] = numbers[..., place : place + count]
        place += 2 * _blocks(count)
    return drawn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipDraws:
    """The random numbers of B videos with P clips each. Those of clip p do not depend on the number of clips.

    Attributes:
        seed: Seed of the run, in [0, 2**64).
        epoch: Epoch of all samples, or i64[B], in [0, 2**32).
        samples: Numbers of the samples in the data set, i64[B], in [0, 2**56).
        num_clips: Number of clips per video, P.
    """

    seed: int
    epoch: Epoch
    samples: npt.NDArray[np.int64]
    num_clips: int

    def uniforms(self, counts: Mapping[Stream, int]) -> dict[Stream, FloatArray]:
        """Draw as many uniform numbers per clip as `counts` says for each stream: f64[B, P, count] in [0, 1)."""
        of_video = {stream: self.num_clips * count for stream, count in counts.items()}
        drawn = uniforms(self.seed, self.epoch, self.samples, of_video)
        shape = len(self.samples), self.num_clips
        return {stream: numbers.reshape(*shape, counts[stream]) for stream, numbers in drawn.items()}

    def bits(self, stream: Stream) -> UInt64Array:
        """Draw one random 64-bit word per clip, u64[B, P]."""
        return bits(self.seed, self.epoch, self.samples, stream, self.num_clips)


def _words(seed: int, epoch: Epoch, samples: npt.ArrayLike, counts: Mapping[Stream, int]) -> UInt64Array:
    """Return whole blocks of two words of each stream, one stream after another, u64[..., n]."""
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
    """Return the seed of a torch generator for one step of a rank, so that the model's draws have an address too.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        rank: Number of the process.
        stream: The random stream; by default that of torch's global generator.

    Returns:
        The seed, in [0, 2**63).
    """
    return int(bits(seed, step, rank, stream, 1)[0] >> 1)
