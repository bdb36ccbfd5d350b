"""The last steps: the blur of many clips at once is that of each, and a plan without more changes no bit."""

import numpy as np
import pytest
import torch

from rhofast.data.decode.finish import blur_clips, finish
from rhofast.data.types import AugmentPlan

UNIT = {"mean": np.zeros(3, dtype=np.float32), "std": np.ones(3, dtype=np.float32), "dtype": torch.float32}


def plan(sigmas: np.ndarray) -> AugmentPlan:
    flip = np.zeros(sigmas.shape, dtype=bool)
    crop, color = (np.zeros((*sigmas.shape, *more), dtype=np.float32) for more in ((4,), (3, 4)))
    return AugmentPlan(crop=crop, flip=flip, color=color, blur=sigmas)


@pytest.mark.parametrize("size", [5, 24])
def test_clips_that_are_blurred_together_are_the_same_to_the_bit(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 2, 4, size, size, 3, generator=generator).permute(0, 1, 5, 2, 3, 4)
    sigmas = np.array([[0.0, 0.1], [0.4, 2.0], [1.3, 0.0]], dtype=np.float32)
    clips, places = pixels.transpose(2, 3).flatten(0, 1), np.flatnonzero(sigmas > 0)
    together = blur_clips(clips[torch.from_numpy(places)], sigmas.reshape(-1)[places].tolist())
    expected = pixels.clone(memory_format=torch.preserve_format)
    alone = finish(expected, plan(sigmas), bounds=None, blur=True, **UNIT)
    alone = alone.transpose(2, 3).flatten(0, 1)
    assert torch.equal(together, alone[torch.from_numpy(places)])
    assert torch.equal(alone[[0, 5]], clips[[0, 5]])
    assert not torch.equal(together[-1], clips[places[-1]])


def test_a_plan_without_more_changes_no_bit() -> None:
    pixels = torch.randn(2, 2, 4, 8, 8, 3, generator=torch.Generator().manual_seed(0)).permute(0, 1, 5, 2, 3, 4)
    before = pixels.clone()
    out = finish(pixels, plan(np.zeros((2, 2), dtype=np.float32)), bounds=None, blur=False, **UNIT)
    assert out is pixels and torch.equal(out, before)
