"""Augmentation plans: closed forms, the released draws, invariants."""

import colorsys
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.config.schema import AugmentConfig
from rhofast.data.sampling.augment import (
    CROP_TRIES,
    area_crop,
    center_augment,
    random_augment,
    random_difference,
    short_side_crop,
)
from rhofast.data.sampling.color import color_matrix
from rhofast.data.sampling.rng import Stream, uniform
from rhofast.data.types import LUMA, Geometry
from tests.helpers.shards import SHARED

VECTORS = SHARED / "vectors" / "augment.json"


def geometry(width: int, height: int, count: int = 1, aspect: float = 1.0) -> Geometry:
    return Geometry(
        num_frames=np.full(count, 300, dtype=np.int32),
        fps=np.full(count, 30.0),
        width=np.full(count, width, dtype=np.int32),
        height=np.full(count, height, dtype=np.int32),
        pixel_aspect=np.full(count, aspect),
    )


def matrix(order: list[int], factors: list[float], mean: list[float], *, apply: bool = True, gray: bool = False):
    return color_matrix(
        factors=np.array([[factors]]),
        order=np.array([[order]]),
        apply=np.array([[apply]]),
        gray=np.array([[gray]]),
        mean_rgb=np.array([[mean]]),
    )[0, 0].astype(np.float64)


@pytest.mark.skipif(not VECTORS.exists(), reason="the reference vectors are not here")
def test_crops_are_those_of_the_released_draws() -> None:
    for case in json.loads(VECTORS.read_text())["resized_crop_params"]:
        draws = np.resize(case["unit_draws"], 2 * CROP_TRIES + 2)  # offsets are drawn only in the try that fits
        slots = np.stack([draws[2 * number : 2 * number + 4] for number in range(CROP_TRIES)])
        left, top, width, height = area_crop(
            slots.reshape(1, -1),
            np.array([case["width"]]),
            np.array([case["height"]]),
            area=(0.2, 0.766),
            aspect=(0.75, 1.3333),
        )[0].tolist()
        assert [top, left, height, width] == case["ijhw"], case


@given(width=st.integers(16, 600), height=st.integers(16, 600), seed=st.integers(0, 1000))
def test_crops_lie_in_the_frame(width: int, height: int, seed: int) -> None:
    samples, count = np.arange(8), 8
    sides = np.full((count,), float(width)), np.full((count,), float(height))
    area = area_crop(uniform(seed, 0, samples, Stream.CROP, 40), *sides, area=(0.2, 0.766), aspect=(0.75, 1.3333))
    vgg = short_side_crop(AugmentConfig(), uniform(seed, 0, samples, Stream.CROP, 3), *sides)
    for crop in (area, vgg):
        left, top, w, h = crop.T
        assert (crop == np.rint(crop)).all() and (w >= 1).all() and (h >= 1).all()
        assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_the_short_side_or_its_inverse_is_uniform(inverse: bool) -> None:
    """Crops of 2,000 samples of a very fine frame show the length: its mean, or the mean of 1 / length, is known."""
    config = AugmentConfig(size=224, crop="short_side", short_side=(256, 340), short_side_inverse=inverse)
    draws = np.stack([(np.arange(2000) + 0.5) / 2000, np.zeros(2000), np.zeros(2000)], axis=-1)
    fine = np.full(2000, 2.0**20)
    length = 224 * 2.0**20 / short_side_crop(config, draws, fine, fine)[:, 2].astype(float)
    expected = 2 / (1 / 256 + 1 / 340) if inverse else 298.0
    found = 1 / (1 / length).mean() if inverse else length.mean()
    assert found == pytest.approx(expected, rel=1e-3)
    assert length.min() >= 255.9 and length.max() <= 340.1
    assert np.median(length) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("aspect", [1024 / 765, 0.5, 8 / 9])
