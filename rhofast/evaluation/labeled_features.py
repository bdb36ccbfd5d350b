"""The features of a labeled training set and of a held-out set, with classes matched by name, for kNN and retrieval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ShardFormatError
from rhofast.evaluation.features import Progress, extract_features, part_of
from rhofast.evaluation.scores import Scores, check_labeled, class_map
from rhofast.evaluation.task import EvalTask, placed


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledFeatures:
    """Features of the labeled samples of both sets.

    Attributes:
        bank: f32[A, V, D], V views of all training samples. They are not copied, since they may be large.
        bank_rows: i64[N], those of the A that have a label.
        bank_label: i64[N], class numbers of the training set.
        queries: f32[M, V, D], V views per test sample.
        query_label: i64[M], class numbers of the training set.
        classes: Class names of the training set.
        left_out: Samples of both sets that could not be read, one line each.
    """

    bank: npt.NDArray[np.float32]
    bank_rows: npt.NDArray[np.int64]
    bank_label: npt.NDArray[np.int64]
    queries: npt.NDArray[np.float32]
    query_label: npt.NDArray[np.int64]
    classes: list[str]
    left_out: list[str]


def extract_labeled(
    backbone: nn.Module, train: ShardSet, test: ShardSet, config: Config, *, progress: Progress | None = None
) -> LabeledFeatures:
    """Compute the features of two sets, on every rank.

    Args:
        backbone: [N, C, T, H, W] -> [N, D], on the device on which it runs.
        train: Labeled training shards.
        test: Held-out test shards.
        config: Input, reading and section `eval`.
        progress: Called with (samples done, total samples).

    Returns:
        The features.

    Raises:
        ConfigError: If labels are missing or the test set has a class that the training set lacks.
        ShardError: If shards cannot be read, or no readable sample has a label.
        NotFiniteError: If a feature is not finite.
    """
    to_train_class = class_map(train, test)
    total = len(train) + len(test)
    bank = extract_features(backbone, train, config, progress=part_of(progress, 0, total))
    queries = extract_features(backbone, test, config, progress=part_of(progress, len(train), total))
    labeled, known = bank.label >= 0, queries.label >= 0
    if not labeled.any():
        raise ShardFormatError(f"{train.where}: no readable sample has a label")
    return LabeledFeatures(
        bank=bank.values,
        bank_rows=np.flatnonzero(labeled),
        bank_label=bank.label[labeled],
        queries=queries.values if known.all() else queries.values[known],
        query_label=to_train_class[queries.label[known]],
        classes=train.info.classes,
        left_out=[str(error) for error in [*bank.bad, *queries.bad]],
    )


def measure_backbones(
    task: EvalTask,
    measure: Callable[[nn.Module, Progress | None], Scores],
    *,
    untrained: bool,
    progress: Progress | None,
) -> list[Scores]:
    """Measure the backbone of a task and, if wanted, the same backbone before training.

    Args:
        task: The task.
        measure: Measures a network on its device, and reports progress as (samples done, total samples).
        untrained: Whether the untrained backbone is measured too.
        progress: Called with (samples done, total samples) of all.

    Returns:
        The scores of the backbone and, if wanted, those of the untrained one.

    Raises:
        ConfigError: If no sample of a set has a label.
        ShardError: If an index cannot be read.
    """
    for shards in (task.train, task.test):
        check_labeled(shards)
    backbones = [task.model.backbone, *([task.model.untrained()] if untrained else [])]
    samples = len(task.train) + len(task.test)
    return [
        measure(placed(network, task.config), part_of(progress, number * samples, len(backbones) * samples))
        for number, network in enumerate(backbones)
    ]
