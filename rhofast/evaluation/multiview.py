"""The test protocol: K clips per video, evenly over its length, each with 3 square crops along its long side.

    video   |------------------------------------------|        K = eval.test_views clips
            [0]  [1]  [2]  ...                  [K-1]           each left, center, right (top, center, bottom)

The softmax scores of a classifier are averaged over all K x 3 views of a video. Each video counts once, whatever the
number of ranks. PySlowFast tests with crops of 256 pixels although it trains with 224, applies the classifier at all
positions of the feature map and averages after the softmax. `Classifier` does the same for a Slow backbone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rhofast.config.schema import AugmentConfig, Config, EvalConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError
from rhofast.evaluation.features import Features, Progress, extract_features, mean_over_views
from rhofast.evaluation.scores import Scores, class_map, summarize
from rhofast.models.backbones.clip_limits import ClipLimits


def score_videos(
    classifier: nn.Module,
    train: ShardSet,
    test: ShardSet,
    config: Config,
    *,
    left_out: tuple[str, ...] = (),
    joined: int = 1,
    progress: Progress | None = None,
) -> Scores:
    """Measure the accuracy of a classifier on the test shards, by the protocol of `config.eval`, on every rank.

    Args:
        classifier: Returns softmax scores in evaluation mode. It lies on the device on which it runs.
        train: Training shards, whose classes the classifier knows.
        test: Held-out test shards.
        config: Input, reading and section `eval`.
        left_out: Lines about training samples that could not be read.
        joined: Number of clips that the classifier reads together, as for FeatureStream.
        progress: Called with (samples done, total samples).

    Returns:
        The accuracies.

    Raises:
        ConfigError: If labels are missing or the test set has a class that the training set lacks.
        ShardError: If shards cannot be read, or no readable sample has a label.
        NotFiniteError: If a score is not finite.
    """
    to_train_class = class_map(train, test)
    found = score_views(classifier, test, config, reduce=mean_over_views, joined=joined, progress=progress)
    known = found.label >= 0
    scores: npt.NDArray[np.float32] = found.values[known, 0]
    return summarize(
        scores,
        to_train_class[found.label[known]],
        classes=train.info.classes,
        left_out=[*left_out, *(str(error) for error in found.bad)],
    )


def score_views(
    classifier: nn.Module,
    test: ShardSet,
    config: Config,
    *,
    reduce: Callable[[Tensor], Tensor],
    joined: int = 1,
    progress: Progress | None = None,
) -> Features:
    """Compute a classifier's scores of all views of all test videos, on every rank.

    Args:
        classifier: Returns scores f[N, C] in evaluation mode. It lies on the device on which it runs.
        test: Test shards.
        config: Input, reading and section `eval`.
        reduce: Makes one score per video and class, f[B, 1, C], of those of its views, f[B, V, C].
        joined: Number of clips that the classifier reads together, as for FeatureStream.
        progress: Called with (samples done, total samples).

    Raises:
        ShardError: If shards cannot be read.
        NotFiniteError: If a score is not finite.
    """
    section = config.eval
    return extract_features(
        classifier,
        test,
        config.model_copy(update={"augment": test_augment(config)}),
        views=section.test_views,
        crops=crops_of(test, section),
        progress=progress,
        reduce=reduce,
        joined=joined,
    )


def test_settings(test: ShardSet, config: Config) -> dict[str, int]:
    """Return the settings of the test of a classifier, as a result names them."""
    size = test_augment(config).size
    return {"test_views": config.eval.test_views, "test_crops": crops_of(test, config.eval), "test_size": size}


def crops_of(shards: ShardSet, section: EvalConfig) -> int:
    """Return the number of crops per test clip: one for square videos, where all crops would be equal.

    Args:
        shards: Test shards.
        section: Section `eval` of the configuration.

    Returns:
        1 or `eval.test_crops`.
    """
    indices = map(shards.index, range(len(shards.info.shards)))
    square = all(np.array_equal(np.rint(index.width * index.pixel_aspect), index.height) for index in indices)
    return 1 if square else section.test_crops


def check_test(backbone: nn.Module, config: Config) -> None:
    """Check that the input of the test fits a network, before it is trained for hours.

    Args:
        backbone: The network.
        config: Input and section `eval`.

    Raises:
        ConfigError: If the network cannot take test clips of this size.
    """
    limits, size = getattr(backbone, "limits", None), test_augment(config).size
    if isinstance(limits, ClipLimits):
        try:
            limits.check(config.clips.num_frames, size, size)
        except ConfigError as error:
            hint = f"--set eval.test_size={limits.size}" if size == config.eval.test_size else error.hint
            raise ConfigError(f"test input: {error.message}", hint=hint) from None


def test_augment(config: Config) -> AugmentConfig:
    """Return the `augment` section of the test, with the size of test frames and the normalization of the run."""
    size = config.eval.test_size or config.augment.size
    return config.augment.model_copy(update={"size": size})