def test_crops_of_pixels_that_are_not_square_are_those_of_the_frame_as_shown(aspect: float) -> None:
    count = 200
    narrow, shown = geometry(340, 256, count, aspect), geometry(round(340 * aspect), 256, count)
    samples, gray = np.arange(count), np.full((count, 2, 3), 128.0)
    for config in (AugmentConfig(), AugmentConfig(crop="short_side"), AugmentConfig(crop="center")):
        stored, planned = (random_augment(config, one, samples, gray, seed=3, epoch=0) for one in (narrow, shown))
        left, top, width, height = np.moveaxis(stored.crop, -1, 0)
        assert (left >= 0).all() and (width >= 1).all() and (left + width <= 340).all() and (top + height <= 256).all()
        assert (stored.crop == np.rint(stored.crop)).all()
        assert np.array_equal(stored.crop[..., [1, 3]], planned.crop[..., [1, 3]])
        assert np.abs(stored.crop[..., [0, 2]] * aspect - planned.crop[..., [0, 2]]).max() <= 0.5 * max(aspect, 1) + 0.6
        assert np.array_equal(stored.color, planned.color) and np.array_equal(stored.flip, planned.flip)
    squares = center_augment(narrow, 1, crops=3).crop
    assert np.abs(squares[..., 2] * aspect - squares[..., 3]).max() <= aspect


def test_area_crops_have_the_asked_area_and_aspect() -> None:
    samples = np.arange(4000)
    sides = np.full(4000, 300.0), np.full(4000, 300.0)
    crop = area_crop(uniform(0, 0, samples, Stream.CROP, 40), *sides, area=(0.2, 0.7), aspect=(0.75, 1.3333))
    share, ratio = crop[:, 2] * crop[:, 3] / (300 * 300), crop[:, 2] / crop[:, 3]
    assert 0.195 < share.min() < 0.22 and 0.68 < share.max() < 0.71
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.02


def test_brightness_scales_and_saturation_keeps_gray() -> None:
    bright = matrix([0, 1, 2, 3], [1.5, 1, 1, 0], [10, 20, 30])
    assert np.allclose(bright, 1.5 * np.eye(3, 4), atol=1e-5)
    saturated = matrix([0, 1, 2, 3], [1, 1, 1.7, 0], [10, 20, 30])[:, :3]
    assert np.allclose(saturated @ [90, 90, 90], [90, 90, 90], atol=1e-3)
    assert np.isclose(LUMA @ saturated @ [200, 10, 60], LUMA @ [200, 10, 60], atol=1e-3)


def test_contrast_turns_about_the_mean_gray_of_what_came_before() -> None:
    mean = np.array([100.0, 50.0, 20.0])
    first = matrix([1, 0, 2, 3], [2.0, 0.5, 1, 0], mean.tolist())
    assert np.allclose(first @ [*mean, 1], 2 * (0.5 * mean + 0.5 * LUMA @ mean), atol=1e-3)
    last = matrix([0, 1, 2, 3], [2.0, 0.5, 1, 0], mean.tolist())
    assert np.allclose(last @ [*mean, 1], 0.5 * 2 * mean + 0.5 * LUMA @ (2 * mean), atol=1e-3)
    after_brightness = matrix([0, 1, 2, 3], [2.0, 0.0, 1, 0], mean.tolist())
    assert np.allclose(after_brightness[:, :3], 0, atol=1e-5)


@pytest.mark.parametrize("shift", [-0.15, 0.07, 0.15])
def test_hue_keeps_gray_and_turns_the_way_hsv_does(shift: float) -> None:
    turned = matrix([0, 1, 2, 3], [1, 1, 1, shift], [0, 0, 0])[:, :3]
    assert np.allclose(turned @ [70, 70, 70], [70, 70, 70], atol=1e-3)
    for color in ([200, 90, 80], [90, 180, 100], [80, 90, 190]):
        out = turned @ color
        assert np.isclose(np.sum(out), np.sum(color), atol=0.05)
        hue = [colorsys.rgb_to_hsv(*(np.clip(value, 0, 255) / 255))[0] for value in (np.array(color), out)]
        moved = (hue[1] - hue[0] + 0.5) % 1 - 0.5
        assert np.sign(moved) == np.sign(shift) and abs(moved - shift) < 0.02


