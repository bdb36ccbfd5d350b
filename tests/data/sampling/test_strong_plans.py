"""Plans of RandAugment, random erasing and mixing: closed forms, timm's and torchvision's numbers, addresses."""

import random

import numpy as np
import pytest
import torch

from rhofast.config.schema import AugmentConfig
from rhofast.config.section import parse_section
from rhofast.data.image_ops import ImageOp
from rhofast.data.sampling.augment import random_augment
from rhofast.data.sampling.erasing import TRIES, erased_boxes, random_erasing
from rhofast.data.sampling.mixing import beta_quantile, cut_boxes, random_mixing
from rhofast.data.sampling.rand_augment import OPS, amounts_of, random_ops
from rhofast.data.sampling.rng import ClipDraws
from rhofast.data.types import AugmentPlan, Geometry
from rhofast.errors import ConfigError

MANY = np.arange(4000)
KIT = AugmentConfig(size=64, rand_ops=4, erase=0.25, mixup=0.8, cutmix=1.0)
NEW = ("ops", "amounts", "erase", "noise", "share", "cut")


def drawn(config: AugmentConfig, samples: np.ndarray, clips: int = 2, epoch: int = 0) -> AugmentPlan:
    sides = np.full(len(samples), 90, dtype=np.int32)
    fps = np.full(len(samples), 30.0)
    geometry = Geometry(num_frames=sides, fps=fps, width=sides, height=sides, pixel_aspect=fps / fps)
    mean = np.full((len(samples), clips, 3), 128.0)
    return random_augment(config, geometry, samples, mean, seed=3, epoch=epoch)


def test_off_means_off_and_on_leaves_all_else_where_it_was() -> None:
    off, on = drawn(AugmentConfig(size=64), np.arange(6)), drawn(KIT, np.arange(6))
    assert all(getattr(off, name) is None for name in NEW)
    assert all(getattr(on, name) is not None for name in NEW)
    for name in ("crop", "flip", "color", "blur"):
        assert np.array_equal(getattr(off, name), getattr(on, name))


def test_numbers_are_those_of_the_address_alone() -> None:
    whole, part, other = drawn(KIT, np.arange(6)), drawn(KIT, np.arange(3, 5)), drawn(KIT, np.arange(6), epoch=1)
    fewer = drawn(KIT, np.arange(6), clips=1)
    for name in NEW:
        assert np.array_equal(getattr(whole, name)[3:5], getattr(part, name)), name
        assert np.array_equal(getattr(whole, name)[:, :1], getattr(fewer, name)), name
        assert not np.array_equal(getattr(whole, name), getattr(other, name)), name
    joined = AugmentPlan.join([whole.take([0, 1]), whole.take(np.arange(2, 6))])
    assert all(np.array_equal(getattr(joined, name), getattr(whole, name)) for name in NEW)


def of_many(num_clips: int) -> ClipDraws:
    return ClipDraws(seed=0, epoch=0, samples=MANY, num_clips=num_clips)


def test_operations_are_equally_frequent_and_applied_by_their_probability() -> None:
    plan = random_ops(KIT, of_many(2))
    ops, amounts = plan["ops"], plan["amounts"]
    assert ops.shape == amounts.shape == (4000, 2, 4) and ops.dtype == np.int8
    share = np.bincount(ops.ravel(), minlength=16) / ops.size
    assert share[0] == pytest.approx(0.5, abs=0.01)
    assert np.allclose(share[1:], 0.5 / 15, atol=0.004)
    turns = amounts[ops == ImageOp.ROTATE]
    assert np.abs(turns).mean() == pytest.approx(21.0, abs=0.2)  # 30 degrees times 7 / 10
    assert np.abs(turns).std() == pytest.approx(1.5, abs=0.1)  # 30 degrees times 0.5 / 10
    assert (turns > 0).mean() == pytest.approx(0.5, abs=0.06)
    everything = random_ops(AugmentConfig(rand_ops=2, rand_probability=1.0), of_many(1))
    assert (everything["ops"] != 0).all()


