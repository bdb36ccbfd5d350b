"""Plans of whole batches from index rows."""

import numpy as np
import numpy.typing as npt
import pytest

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.format.index import IndexRow
from rhofast.data.sampling.batch_plan import evaluation_plan, training_clips, training_plan
from rhofast.data.types import LUMA, AugmentPlan, ClipPlan, Units

PLANS = ("crop", "flip", "color", "blur")


def row(num_frames: int, *, group: int = 1, seed: int = 0) -> IndexRow:
    """A sample whose units have `group` frames each."""
    first = np.arange(0, num_frames, group, dtype=np.int32)
    return IndexRow(
        key=f"v{seed}",
        label=None,
        source_digest=b"",
        offset=0,
        size=1,
        num_frames=num_frames,
        fps=30.0,
        width=340,
        height=256,
        units=Units(
            frame=first,
            offset=first.astype(np.int64),
            size=np.ones(len(first), dtype=np.int32),
            crc=np.zeros(len(first), dtype=np.uint32),
            rgb=np.random.default_rng(seed).uniform(0, 255, (len(first), 3)).astype(np.float32),
        ),
    )


def plan(
    rows: list[IndexRow],
    samples: npt.NDArray[np.int64],
    *,
    clips: ClipConfig | None = None,
    augment: AugmentConfig | None = None,
    epoch: int | npt.NDArray[np.int64] = 0,
) -> tuple[ClipPlan, AugmentPlan]:
    return training_plan(rows, samples, clips or ClipConfig(), augment or AugmentConfig(), seed=3, epoch=epoch)


def same(left: tuple[ClipPlan, AugmentPlan], right: tuple[ClipPlan, AugmentPlan]) -> bool:
    pairs = [(left[0].frames, right[0].frames)] + [(getattr(left[1], name), getattr(right[1], name)) for name in PLANS]
    return all(np.array_equal(one, other) for one, other in pairs)


def test_a_plan_depends_on_its_sample_epoch_and_row_alone() -> None:
    rows = [row(40 * number + 1, seed=number) for number in range(8)]
    samples, epochs = np.arange(8) * 1000, np.array([0, 1, 2, 3, 0, 1, 2, 3])
    together = plan(rows, samples, epoch=epochs)
    for number in range(8):
        alone = plan([rows[number]], samples[number : number + 1], epoch=int(epochs[number]))
        assert same(alone, tuple(part.take([number]) for part in together))  # type: ignore[arg-type]


def test_plans_can_be_taken_apart_and_joined() -> None:
    rows, samples = [row(100, seed=number) for number in range(4)], np.arange(4)
    for augment in (AugmentConfig(), AugmentConfig(difference=0.5)):
        clips, augmented = plan(rows, samples, augment=augment)
        for whole in (clips, augmented):
            again = type(whole).join([whole.take([0, 1]), whole.take(np.array([False, False, True, True]))])
            assert repr(again) == repr(whole)
            assert same((clips, augmented), (ClipPlan.join([clips]), AugmentPlan.join([augmented])))
        assert (clips.neighbor is None) is (augmented.difference is None) is (augment.difference == 0)


@pytest.mark.parametrize("group", [1, 12])
def test_contrast_turns_about_the_stored_mean_of_the_frames_shown(group: int) -> None:
    sample = row(200, group=group)
    augment = AugmentConfig(color=1.0, gray=0.0, brightness=0.0, saturation=0.0, hue=0.0, contrast=1.0)
    clips, augmented = plan([sample], np.array([5]), augment=augment)
    mean = sample.units.rgb[clips.frames[0] // group].mean(axis=1)
    keep = augmented.color[0, :, 0, 0]
    assert np.allclose(augmented.color[0, :, :, 3], ((1 - keep) * (mean @ LUMA))[:, None], atol=1e-2)


def test_contrast_of_differences_turns_about_their_mean() -> None:
    sample = row(200)
    knobs = {"gray": 0.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0, "contrast": 1.0}
    clips, augmented = plan([sample], np.array([5]), augment=AugmentConfig(color=1.0, difference=1.0, **knobs))
    assert clips.neighbor is not None and (clips.neighbor == clips.frames + 1).all()
    rgb = sample.units.rgb
    mean = ((255 + (rgb[clips.frames[0]] - rgb[clips.neighbor[0]]) @ LUMA) / 2).mean(axis=1)
    keep = augmented.color[0, :, 0, 0]
    assert np.allclose(augmented.color[0, :, 0, 3], (1 - keep) * mean, atol=1e-2)


def test_differences_leave_all_else_as_it_was() -> None:
    rows, samples = [row(60, seed=number) for number in range(64)], np.arange(64)
    plain, changed = plan(rows, samples), plan(rows, samples, augment=AugmentConfig(difference=0.2))
    which = changed[1].difference
    assert which is not None and 0.1 < which.mean() < 0.3 and changed[0].neighbor is not None
    still = ~which
    assert np.array_equal(plain[0].frames[still], changed[0].frames[still])
    assert np.array_equal(changed[0].neighbor[still], changed[0].frames[still])
    assert np.array_equal(plain[1].color[still], changed[1].color[still])
    assert (changed[0].neighbor[which] == changed[0].frames[which] + 1).all()
    assert np.array_equal(plain[1].crop, changed[1].crop) and np.array_equal(plain[1].blur, changed[1].blur)


def test_two_views_of_one_clip_are_both_differences_or_neither() -> None:
    rows, samples = [row(60, seed=number) for number in range(64)], np.arange(64)
    clips, augmented = plan(rows, samples, clips=ClipConfig(num_clips=1), augment=AugmentConfig(difference=0.5))
    assert augmented.difference is not None and augmented.difference.shape == (64, 2)
    assert np.array_equal(clips.frames[:, 0], clips.frames[:, 1])
    assert np.array_equal(augmented.difference[:, 0], augmented.difference[:, 1])


@pytest.mark.parametrize("rho", [1, 2, 7])
def test_videos_of_one_frame_have_plans(rho: int) -> None:
    augment, config = AugmentConfig(difference=0.5), ClipConfig(num_clips=rho, min_gap=1.0, max_span=2.0)
    clips, augmented = plan([row(1)] * 4, np.arange(4), clips=config, augment=augment)
    assert clips.frames.shape == (4, max(rho, 2), 8) and not clips.frames.any()
    assert clips.neighbor is not None and not clips.neighbor.any() and np.isfinite(augmented.color).all()


def test_training_clips_are_those_of_the_plan() -> None:
    rows, samples = [row(100 + number, seed=number) for number in range(5)], np.arange(5)
    config = ClipConfig(num_clips=3, max_span=1.0)
    alone = training_clips(rows, samples, config, seed=3, epoch=2)
    assert np.array_equal(alone.frames, plan(rows, samples, clips=config, epoch=2)[0].frames)


def test_evaluation_draws_nothing() -> None:
    clips, augmented = evaluation_plan([row(300), row(90)], ClipConfig(fps_jitter=(0.5, 1.5), max_span=0.0), 3)
    assert clips.frames.shape == (2, 3, 8) and clips.neighbor is augmented.difference is None
    assert clips.frames[0, :, 0].tolist() == [0, 79, 158] and not augmented.flip.any()