def test_hue_at_a_third_of_the_circle_swaps_channels_as_hsv_does() -> None:
    turned = matrix([0, 1, 2, 3], [1, 1, 1, 1 / 3], [0, 0, 0])[:, :3]
    assert np.allclose(turned @ [200, 90, 80], [80, 200, 90], atol=1e-3)


def test_hue_is_the_linear_map_nearest_to_hsv() -> None:
    colors = np.random.default_rng(0).uniform(0, 255, (20_000, 3))
    exact = np.array([_hsv_turn(color, 0.15) for color in colors])
    nearest = np.linalg.lstsq(colors, exact, rcond=None)[0].T
    assert np.allclose(matrix([0, 1, 2, 3], [1, 1, 1, 0.15], [0, 0, 0])[:, :3], nearest, atol=0.02)


def _hsv_turn(color: np.ndarray, shift: float) -> list[float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*color / 255)
    return [255 * channel for channel in colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)]


def test_gray_comes_last_and_equalizes_channels() -> None:
    plan = matrix([3, 2, 1, 0], [1.2, 0.8, 1.3, 0.1], [100, 90, 80], gray=True)
    out = plan @ [200, 50, 120, 1]
    assert np.allclose(out, out[0], atol=1e-3)
    assert np.allclose(matrix([0, 1, 2, 3], [2, 2, 2, 0.1], [1, 2, 3], apply=False), np.eye(3, 4))


