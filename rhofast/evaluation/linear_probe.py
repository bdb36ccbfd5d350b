"""The linear probe in closed form: compute features once, then fit a logistic regression.

    train shards --> backbone --> features of eval.views center clips --> penalty by a validation fifth --> W, b
    test shards  --> backbone --> W, b --> softmax, mean over the views of multiview.py

The penalty is chosen on a part of the training samples, then the classifier is fitted on all of them. The test shards
are used once, at the end. PySlowFast's linear probe by SGD with augmentation is in training/finetune.py.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from rhofast.errors import ShardFormatError
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.features import Progress, extract_features, part_of
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.logistic_regression import Linear, PenaltyScore, standardize, sweep, unstandardize
from rhofast.evaluation.multiview import check_test, score_videos, test_settings
from rhofast.evaluation.scores import Evaluation, Scores, check_labeled
from rhofast.evaluation.task import EvalTask, placed
from rhofast.evaluation.validation import validation_mask

_VALIDATION_SHARE = 0.2


def evaluate_linear(
    task: EvalTask, *, untrained: bool = False, progress: Progress | None = None, on_fit: Progress | None = None
) -> Evaluation:
    """Run the linear probe of a task. The result is the same on every rank.

    Args:
        task: The task.
        untrained: Whether the same backbone before training is evaluated too.
        progress: Called with (samples done, total samples).
        on_fit: Called on rank 0 with (fits done, total fits) of the penalty sweep.

    Returns:
        The result. What it chose is the penalty; all penalties that were compared stand beside it.

    Raises:
        ConfigError: If labels are missing, classes do not match, or the test input does not fit the backbone.
        ShardError: If shards cannot be read, or no readable sample has a label.
        NotFiniteError: If a feature is not finite.
    """
    check_test(task.model.backbone, task.config)
    for shards in (task.train, task.test):
        check_labeled(shards)
    backbones = [task.model.backbone, *([task.model.untrained()] if untrained else [])]
    samples = len(task.train) + len(task.test)
    results = [
        _probe(task, network, part_of(progress, number * samples, len(backbones) * samples), on_fit)
        for number, network in enumerate(backbones)
    ]
    scores, penalty, tried = results[0]
    return task.result(
        "linear",
        scores,
        untrained=results[1][0] if untrained else None,
        settings={"fit": "closed form", "views": task.config.eval.views, **test_settings(task.test, task.config)},
        chosen={"penalty": penalty, "sweep": [asdict(score) for score in tried]},
    )


def _probe(
    task: EvalTask, backbone: nn.Module, progress: Progress | None, on_fit: Progress | None
) -> tuple[Scores, float, list[PenaltyScore]]:
    config, classes = task.config, task.train.info.classes
    network = placed(backbone, config)
    samples = len(task.train) + len(task.test)
    features = extract_features(
        network,
        task.train,
        config,
        progress=part_of(progress, 0, samples),
    )
    labeled = features.label >= 0
    if not labeled.any():
        raise ShardFormatError(f"{task.train.where}: no readable sample has a label")
    label = features.label[labeled]
    validation = validation_mask(source_digests(task.train)[features.sample[labeled]], label, _VALIDATION_SHARE)
    linear, penalty, tried = _fitted(features.values, labeled, label, validation, len(classes), on_fit)
    classifier = Classifier(network, len(classes), trained=False, batch_stats=False, size=config.augment.size)
    with torch.no_grad():
        classifier.head.weight.copy_(linear.weight)
        classifier.head.bias.copy_(linear.bias)
    scores = score_videos(
        placed(classifier, config),
        task.train,
        task.test,
        config,
        left_out=tuple(str(error) for error in features.bad),
        progress=part_of(progress, len(task.train), samples),
    )
    return scores, penalty, tried


def _fitted(
    values: npt.NDArray[np.float32],
    labeled: npt.NDArray[np.bool_],
    label: npt.NDArray[np.int64],
    validation: npt.NDArray[np.bool_],
    num_classes: int,
    on_fit: Progress | None,
) -> tuple[Linear, float, list[PenaltyScore]]:
    """Fit a classifier on rank 0 and broadcast it.

    Args:
        values: f32[A, V, D], features; each view is one row.
        labeled: bool[A], the N samples that have a label.
        label: i64[N], class numbers.
        validation: bool[N], the samples on which penalties are compared.
        num_classes: Number of classes.
        on_fit: Called on rank 0 with (fits done, total fits).

    Returns:
        (classifier, chosen penalty, all penalties with their scores). The latter two are empty on other ranks.
    """
    state, views = PartialState(), values.shape[1]
    device = state.device
    linear = Linear(
        weight=torch.zeros(num_classes, values.shape[2], device=device), bias=torch.zeros(num_classes, device=device)
    )
    penalty, tried = 0.0, list[PenaltyScore]()
    if state.is_main_process:
        rows = torch.from_numpy(values if labeled.all() else values[labeled]).to(device).flatten(0, 1)
        mean, scale = standardize(rows)
        y, validation_rows = (_per_view(torch.from_numpy(array).to(device), views) for array in (label, validation))
        found, penalty, tried = sweep((rows - mean) / scale, y, num_classes, validation_rows, on_fit=on_fit)
        linear = unstandardize(found, mean, scale)
    weight, bias = (broadcast(value.contiguous()) for value in (linear.weight, linear.bias))
    return Linear(weight=weight, bias=bias), penalty, tried


def _per_view(value: Tensor, views: int) -> Tensor:
    return value.repeat_interleave(views)
