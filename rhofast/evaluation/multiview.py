"""The test protocol: K clips of each video, evenly over its length, each in 3 squares along its long side.

    video   |------------------------------------------|        K = eval.test_views clips
            [0]  [1]  [2]  ...                  [K-1]           each left, center, right (top, center, bottom)

A classifier's softmax scores are averaged over all K x 3 views of a video, each video once whatever the number of
ranks. In the release the three squares are 256 pixels wide although 224 went in for training, and its head is applied
at all places of the feature map and averaged after the softmax; `Classifier` does the same, for a Slow backbone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import nn

from rhofast.config.schema import AugmentConfig, Config, EvalConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError
from rhofast.evaluation.features import Progress, extract_features, mean_over_views
from rhofast.evaluation.scores import Scores, class_map, summarize
from rhofast.models.backbones.clip_limits import ClipLimits


def score_videos(
    classifier: nn.Module,
    train: ShardSet,
    test: ShardSet,
    config: Config,
    *,
    left_out: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Scores:
    """The accuracy of a classifier over the classes of `train` on the test shards, by the protocol of `config.eval`, on
    every rank. classifier: gives softmax scores in evaluation mode, on the device it should run on. left_out:
    lines about training samples. Raises ConfigError where labels are missing or the test set has other classes."""
    to_train_class = class_map(train, test)
    section = config.eval
    found = extract_features(
        classifier,
        test,
        config.model_copy(update={"augment": test_augment(config)}),
        views=section.test_views,
        crops=crops_of(test, section),
        progress=progress,
        reduce=mean_over_views,
    )
    known = found.label >= 0
    scores: npt.NDArray[np.float32] = found.values[known, 0]
    return summarize(
        scores,
        to_train_class[found.label[known]],
        classes=train.info.classes,
        left_out=[*left_out, *(str(error) for error in found.bad)],
    )


def crops_of(shards: ShardSet, section: EvalConfig) -> int:
    """How many squares each clip is tested in: of square videos one, as three times the same says no more."""
    indices = map(shards.index, range(len(shards.info.shards)))
    return 1 if all(np.array_equal(index.width, index.height) for index in indices) else section.test_crops


def check_test(backbone: nn.Module, config: Config) -> None:
    """See that the pictures of the test go into a network, before it is trained for hours. Raises ConfigError."""
    limits, size = getattr(backbone, "limits", None), test_augment(config).size
    if isinstance(limits, ClipLimits):
        try:
            limits.check(config.clips.num_frames, size, size)
        except ConfigError as error:
            hint = f"--set eval.test_size={limits.size}" if size == config.eval.test_size else error.hint
            raise ConfigError(f"the test: {error.message}", hint=hint) from None


def test_augment(config: Config) -> AugmentConfig:
    """The size of test pictures, and what normalizes them."""
    size = config.eval.test_size or config.augment.size
    return config.augment.model_copy(update={"size": size})
