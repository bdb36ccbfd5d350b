"""Randomness by address."""

import numpy as np
import pytest

from rhofast.data.sampling.rng import Stream, bits, philox, uniform, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: list[int], key: tuple[int, int], expected: list[int]
) -> None:
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_a_number_depends_on_its_address_alone() -> None:
    together = uniform(7, 3, [5, 9, 2**40 + 1], Stream.CROP, 6)
    alone = uniform(7, 3, [9], Stream.CROP, 3)
    assert np.array_equal(together[1, :3], alone[0])
    assert np.array_equal(together[2], uniform(7, 3, 2**40 + 1, Stream.CROP, 6))


def test_every_part_of_the_address_matters() -> None:
    reference = uniform(7, 3, 5, Stream.CROP, 4)
    others = [
        uniform(8, 3, 5, Stream.CROP, 4),
        uniform(7 + 2**32, 3, 5, Stream.CROP, 4),
        uniform(7, 4, 5, Stream.CROP, 4),
        uniform(7, 3, 6, Stream.CROP, 4),
        uniform(7, 3, 5 + 2**32, Stream.CROP, 4),
        uniform(7, 3, 5, Stream.FLIP, 4),
    ]
    for other in others:
        assert not np.isin(other, reference).any()


def test_samples_may_have_epochs_of_their_own() -> None:
    samples, epochs = np.array([5, 9, 5]), np.array([3, 3, 4])
    each = [uniform(7, epoch, sample, Stream.CROP, 3) for sample, epoch in zip([5, 9, 5], [3, 3, 4], strict=True)]
    assert np.array_equal(uniform(7, epochs, samples, Stream.CROP, 3), np.stack(each))
    table = uniform(7, epochs[:, None], samples, Stream.CROP, 3)
    assert table.shape == (3, 3, 3) and np.array_equal(table[2, 1], uniform(7, 4, 9, Stream.CROP, 3))
    assert uniform(7, epochs[:0], samples[:0], Stream.CROP, 3).shape == (0, 3)


def test_streams_drawn_together_are_those_drawn_alone() -> None:
    counts = {Stream.CROP: 5, Stream.FLIP: 1, Stream.DIFFERENCE: 4}
    together = uniforms(7, np.array([1, 2]), [3, 2**40], counts)
    assert list(together) == list(counts)
    for stream, count in counts.items():
        assert np.array_equal(together[stream], uniform(7, np.array([1, 2]), [3, 2**40], stream, count))


def test_uniform_fills_the_unit_interval_evenly() -> None:
    draws = uniform(1, 0, np.arange(20_000), Stream.CLIP, 2)
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert np.abs(counts - draws.size / 20).max() < 5 * np.sqrt(draws.size / 20)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("seed", "epoch", "sample"), [(-1, 0, 0), (2**64, 0, 0), (0, 2**32, 0), (0, 0, -1), (0, 0, 2**56)]
)
def test_an_address_out_of_range_is_refused(seed: int, epoch: int, sample: int) -> None:
    with pytest.raises(ValueError, match=r"address|sample"):
        bits(seed, epoch, sample, Stream.CROP, 1)
    if epoch:
        with pytest.raises(ValueError, match="address"):
            bits(seed, np.array([0, epoch]), sample, Stream.CROP, 1)