def test_color_follows_the_operations_one_by_one() -> None:
    """The composed matrix against the operations applied in turn to pixels, without rounding or clamping."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        factors = [*rng.uniform(0.4, 1.6, 3), rng.uniform(-0.15, 0.15)]
        order = rng.permutation(4).tolist()
        pixels = rng.uniform(0, 255, (50, 3))
        expected = pixels
        for operation in order:
            alone = [1.0, 1.0, 1.0, 0.0]
            alone[operation] = factors[operation]
            step = matrix([operation, *(other for other in range(4) if other != operation)], alone, [0, 0, 0])
            if operation == 1:
                center = LUMA @ expected.mean(axis=0)
                step = np.concatenate([factors[1] * np.eye(3), np.full((3, 1), (1 - factors[1]) * center)], axis=1)
            expected = expected @ step[:, :3].T + step[:, 3]
        composed = matrix(order, factors, pixels.mean(axis=0).tolist())
        assert np.allclose(pixels @ composed[:, :3].T + composed[:, 3], expected, atol=0.01)


def test_shares_are_the_asked_ones() -> None:
    count = 4000
    config = AugmentConfig()
    plan = random_augment(
        config, geometry(340, 256, count), np.arange(count), np.full((count, 2, 3), 100.0), seed=0, epoch=0
    )
    assert abs(plan.flip.mean() - 0.5) < 0.03
    assert abs((plan.blur > 0).mean() - 0.5) < 0.03
    assert plan.blur[plan.blur > 0].min() >= 0.1 and plan.blur.max() <= 2.0
    untouched = np.isclose(plan.color, np.eye(3, 4)).all(axis=(-1, -2)).mean()
    assert abs(untouched - 0.2 * 0.8) < 0.03
    assert not np.array_equal(plan.flip[:, 0], plan.flip[:, 1])


def test_turning_one_knob_leaves_the_others_where_they_were() -> None:
    video, samples, rgb = geometry(340, 256, 16), np.arange(16), np.full((16, 2, 3), 100.0)
    full = random_augment(AugmentConfig(), video, samples, rgb, seed=0, epoch=0)
    calm = random_augment(AugmentConfig(color=0.0, gray=0.0, flip=0.0), video, samples, rgb, seed=0, epoch=0)
    assert np.array_equal(full.crop, calm.crop) and np.array_equal(full.blur, calm.blur)
    assert not calm.flip.any() and np.allclose(calm.color, np.eye(3, 4))


@pytest.mark.parametrize("knob", ["flip", "color", "gray", "blur", "crop"])
def test_each_knob_can_be_off_alone(knob: str) -> None:
    video, samples, rgb = geometry(340, 256, 64), np.arange(64), np.full((64, 2, 3), 100.0)
    on = {"flip": 1.0, "color": 1.0, "gray": 0.0, "blur": 1.0}
    full = random_augment(AugmentConfig(**on), video, samples, rgb, seed=0, epoch=0)
    off = {"crop": "center"} if knob == "crop" else {knob: 0.0}
    less = random_augment(AugmentConfig(**{**on, **off}), video, samples, rgb, seed=0, epoch=0)
    for name in ("crop", "flip", "color", "blur"):
        same = np.array_equal(getattr(full, name), getattr(less, name))
        assert same is (name != knob), name
    still = {"flip": ~less.flip, "color": np.isclose(less.color, np.eye(3, 4)), "blur": less.blur == 0}
    still["crop"] = less.crop == [42, 0, 256, 256]
    assert knob == "gray" or still[knob].all()


def test_with_all_knobs_off_a_clip_is_as_in_testing() -> None:
    video, off = geometry(340, 256, 3), AugmentConfig(crop="center", flip=0.0, color=0.0, gray=0.0, blur=0.0)
    plan = random_augment(off, video, np.arange(3), np.full((3, 2, 3), 9.0), seed=0, epoch=0)
    tested = center_augment(video, 2)
    for name in ("crop", "flip", "color", "blur"):
        mine, expected = getattr(plan, name), getattr(tested, name)
        assert np.array_equal(mine, expected) and mine.dtype == expected.dtype, name


def test_gray_alone_is_luma() -> None:
    config = AugmentConfig(color=0.0, gray=1.0)
    plan = random_augment(config, geometry(340, 256), np.arange(1), np.full((1, 2, 3), 9.0), seed=0, epoch=0)
    assert np.allclose(plan.color[..., :3], LUMA) and not plan.color[..., 3].any()


def test_differences_come_with_their_share_and_disturb_nothing() -> None:
    samples = np.arange(4000)
    assert random_difference(AugmentConfig(), samples, 2, seed=0, epoch=0) is None
    difference = random_difference(AugmentConfig(difference=0.2), samples, 2, seed=0, epoch=0)
    assert difference is not None and difference.shape == (4000, 2) and abs(difference.mean() - 0.2) < 0.02
    video, rgb = geometry(340, 256, 16), np.full((16, 2, 3), 100.0)
    plain, with_it = (
        random_augment(AugmentConfig(), video, samples[:16], rgb, seed=0, epoch=0, difference=given)
        for given in (None, difference[:16])
    )
    assert plain.difference is None and with_it.difference is not None
    assert np.array_equal(plain.color, with_it.color) and np.array_equal(plain.crop, with_it.crop)


def test_samples_may_have_epochs_of_their_own() -> None:
    video, samples, rgb = geometry(340, 256, 4), np.arange(4), np.full((4, 2, 3), 100.0)
    mixed = random_augment(AugmentConfig(), video, samples, rgb, seed=0, epoch=np.array([0, 5, 0, 5]))
    later = random_augment(AugmentConfig(), video, samples, rgb, seed=0, epoch=5)
    for name in ("crop", "flip", "color", "blur"):
        assert np.array_equal(getattr(mixed, name)[1::2], getattr(later, name)[1::2]), name


def test_more_clips_leave_the_first_ones_as_they_were() -> None:
    video, samples = geometry(340, 256, 4), np.arange(4)
    two, four = (
        random_augment(AugmentConfig(), video, samples, np.full((4, clips, 3), 100.0), seed=0, epoch=0)
        for clips in (2, 4)
    )
    for name in ("crop", "flip", "color", "blur"):
        assert np.array_equal(getattr(two, name), getattr(four, name)[:, :2]), name


def test_the_test_plan_is_the_central_square() -> None:
    plan = center_augment(geometry(340, 256), 3)
    assert plan.crop[0].tolist() == [[42, 0, 256, 256]] * 3
    assert not plan.flip.any() and not plan.blur.any()
