"""Several labels per video: average precision against scikit-learn and by hand, and the protocol against its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from rhofast.config.load import parse_config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.eval_loader import EvalLoader
from rhofast.data.sources import open_shards
from rhofast.data.types import TimedLabel
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.multilabel import MAP, average_precision, classes_of, score_labels, summarize_labels
from rhofast.evaluation.scores import class_map
from tests.helpers.shards import damage_unit, write_shards

FURTHER = [
    [TimedLabel(video % 4, 0.5, 1.0), *([TimedLabel(video % 4, 1.5, None), TimedLabel(3)] if video % 3 else [])]
    for video in range(13)
]
FURTHER[5] = []
HELD = [{label for label, _, _ in labels} for labels in FURTHER]


@pytest.fixture
def timed(members: list[bytes], tmp_path: Path) -> ShardSet:
    """Thirteen videos with further labels alone, one without any."""
    return write_shards(tmp_path / "timed", members, further=FURTHER)


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 / 1 + 2 / 3) / 2),
        ([0.1, 0.2, 0.3], [1, 0, 0], 1 / 3),
        ([0.3, 0.2, 0.1], [1, 1, 1], 1.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5),  # equal scores: the order says nothing
        ([0.5, 0.9, 0.5, 0.1], [1, 0, 0, 1], (1 / 3 + 2 / 4) / 2),
    ],
)
def test_average_precision_by_hand(scores: list[float], positive: list[int], expected: float) -> None:
    assert average_precision(np.array(scores), np.array(positive, dtype=bool)) == pytest.approx(expected)


def test_average_precision_is_that_of_scikit_learn_and_independent_of_the_order() -> None:
    draw = np.random.default_rng(0)
    for videos, levels in ((1, 3), (7, 2), (50, 5), (300, 1000), (2000, 17)):
        scores = draw.integers(0, levels, (videos, 6)).astype(np.float32) / levels
        positive = draw.random((videos, 6)) < [0.0, 0.01, 0.1, 0.5, 0.9, 1.0]
        positive[0, 2] = True
        classes = [f"c{number}" for number in range(6)]
        found = summarize_labels(scores, positive, classes=classes, left_out=["x"])
        seen = np.flatnonzero(positive.any(axis=0))
        expected = average_precision_score(positive[:, seen], scores[:, seen], average=None)
        assert list(found.per_class) == [classes[number] for number in seen]
        assert list(found.per_class.values()) == pytest.approx(np.atleast_1d(expected).tolist(), abs=1e-12)
        assert found.measures == {"mAP": pytest.approx(np.mean(expected))}
        assert (found.samples, found.left_out, found.confusion) == (videos, ["x"], None)
        assert found.chance[MAP] == pytest.approx(positive[:, seen].mean())
        order = draw.permutation(videos)
        assert summarize_labels(scores[order], positive[order], classes=classes, left_out=["x"]) == found
    with pytest.raises(ShardFormatError, match="no readable test sample has a label"):
        summarize_labels(scores, np.zeros_like(positive), classes=classes, left_out=[])


def test_a_video_has_the_classes_that_hold_at_any_time(timed: ShardSet, members: list[bytes], tmp_path: Path) -> None:
    assert [set(np.flatnonzero(row).tolist()) for row in classes_of(timed)] == HELD
    (tmp_path / "keys.txt").write_text("v12\nv5\nv7\nv1\n")
    part = open_shards(timed.root, keep=tmp_path / "keys.txt")
    assert [set(np.flatnonzero(row).tolist()) for row in classes_of(part)] == [HELD[video] for video in (1, 5, 7, 12)]
    both = write_shards(tmp_path / "both", members, labels=[video % 2 for video in range(13)], further=FURTHER)
    assert [set(np.flatnonzero(row).tolist()) for row in classes_of(both)] == [
        held | {video % 2} for video, held in enumerate(HELD)
    ]


class Colors(nn.Module):
    """A score for each of four classes that is a sigmoid of what the clip looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, 2.0], [-1.0, 0.1, 1.0], [2.0, 2.0, 0.0]]))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.mean(dim=(2, 3, 4)) @ self.scale.T).sigmoid()


def test_scores_are_the_maximum_over_all_views_by_hand(timed: ShardSet) -> None:
    values = {
        "name": "x",
        "clips": {"num_frames": 2, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "eval": {"test_views": 3, "test_crops": 3, "batch_size": 20},
        "data": {"threads": 2, "decode_threads": 1},
    }
    at = parse_config(values, where="test")
    damage_unit(timed, 8, 0)
    network, best, positive = Colors(), [], []
    options = {"clips": at.clips, "augment": at.augment, "data": at.data, "batch_size": 2}
    with EvalLoader(timed, **options, views=3, crops=3) as loader, torch.no_grad():  # type: ignore[arg-type]
        for batch in loader:
            for sample, views in zip(batch.sample.tolist(), batch.pixels, strict=True):
                assert len(views) == 9
                best.append(torch.stack([network(view[None])[0] for view in views]).amax(dim=0).numpy())
                positive.append([label in HELD[sample] for label in range(4)])
    result = score_labels(network, timed, timed, at)
    expected = average_precision_score(np.array(positive), np.array(best), average=None)
    assert list(result.per_class.values()) == pytest.approx(expected.tolist())
    assert result.samples == 12 and len(result.left_out) == 1 and "key 'v8'" in result.left_out[0]


def test_classes_are_matched_by_name_and_those_of_further_labels_count(
    timed: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    few = write_shards(tmp_path / "few", members[:4], further=[[TimedLabel(1)], [TimedLabel(0)], [], []])
    assert class_map(timed, few).tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"timed: class 'class 2' is not a class of .*few .and 1 more classes"):
        class_map(few, timed)


def test_a_classifier_of_several_labels_scores_each_by_itself() -> None:
    class Pooled(nn.Module):
        num_features = 3

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.mean(dim=(2, 3, 4))

    pixels = torch.randn(2, 3, 2, 8, 8)
    for several in (False, True):
        classifier = Classifier(Pooled(), 4, trained=True, batch_stats=True, several=several)
        logits = classifier.train()(pixels)
        scores = classifier.eval()(pixels)
        assert torch.equal(scores, logits.sigmoid() if several else logits.softmax(dim=1))
