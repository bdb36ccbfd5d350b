"""Multi-view testing equals a computation by hand, at any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.sampling.augment import three_crops
from rhofast.data.sampling.clips import uniform_clips
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.data.types import Geometry
from rhofast.evaluation.classifier import Classifier, GlobalDropout
from rhofast.evaluation.multiview import score_videos
from tests.helpers.shards import damage_unit, encode_mjpeg, frame_pixels, write_shards


def config(**values: Any) -> Config:
    values_of_test = {
        "name": "x",
        "clips": {"num_frames": 2, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "eval": {"test_views": 3, "batch_size": 20},
        "data": {"threads": 2, "decode_threads": 1},
    }
    return parse_config({**values_of_test, **values}, where="test")


class Means(nn.Module):
    """Class scores that are the softmax of the clip's mean color."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, pixels: Tensor) -> Tensor:
        return (self.scale * pixels.mean(dim=(2, 3, 4))).softmax(dim=1)


def views_of(shards: ShardSet, at: Config, *, world: int = 1) -> dict[int, Tensor]:
    """All views of each sample, [P, C, T, H, W]."""
    found: dict[int, Tensor] = {}
    for rank in range(world):
        options = {"clips": at.clips, "augment": at.augment, "data": at.data, "batch_size": 2}
        with EvalLoader(shards, **options, views=3, crops=3, rank=rank, world_size=world) as loader:  # type: ignore[arg-type]
            for batch in loader:
                for sample, pixels in zip(batch.sample.tolist(), batch.pixels, strict=True):
                    assert sample not in found
                    found[sample] = pixels.clone()
    return found


def test_scores_are_the_mean_of_the_softmax_over_thirty_views_by_hand(shards: ShardSet) -> None:
    at = config(eval={"test_views": 3, "test_crops": 3, "batch_size": 20})
    result = score_videos(Means(), shards, shards, at)
    confusion = np.zeros((3, 3), dtype=int)
    top1 = 0
    for sample, views in views_of(shards, at).items():
        assert len(views) == 9
        scores = np.zeros(3)
        for view in views.double().numpy():
            logits = 3 * view.mean(axis=(1, 2, 3))
            scores += np.exp(logits) / np.exp(logits).sum() / 9
        confusion[sample % 3, scores.argmax()] += 1
        top1 += scores.argmax() == sample % 3
    assert result.confusion == confusion.tolist()
    assert result.measures["top-1"] == pytest.approx(top1 / 13) and result.samples == 13


def test_views_show_the_frames_and_squares_that_the_protocol_names(shards: ShardSet) -> None:
    """Red encodes the frame, blue the horizontal position."""
    at = config()
    geometry = Geometry(
        num_frames=np.array([24]),
        fps=np.array([12.0]),
        width=np.array([64]),
        height=np.array([48]),
        pixel_aspect=np.ones(1),
    )
    frames = uniform_clips(at.clips, geometry, 3).frames[0]
    views = views_of(shards, at)[4] * 0.225 + 0.45
    for number, view in enumerate(views):
        clip, square = divmod(number, 3)
        assert np.allclose(view[0].mean(dim=(1, 2)) * 255, 8 * frames[clip], atol=6)
        left = [0, 8, 16][square]
        assert float(view[2].mean() * 255) == pytest.approx(255 * (left + 23.5) / 63, abs=4)


def test_two_ranks_see_each_video_once_and_the_same(shards: ShardSet) -> None:
    one, two = views_of(shards, config()), views_of(shards, config(), world=2)
    assert sorted(one) == sorted(two) == list(range(13))
    assert all(torch.equal(one[sample], two[sample]) for sample in one)


def test_square_videos_have_one_crop_per_clip(tmp_path: Path) -> None:
    members = [encode_mjpeg([frame_pixels(video, frame, 48, 48) for frame in range(20)]) for video in range(3)]
    square, seen = write_shards(tmp_path / "square", members, labels=[0, 1, 2]), list[int]()
    network = Means()
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    once = score_videos(network, square, square, config(eval={"test_views": 3, "test_crops": 1}))
    assert score_videos(network, square, square, config(eval={"test_views": 3, "test_crops": 3})) == once
    assert sum(seen) == 2 * 3 * 3


