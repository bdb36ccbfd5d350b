"""Loaders of key frames: boxes lie where their pixels are, each key frame comes once, and a run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.keep_list import read_keep_list
from rhofast.data.format.key_frames import KeyFrames
from rhofast.data.format.selection import find_subset
from rhofast.data.loader.box_loaders import BoxEvalLoader, BoxTrainLoader, BoxViews, batches_by_shape
from rhofast.errors import ConfigError, ResumeError
from tests.helpers.boxes import BoxRow, key_frames
from tests.helpers.shards import damage_unit, encode_mjpeg, write_shards

FRAMES, FPS = 24, 12
SHAPES = [(96, 64), (64, 96), (96, 64), (112, 64), (64, 96), (96, 64), (96, 64)]
CLIPS = ClipConfig(num_frames=4, frame_stride=2, fps=FPS)
RANDOM = AugmentConfig(size=48, crop="short_side", short_side=(52, 80), color=0, gray=0, blur=0)
WHOLE = AugmentConfig(size=32)
DATA = DataConfig(threads=2, prefetch=2)


def box_at(video: int, frame: int) -> tuple[float, float, float, float]:
    """Where the bright rectangle of a video is: it walks to the right."""
    x, y = 0.1 + 0.015 * frame + 0.01 * video, 0.2 + 0.03 * video
    return x, y, x + 0.35, y + 0.45


def draw(video: int, frame: int) -> npt.NDArray[np.uint8]:
    """A dark picture with a bright rectangle, whose edges lie between pixels and are shaded accordingly."""
    width, height = SHAPES[video]
    x1, y1, x2, y2 = box_at(video, frame)
    across = np.clip(np.minimum(np.arange(width) + 1, x2 * width) - np.maximum(np.arange(width), x1 * width), 0, 1)
    down = np.clip(np.minimum(np.arange(height) + 1, y2 * height) - np.maximum(np.arange(height), y1 * height), 0, 1)
    gray = 20 + 215 * np.outer(down, across)
    return np.repeat(gray[..., None].round().astype(np.uint8), 3, axis=2)


@pytest.fixture(scope="module")
def videos() -> list[bytes]:
    return [encode_mjpeg([draw(video, frame) for frame in range(FRAMES)], fps=FPS) for video in range(len(SHAPES))]


@pytest.fixture
def walkers(tmp_path: Path, videos: list[bytes]) -> ShardSet:
    return write_shards(tmp_path / "walkers", videos, per_shard=2)


def rows() -> list[BoxRow]:
    """Key frames at frames 4, 10 and 16 of all videos but number 5; the box of the key frame, and a second one."""
    found: list[BoxRow] = []
    for video in range(len(SHAPES)):
        for frame in (4, 10, 16) if video != 5 else ():
            found.append((f"v{video}", frame, False, box_at(video, frame), 1.0, [1 + video % 2]))
            if frame == 10:
                found.append((f"v{video}", frame, True, (0.0, 0.0, 1.0, 1.0), 0.8, []))
    return found


@pytest.fixture
def frames(tmp_path: Path, walkers: ShardSet) -> KeyFrames:
    return key_frames(tmp_path / "boxes.arrow", walkers, rows())


def train_loader(shards: ShardSet, found: KeyFrames, **options: object) -> BoxTrainLoader:
    given = {"clips": CLIPS, "augment": RANDOM, "data": DATA, "batch_size": 6, "seed": 3, **options}
    return BoxTrainLoader(shards, found, **given)  # type: ignore[arg-type]


def eval_loader(shards: ShardSet, found: KeyFrames, **options: object) -> BoxEvalLoader:
    given = {"clips": CLIPS, "augment": WHOLE, "data": DATA, "batch_size": 4, **options}
    return BoxEvalLoader(shards, found, **given)  # type: ignore[arg-type]


def check_boxes(views: BoxViews, found: KeyFrames) -> int:
    """Compare the boxes of annotators with the bright pixels of the key frame; returns how many were compared."""
    compared = 0
    pixels = (views.pixels[:, 0].mean(dim=1) * 0.225 + 0.45) * 255  # [B, T, H, W]
    for (place, *sides), number in zip(views.boxes.tolist(), views.box.tolist(), strict=True):
        if found.detected[number]:
            continue
        picture = pixels[int(place), CLIPS.num_frames // 2].numpy()
        height, width = picture.shape
        share = np.clip((picture - 20) / 215, 0, 1)
        x1, y1, x2, y2 = sides
        assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height
        if (x2 - x1) * (y2 - y1) < 60:
            continue
        compared += 1
        assert share.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.05)
        across, down = share.sum(axis=0), share.sum(axis=1)
        center = (across @ (np.arange(width) + 0.5) / across.sum(), down @ (np.arange(height) + 0.5) / down.sum())
        assert center == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.5)
    return compared


def test_boxes_of_training_lie_on_their_pixels(walkers: ShardSet, frames: KeyFrames) -> None:
    with train_loader(walkers, frames) as loader:
        assert loader.steps_per_epoch == 3 and len(loader.shards) == len(frames) == 18
        batches = [next(loader) for _ in range(6)]
    assert sum(check_boxes(views, frames) for views in batches) > 25
    for views in batches:
        assert views.pixels.shape == (6, 1, 3, 4, 48, 48)
        assert views.boxes[:, 0].tolist() == sorted(views.boxes[:, 0].tolist())
        assert set(views.boxes[:, 0].int().tolist()) == set(range(6))
        assert views.targets.shape == (len(views.boxes), 80)
        assert torch.equal(views.targets, torch.from_numpy(frames.targets(views.box.numpy())))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(number for views in epoch for number in views.sample.tolist()) == list(range(18))


def test_ranks_share_a_batch_and_a_run_resumes_exactly(walkers: ShardSet, frames: KeyFrames) -> None:
    with train_loader(walkers, frames) as loader:
        whole = [next(loader) for _ in range(5)]
        state = loader.state_dict()
        after = [next(loader) for _ in range(2)]
    parts = []
    for rank in range(2):
        with train_loader(walkers, frames, rank=rank, world_size=2) as loader:
            parts.append([next(loader) for _ in range(5)])
    for views, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(views.pixels, torch.cat([share.pixels for share in shares]))
        assert torch.equal(views.boxes[:, 1:], torch.cat([share.boxes[:, 1:] for share in shares]))
        assert torch.equal(views.targets, torch.cat([share.targets for share in shares]))
    with train_loader(walkers, frames) as loader:
        loader.load_state_dict(state)
        for views in after:
            again = next(loader)
            assert torch.equal(again.pixels, views.pixels) and torch.equal(again.boxes, views.boxes)


def test_a_state_belongs_to_its_boxes(walkers: ShardSet, frames: KeyFrames) -> None:
    with train_loader(walkers, frames) as loader:
        state = loader.state_dict()
    with train_loader(walkers, frames.where(~frames.detected)) as loader, pytest.raises(ResumeError, match="digest"):
        loader.load_state_dict(state)


def test_blocks_of_shards_need_few_shards_at_a_time(walkers: ShardSet, frames: KeyFrames) -> None:
    data = DATA.model_copy(update={"block_shards": 1})
    with train_loader(walkers, frames, data=data, batch_size=3) as loader:
        seen = [next(loader).sample.numpy() for _ in range(6)]
    shard = frames.sample[np.concatenate(seen)] // 2
    assert sorted(np.concatenate(seen).tolist()) == list(range(18))
    assert (np.diff(shard) != 0).sum() == 3  # four shards, one after another


def test_a_bad_sample_is_replaced_by_another_key_frame(walkers: ShardSet, frames: KeyFrames) -> None:
    damage_unit(walkers, 0, 10)
    with train_loader(walkers, frames) as loader:
        batches = [next(loader) for _ in range(3)]
        assert loader.stats.bad > 0
    assert all(len(views.sample) == 6 for views in batches)
    assert 1 not in {number for views in batches for number in views.sample.tolist()}  # frame 10 of video 0
    assert sum(check_boxes(views, frames) for views in batches) > 10


def test_every_key_frame_is_tested_once_whole_and_in_batches_of_one_shape(walkers: ShardSet, frames: KeyFrames) -> None:
    with eval_loader(walkers, frames) as loader:
        batches = list(loader)
        again = list(loader)
    seen = [number for views in batches for number in views.sample.tolist()]
    assert sorted(seen) == list(range(18)) and seen == [number for views in again for number in views.sample.tolist()]
    assert {tuple(views.pixels.shape[-2:]) for views in batches} == {(32, 48), (48, 32), (32, 56)}
    assert sum(check_boxes(views, frames) for views in batches) == 18
    parts = []
    for rank in range(2):
        with eval_loader(walkers, frames, rank=rank, world_size=2) as loader:
            parts += list(loader)
    assert len(parts) == len(batches)
    for views, other in zip(batches, parts, strict=True):
        assert torch.equal(views.pixels, other.pixels) and torch.equal(views.boxes, other.boxes)


def test_a_bad_key_frame_of_the_test_is_left_out(walkers: ShardSet, frames: KeyFrames) -> None:
    damage_unit(walkers, 0, 10)
    with eval_loader(walkers, frames) as loader:
        seen = {number for views in loader for number in views.sample.tolist()}
        assert len(loader.bad) == 1 and "frame 10: checksum mismatch" in str(loader.bad[0])
    assert seen == set(range(18)) - {1}


def test_batches_by_shape_are_full_but_for_the_last_of_a_shape() -> None:
    shapes = np.array([(4, 3)] * 5 + [(3, 4)] * 2 + [(4, 3)] * 2, dtype=np.int64)
    assert [batch.tolist() for batch in batches_by_shape(shapes, 3)] == [[0, 1, 2], [3, 4, 7], [5, 6], [8]]
    assert batches_by_shape(np.zeros((0, 2), dtype=np.int64), 3) == []


def test_what_key_frames_do_not_offer_is_refused(walkers: ShardSet, frames: KeyFrames, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment.difference=0.2"):
        train_loader(walkers, frames, augment=RANDOM.model_copy(update={"difference": 0.2}))
    for changes in ({"rand_ops": 4}, {"mixup": 0.8}):
        with pytest.raises(ConfigError, match=r"augment\.(rand_ops=4|mix=1): boxes do not follow"):
            train_loader(walkers, frames, augment=RANDOM.model_copy(update=changes))
    keep = tmp_path / "keep.csv"
    keep.write_text("key,weight\nv0,1\nv1,3\n")
    part = walkers.subset(find_subset(walkers, read_keep_list(keep)))
    with pytest.raises(ConfigError, match="has weights"):
        train_loader(part, frames)
    with pytest.raises(ConfigError, match="values; the limit is"):
        eval_loader(walkers, frames, batch_size=1 << 20)
