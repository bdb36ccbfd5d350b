"""Batches with RandAugment, erasing and mixing: the same on any number of ranks, and nothing new without them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rhofast.config.schema import AugmentConfig
from rhofast.data.decode.mixing import erase_boxes, mix_neighbors
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import Position
from rhofast.errors import ConfigError
from tests.data.loader.test_train_loader import AUGMENT, flip_byte_of, loader, take

STRONG = {"rand_ops": 2, "rand_probability": 1.0, "erase": 0.5, "mixup": 0.8, "cutmix": 1.0}
KIT = AUGMENT.model_copy(update=STRONG)


def only(**options: object) -> AugmentConfig:
    return AUGMENT.model_copy(update=options)


def test_a_batch_has_shares_only_where_clips_are_mixed(shards: ShardSet) -> None:
    [plain], [mixed] = take(loader(shards), 1), take(loader(shards, augment=KIT), 1)
    assert set(plain.keys()) == {"pixels", "sample", "label"} and plain.share is None
    assert set(mixed.keys()) == {"pixels", "sample", "label", "share"}
    assert mixed["share"].shape == (4, 2) and (mixed["share"] < 1).all()
    assert torch.equal(plain.sample, mixed.sample) and torch.equal(plain.label, mixed.label)
    assert mixed.to("cpu") is mixed


def test_two_ranks_together_are_one(shards: ShardSet) -> None:
    whole = take(loader(shards, augment=KIT), 4)
    parts = [take(loader(shards, augment=KIT, rank=rank, world_size=2), 4) for rank in range(2)]
    for views, *halves in zip(whole, *parts, strict=True):
        for name in ("pixels", "sample", "label", "share"):
            assert torch.equal(views[name], torch.cat([half[name] for half in halves])), name


def test_a_resumed_loader_goes_on_with_the_same_batches(shards: ShardSet) -> None:
    whole = take(loader(shards, augment=KIT), 4)
    with loader(shards, augment=KIT) as first:
        next(first)
        state = first.state_dict()
    with loader(shards, augment=KIT) as second:
        second.load_state_dict(state)
        for views in whole[1:]:
            again = next(second)
            assert torch.equal(views.pixels, again.pixels) and torch.equal(views.share, again.share)


def test_pixels_are_what_the_plan_says(shards: ShardSet) -> None:
    """Erasing and mixing by hand what the loader gives without them gives what it gives with them."""
    options = {"erase": 0.9, "mixup": 0.8, "cutmix": 1.0}
    plain, full = (
        loader(shards, augment=one).replay(Position(epoch=0, position=4)) for one in (AUGMENT, only(**options))
    )
    plan, pixels = full.augment, plain.views.pixels
    assert plan.erase is not None and plan.share is not None and plan.cut is not None
    assert (plan.erase[..., 2] > 0).any() and (plan.cut[..., 2] > 0).any() and (plan.cut[..., 2] == 0).any()
    erase_boxes(pixels, plan.erase, plan.noise)
    mix_neighbors(pixels, plan.share, plan.cut)
    assert torch.equal(pixels, full.views.pixels)
    assert np.array_equal(full.views.share.numpy(), plan.share)


def test_a_bad_sample_s_replacement_is_mixed_in_its_place(shards: ShardSet, tmp_path: Path) -> None:
    flip_byte_of(shards, 5)
    one = take(loader(shards, augment=KIT, max_bad=0.5), 3)
    two = [take(loader(shards, augment=KIT, max_bad=0.5, rank=rank, world_size=2), 3) for rank in range(2)]
    for views, *halves in zip(one, *two, strict=True):
        assert 5 not in views.sample.tolist()
        assert torch.equal(views.pixels, torch.cat([half.pixels for half in halves]))


def test_a_rank_with_an_odd_number_of_videos_is_refused(shards: ShardSet) -> None:
    message = r"augment\.mixup=0\.8, augment\.cutmix=1: .* train\.batch_size=6 over 2 rank\(s\) leaves 3 to each"
    with pytest.raises(ConfigError, match=message) as caught:
        loader(shards, augment=KIT, batch_size=6, world_size=2)
    assert caught.value.hint == "take a multiple of 4"
    loader(shards, augment=only(**STRONG | {"mix": 0.0}), batch_size=6, world_size=2).close()