def test_the_three_squares_lie_along_the_long_side() -> None:
    squares = three_crops(np.array([64, 48, 48]), np.array([48, 64, 48]))
    assert squares[0].tolist() == [[0, 0, 48, 48], [8, 0, 48, 48], [16, 0, 48, 48]]
    assert squares[1].tolist() == [[0, 0, 48, 48], [0, 8, 48, 48], [0, 16, 48, 48]]
    assert squares[2].tolist() == [[0, 0, 48, 48]] * 3


def test_a_subset_of_samples_can_be_requested(shards: ShardSet) -> None:
    at, wanted = config(), np.array([11, 2, 7])
    with EvalLoader(
        shards, clips=at.clips, augment=at.augment, data=at.data, batch_size=2, views=1, samples=wanted
    ) as loader:
        assert [sample for batch in loader for sample in batch.sample.tolist()] == [11, 2, 7]


class Tiny(nn.Module):
    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 8, 8), stride=(1, 8, 8))
        self.bn = nn.BatchNorm3d(4)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        return [self.bn(self.conv(x))]

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_maps(x)[-1].mean(dim=(2, 3, 4))


def test_larger_pictures_are_scored_at_every_place_of_the_map() -> None:
    torch.manual_seed(0)
    classifier = Classifier(Tiny(), 3, trained=False, batch_stats=False, size=16).eval()
    x = torch.randn(2, 3, 4, 24, 24)  # a map of 3 x 3, windows of 2 x 2
    maps = classifier.backbone.feature_maps(x)[-1]  # type: ignore[operator]
    by_hand = torch.stack(
        [
            classifier.head(maps[:, :, :, y : y + 2, z : z + 2].mean(dim=(2, 3, 4))).softmax(dim=1)
            for y in range(2)
            for z in range(2)
        ]
    ).mean(dim=0)
    assert torch.allclose(classifier(x), by_hand, atol=1e-6)
    small = x[..., :16, :16]
    assert torch.allclose(classifier(small), classifier.head(classifier.backbone(small)).softmax(dim=1), atol=1e-6)


def test_frozen_statistics_stay_and_batch_statistics_move() -> None:
    for trained in (False, True):
        for batch_stats in (False, True):
            classifier = Classifier(Tiny(), 3, trained=trained, batch_stats=batch_stats).train()
            before = classifier.backbone.bn.running_mean.clone()  # type: ignore[union-attr, operator]
            classifier(torch.randn(4, 3, 2, 8, 8)).sum().backward()
            moved = not torch.equal(before, classifier.backbone.bn.running_mean)  # type: ignore[union-attr, arg-type]
            assert moved == batch_stats
            assert (classifier.backbone.conv.weight.grad is not None) == trained  # type: ignore[union-attr]
            assert classifier.head.weight.grad is not None


def test_a_bad_video_is_left_out_and_named(tmp_path: Path) -> None:
    members = [encode_mjpeg([frame_pixels(video, frame) for frame in range(4)]) for video in range(3)]
    shards = write_shards(tmp_path / "s", members, labels=[0, 1, 2])
    damage_unit(shards, 1, 0)
    result = score_videos(Means(), shards, shards, config())
    assert result.samples == 2 and len(result.left_out) == 1 and "v1" in result.left_out[0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_dropped_does_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    x = torch.rand(8, 4096) + 1
    parts = []
    for rank in range(ranks):
        dropout, rows = GlobalDropout(0.25), rank_slice(8, rank, ranks)
        dropout.begin(seed=5, rows=rows, batch=8)
        parts.append(dropout(x[rows]))
        assert torch.equal(dropout.eval()(x[rows]), x[rows])
    out, kept = torch.cat(parts), torch.cat(parts) != 0
    assert torch.allclose(out[kept], (x / 0.75)[kept])
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)  # of 32,768: nine standard deviations
    whole = GlobalDropout(0.25)
    whole.begin(seed=5, rows=slice(0, 8), batch=8)
    assert torch.equal(out, whole(x))
    whole.begin(seed=6, rows=slice(0, 8), batch=8)
    assert not torch.equal(out, whole(x))
