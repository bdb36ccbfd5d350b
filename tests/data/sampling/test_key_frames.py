"""Key frames in the place of samples: order, clips around them, and boxes that move with the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from rhofast.config.schema import AugmentConfig, ClipConfig
from rhofast.data.sampling.augment import random_augment
from rhofast.data.sampling.key_frames import boxes_in_clips, key_frame_clips, whole_frames, whole_size
from rhofast.data.types import AugmentPlan, Geometry


def geometry(*rows: tuple[int, float, int, int], aspect: float = 1.0) -> Geometry:
    """Videos of (frames, fps, width, height)."""
    frames, fps, width, height = zip(*rows, strict=True)
    return Geometry(
        num_frames=np.array(frames, dtype=np.int32),
        fps=np.array(fps, dtype=np.float64),
        width=np.array(width, dtype=np.int32),
        height=np.array(height, dtype=np.int32),
        pixel_aspect=np.full(len(rows), aspect),
    )


def clips(center: int, frames: int, fps: float = 30.0, t: int = 8, tau: int = 8) -> list[int]:
    config = ClipConfig(num_frames=t, frame_stride=tau)
    plan = key_frame_clips(config, geometry((frames, fps, 10, 10)), np.array([center]))
    assert plan.frames.shape == (1, 1, t)
    found: list[int] = plan.frames[0, 0].tolist()
    return found


def test_a_clip_has_the_frames_of_the_released_code() -> None:
    assert clips(60, 27_030) == list(range(60 - 32, 60 + 32, 8))  # range(c - T tau / 2, c + T tau / 2, tau)
    assert clips(60, 27_030, t=4, tau=16) == list(range(60 - 32, 60 + 32, 16))
    assert clips(9, 27_030, t=8, tau=8) == [0, 0, 0, 1, 9, 17, 25, 33]
    assert clips(27_020, 27_030)[-2:] == [27_029, 27_029]
    assert clips(60, 27_030, t=3, tau=1) == [59, 60, 61]


def test_tau_counts_frames_of_the_config_s_rate() -> None:
    assert clips(100, 900, fps=15.0) == [84, 88, 92, 96, 100, 104, 108, 112]
    assert clips(100, 900, fps=60.0)[4:] == [100, 116, 132, 148]


@pytest.mark.parametrize(
    ("width", "height", "aspect", "size"),
    [(340, 256, 1.0, (340, 256)), (341, 256, 1.0, (170, 128)), (96, 128, 1.0, (256, 341)), (240, 128, 0.5, (240, 256))],
)
def test_a_whole_frame_keeps_its_shape(width: int, height: int, aspect: float, size: tuple[int, int]) -> None:
    shape = geometry((9, 30.0, width, height), aspect=aspect)
    short = min(size)
    assert whole_size(shape, short).tolist() == [list(size)]
    plan = whole_frames(shape, short)
    assert plan.crop.tolist() == [[[0, 0, width, height]]] and plan.size is not None
    assert plan.size.tolist() == [[list(size)]] and not plan.flip.any()


def plan_of(crop: tuple[float, float, float, float], *, flip: bool, size: tuple[int, int] | None = None) -> AugmentPlan:
    return AugmentPlan(
        crop=np.array([[crop]], dtype=np.float32),
        flip=np.array([[flip]]),
        color=np.zeros((1, 1, 3, 4), dtype=np.float32),
        blur=np.zeros((1, 1), dtype=np.float32),
        size=None if size is None else np.array([[size]], dtype=np.int32),
    )


def moved(box: tuple[float, float, float, float], plan: AugmentPlan, frame: tuple[int, int], size: int) -> list[float]:
    given = np.array([box], dtype=np.float64)
    row = boxes_in_clips(given, np.zeros(1, dtype=np.int64), plan, np.array([frame], dtype=np.int32), size)
    assert row.dtype == np.float32
    found: list[float] = row[0].tolist()
    return found


def test_boxes_are_cut_scaled_and_mirrored() -> None:
    crop = (100.0, 20.0, 200.0, 200.0)  # of a frame of 400 x 240, to clips of 100
    assert moved((0.5, 0.5, 0.75, 0.75), plan_of(crop, flip=False), (400, 240), 100) == [50, 50, 100, 80]
    assert moved((0.5, 0.5, 0.75, 0.75), plan_of(crop, flip=True), (400, 240), 100) == [0, 50, 50, 80]
    assert moved((0.0, 0.0, 0.5, 1.0), plan_of(crop, flip=False), (400, 240), 100) == [0, 0, 50, 100]
    outside = moved((0.0, 0.5, 0.2, 0.75), plan_of(crop, flip=True), (400, 240), 100)
    assert outside == [100, 50, 100, 80]  # a line on the edge that it left by


def test_whole_frames_scale_boxes_alone() -> None:
    plan = plan_of((0, 0, 400, 240), flip=False, size=(100, 60))
    assert moved((0.25, 0.5, 1.0, 1.0), plan, (400, 240), 999) == [25, 30, 100, 60]


def test_a_box_holds_the_same_points_as_in_the_frame() -> None:
    """For random plans: a point of the frame is in the box if, and only if, its image is in the moved box."""
    rng = np.random.default_rng(3)
    count, size = 64, 56
    shape = geometry(*[(99, 30.0, 320, 240)] * count)
    config = AugmentConfig(size=size, crop="short_side", short_side=(60, 90), color=0, gray=0, blur=0)
    plan = random_augment(config, shape, np.arange(count), np.zeros((count, 1, 3)), seed=1, epoch=0)
    assert plan.flip.any() and not plan.flip.all()
    boxes = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)
    frames = np.stack([shape.width, shape.height], axis=1)
    found = boxes_in_clips(boxes, np.arange(count), plan, frames, size)
    for number in range(count):
        left, top, width, height = plan.crop[number, 0]
        points = rng.random((200, 2)) * frames[number]
        seen = (points - (left, top)) / (width, height) * size
        if plan.flip[number, 0]:
            seen[:, 0] = size - seen[:, 0]
        visible = ((seen > 0) & (seen < size)).all(axis=1)
        x1, y1, x2, y2 = boxes[number]
        x, y = (points / frames[number]).T
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        a, b, c, d = found[number]
        assert ((inside == ((seen > (a, b)) & (seen < (c, d))).all(axis=1)) | ~visible).all()
