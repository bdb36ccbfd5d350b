"""The blur of many clips at once, as on a GPU, is the blur of each."""

import numpy as np
import pytest
import torch

from rhofast.data.decode.finish import blur_clips, finish


@pytest.mark.parametrize("size", [5, 24])
def test_clips_that_are_blurred_together_are_the_same_to_the_bit(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 2, 4, size, size, 3, generator=generator).permute(0, 1, 5, 2, 3, 4)
    sigmas = np.array([[0.0, 0.1], [0.4, 2.0], [1.3, 0.0]], dtype=np.float32)
    clips, places = pixels.transpose(2, 3).flatten(0, 1), np.flatnonzero(sigmas > 0)
    together = blur_clips(clips[torch.from_numpy(places)], sigmas.reshape(-1)[places].tolist())
    expected = pixels.clone(memory_format=torch.preserve_format)
    alone = finish(expected, bounds=None, sigmas=sigmas, dtype=torch.float32)
    alone = alone.transpose(2, 3).flatten(0, 1)
    assert torch.equal(together, alone[torch.from_numpy(places)])
    assert torch.equal(alone[[0, 5]], clips[[0, 5]])
    assert not torch.equal(together[-1], clips[places[-1]])
