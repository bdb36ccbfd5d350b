"""Contact sheets show what training sees."""

import numpy as np
import pytest
import torch

from rhofast.config import AugmentSection, ClipSection, DataSection
from rhofast.data.index import ShardSet
from rhofast.data.loader import Loader
from rhofast.errors import ConfigError
from rhofast.show import Strip, choose_samples, contact_sheet, displayable, find_keys, show_clips

CLIPS = ClipSection(num_frames=3, frame_stride=2, fps=12)
AUGMENT = AugmentSection(size=16)


def test_the_sheet_holds_the_pixels_of_the_training_batch(shards: ShardSet) -> None:
    data = DataSection(threads=1, decode_threads=1)
    with Loader(shards, clips=CLIPS, augment=AUGMENT, data=data, batch_size=4, seed=5) as loader:
        views = next(loader)
    samples = views.sample.tolist()
    sheet = np.asarray(show_clips(shards, clips=CLIPS, augment=AUGMENT, samples=samples, seed=5, epoch=0))
    tile = displayable(views.pixels, AUGMENT)[0, 0, 0].repeat(7, axis=0).repeat(7, axis=1)
    top, left = 12 + 17 + 8, 12
    assert np.abs(sheet[top : top + 112, left : left + 112].astype(int) - tile.astype(int)).max() <= 1


def test_displayable_undoes_the_normalization() -> None:
    section = AugmentSection(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    pixels = torch.randint(0, 256, (1, 1, 3, 2, 16, 16)).float()
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (section.mean, section.std))
    restored = displayable((pixels / 255 - mean) / std, section)
    assert np.array_equal(restored, pixels.permute(0, 1, 3, 4, 5, 2).byte().numpy())


def test_a_sheet_is_as_large_as_its_strips() -> None:
    strip = Strip(frames=np.zeros((4, 64, 64, 3), dtype=np.uint8), caption="short")
    one, two = contact_sheet([("a", [strip])]), contact_sheet([("a", [strip, strip])])
    assert one.width == two.width == 4 * 128 + 3 * 2 + 24
    assert two.height - one.height == 128 + 17 + 6


def test_samples_are_spread_or_found_by_key(shards: ShardSet) -> None:
    assert choose_samples(shards, 3) == [0, 6, 12]
    assert choose_samples(shards, 100) == list(range(13))
    assert find_keys(shards, ["v7", "v0"]) == [7, 0]
    with pytest.raises(ConfigError, match="no sample has the key 'nope'"):
        find_keys(shards, ["v7", "nope"])
