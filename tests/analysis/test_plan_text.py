"""Captions of clips: what RandAugment, erasing and mixing did to them."""

import numpy as np
import pytest

from rhofast.analysis.plan_text import describe_op, describe_plan
from rhofast.data.image_ops import ImageOp
from rhofast.data.sampling.rand_augment import OPS
from rhofast.data.types import AugmentPlan, ClipPlan


def test_a_caption_names_what_was_done_to_its_clip() -> None:
    plan = AugmentPlan(
        crop=np.array([[[0, 0, 64, 48]] * 2] * 2, dtype=np.float32),
        flip=np.zeros((2, 2), dtype=bool),
        color=np.broadcast_to(np.eye(3, 4, dtype=np.float32), (2, 2, 3, 4)),
        blur=np.zeros((2, 2), dtype=np.float32),
        ops=np.array([[[ImageOp.ROTATE, 0], [0, 0]]] * 2, dtype=np.int8),
        amounts=np.array([[[-21.0, 0], [0, 0]]] * 2, dtype=np.float32),
        erase=np.array([[[1, 2, 30, 40], [0, 0, 0, 0]]] * 2, dtype=np.int32),
        share=np.array([[0.75, 0.5], [1.0, 1.0]], dtype=np.float32),
        cut=np.array([[[5, 6, 7, 8], [0, 0, 0, 0]], [[0] * 4] * 2], dtype=np.int32),
    )
    clips = ClipPlan(frames=np.zeros((2, 2, 3), dtype=np.int32))
    first, second, unmixed = (describe_plan(clips, plan, b, p, fps=30.0)[3:] for b, p in ((0, 0), (0, 1), (1, 0)))
    cut = "cut 7x8 at 5,6 of sample 1 of the batch, 75% its own"
    assert first == ("rotate -21°", "erased 30x40 at 1,2", cut)
    assert second == ("mixed with sample 1 of the batch, 50% its own",)
    assert unmixed == ("rotate -21°", "erased 30x40 at 1,2")


@pytest.mark.parametrize("op", OPS)
def test_every_operation_has_words(op: ImageOp) -> None:
    words = describe_op(int(op), 0.63)
    assert words.startswith(op.name.lower().replace("_", " ")) and "{" not in words