TIMM = {
    ImageOp.ROTATE: "Rotate",
    ImageOp.POSTERIZE: "PosterizeIncreasing",
    ImageOp.SOLARIZE: "SolarizeIncreasing",
    ImageOp.SOLARIZE_ADD: "SolarizeAdd",
    ImageOp.COLOR: "ColorIncreasing",
    ImageOp.CONTRAST: "ContrastIncreasing",
    ImageOp.BRIGHTNESS: "BrightnessIncreasing",
    ImageOp.SHARPNESS: "SharpnessIncreasing",
    ImageOp.SHEAR_X: "ShearX",
    ImageOp.SHEAR_Y: "ShearY",
    ImageOp.TRANSLATE_X: "TranslateXRel",
    ImageOp.TRANSLATE_Y: "TranslateYRel",
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("strength", [0.0, 3.3, 7.0, 9.9, 10.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_amounts_are_timm_s(op: ImageOp, strength: float, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    mine = amounts_of(np.array([op], dtype=np.int8), np.array([strength]), np.array([sign]))[0]
    if op not in TIMM:
        assert mine == 0 and timm.LEVEL_TO_ARG[{1: "AutoContrast", 2: "Equalize", 3: "Invert"}[op]] is None
        return
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)  # timm turns the sign above 0.5
    assert mine == pytest.approx(timm.LEVEL_TO_ARG[TIMM[op]](strength, {})[0], rel=1e-6, abs=1e-6)


def test_the_operations_are_timm_s_increasing_set() -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    without = {"AutoContrast", "Equalize", "Invert"}
    assert {*TIMM.values(), *without} == set(timm._RAND_INCREASING_TRANSFORMS) and len(OPS) == 15


def test_erased_rectangles_have_the_asked_area_and_aspect_and_lie_inside() -> None:
    config = AugmentConfig(size=200, erase=0.25)
    plan = random_erasing(config, of_many(2))
    left, top, width, height = np.moveaxis(plan["erase"], -1, 0)
    some = width > 0
    assert some.mean() == pytest.approx(0.25, abs=0.02) and (height > 0).tolist() == some.tolist()
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 200).all() and (top + height <= 200).all()
    area, ratio = (width * height / 200**2)[some], (height[some] / width[some])
    assert 0.018 < area.min() < 0.025 and 0.31 < area.max() < 0.345
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert 0.27 < ratio.min() < 0.33 and 3.0 < ratio.max() < 3.5 and abs(np.log(ratio).mean()) < 0.05
    assert len(np.unique(plan["noise"])) == plan["noise"].size and (plan["noise"] >= 0).all()
    assert "noise" not in random_erasing(config.model_copy(update={"erase_fill": "mean"}), of_many(2))


def test_erased_rectangles_are_those_of_timm_s_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.random_erasing")
    for case in range(20):
        draws = np.random.default_rng(case).random((TRIES, 4))
        slots = iter(draws.ravel().tolist())
        monkeypatch.setattr(random, "random", lambda: 0.0)
        monkeypatch.setattr(random, "uniform", lambda low, high, slots=slots: low + (high - low) * next(slots))
        monkeypatch.setattr(random, "randint", lambda low, high, slots=slots: int(low + (high - low + 1) * next(slots)))
        picture = torch.ones(1, 60, 60)
        timm.RandomErasing(probability=1.0, mode="const", device="cpu")(picture)
        # timm draws a place only for a rectangle that fits, so each try has four numbers here only if the first fits.
        left, top, width, height = erased_boxes(draws.ravel(), 60, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3)).tolist()
        erased = torch.ones(1, 60, 60)
        erased[:, top : top + height, left : left + width] = 0
        assert torch.equal(picture, erased), case


def test_a_rectangle_that_never_fits_erases_nothing() -> None:
    assert not erased_boxes(np.full((3, 4 * TRIES), 0.5), 10, area=(1.0, 1.0), aspect=(1.0, 1.0)).any()


def test_shares_have_a_beta_distribution() -> None:
    u = np.linspace(0, 1, 1001)[:-1]
    assert np.allclose(beta_quantile(u, 1.0), u, atol=1e-9)
    assert np.allclose(beta_quantile(u, 0.5), np.sin(np.pi * u / 2) ** 2, atol=1e-6)  # the arcsine distribution
    x = beta_quantile(u, 2.0)
    assert np.allclose(3 * x**2 - 2 * x**3, u, atol=1e-6)
    for alpha in (0.2, 0.8, 8.0, 100.0):
        values = beta_quantile((np.arange(100_000) + 0.5) / 100_000, alpha)
        assert values.mean() == pytest.approx(0.5, abs=1e-9) and (np.diff(values) >= 0).all()
        assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


def test_cut_rectangles_and_shares_are_timm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.mixup")
    rng = np.random.default_rng(0)
    for kept in (0.0, 0.01, 0.3, 0.75, 0.999, 1.0):
        centers = rng.random(2)
        places = iter(centers.tolist())
        monkeypatch.setattr(np.random, "randint", lambda low, high, size, p=places: int(low + (high - low) * next(p)))
        (yl, yh, xl, xh), share = timm.cutmix_bbox_and_lam((3, 56, 56), kept)
        left, top, width, height = cut_boxes(np.array(kept), centers, 56).tolist()
        assert (left, top, left + width, top + height) == (xl, yl, xh, yh)
        assert 1 - width * height / 56**2 == pytest.approx(share, abs=1e-12)


def test_mixtures_are_drawn_by_their_probabilities() -> None:
    plan = random_mixing(KIT.model_copy(update={"mix": 0.8, "cutmix_share": 0.3}), of_many(2))
    share, cut = plan["share"], plan["cut"]
    cuts = cut[..., 2] > 0
    assert (share == 1).mean() == pytest.approx(0.2, abs=0.02)
    assert cuts.mean() == pytest.approx(0.8 * 0.3, abs=0.02)
    assert np.allclose(share[cuts], 1 - cut[cuts][:, 2] * cut[cuts][:, 3] / 64**2)
    blended = share[(share < 1) & ~cuts]
    assert blended.mean() == pytest.approx(0.5, abs=0.02) and blended.var() == pytest.approx(1 / (4 * 2.6), abs=0.01)
    only = random_mixing(AugmentConfig(cutmix=1.0), of_many(1))
    assert ((only["cut"][..., 2] > 0) == (only["share"] < 1)).all()
    assert not random_mixing(AugmentConfig(mixup=0.5), of_many(1))["cut"].any()
    assert random_mixing(AugmentConfig(mixup=0.5, mix=0.0), of_many(1)) == {}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rand_ops", 17, "rand_ops=17"),
        ("rand_magnitude", 11.0, r"rand_magnitude=11\.0"),
        ("erase", 1.5, r"erase=1\.5"),
        ("erase_area", [0.5, 1.5], r"augment\.erase_area=\[0\.5, 1\.5\] is a share and must not exceed 1"),
        ("erase_area", [0.0, 0.5], r"augment\.erase_area=\[0\.0, 0\.5\] must satisfy 0 < low <= high"),
        ("erase_aspect", [3.0, 0.3], r"augment\.erase_aspect=\[3\.0, 0\.3\] must satisfy"),
        ("erase_fill", "black", "erase_fill='black'"),
        ("mixup", -0.1, r"mixup=-0\.1"),
        ("cutmix_share", 2.0, r"cutmix_share=2\.0"),
    ],
)
def test_an_option_outside_its_interval_is_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section(AugmentConfig, {option: value}, "augment")
