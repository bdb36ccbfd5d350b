"""The linear probe in closed form: compute features once, then fit a logistic regression.

    train shards --> backbone --> features of eval.views center clips --> penalty by a validation fifth --> W, b
    test shards  --> backbone --> W, b --> softmax, mean over the views of multiview.py

The penalty is chosen on a part of the training samples, then the classifier is fitted on all of them. The test shards
are used once, at the end. Where training videos have further labels alone, each class is fitted by itself: a clip has
those that hold while it is shown, the penalty is chosen by mAP, and the test is that of multilabel.py. PySlowFast's
linear probe by SGD with augmentation is in training/finetune.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ShardFormatError
from rhofast.evaluation.choice import Tried
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.features import Features, Progress, extract_features, part_of
from rhofast.evaluation.leakage import source_digests
from rhofast.evaluation.logistic_regression import Linear, accuracy, standardize, sweep, unstandardize
from rhofast.evaluation.multilabel import MAP, classes_in_views, classes_of, mean_precision, score_labels
from rhofast.evaluation.multiview import check_test, score_videos, test_settings
from rhofast.evaluation.scores import Evaluation, Scores, check_labeled, has_several
from rhofast.evaluation.task import EvalTask, placed
from rhofast.evaluation.validation import check_split, validation_mask

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
        check_labeled(shards, several=has_several(task.train))
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
        chosen={"penalty": penalty, "sweep": [one.to_json() for one in tried]},
    )


def _probe(
    task: EvalTask, backbone: nn.Module, progress: Progress | None, on_fit: Progress | None
) -> tuple[Scores, float, list[Tried]]:
    config, train = task.config, task.train
    network, num_classes, several = placed(backbone, config), len(task.classes), has_several(train)
    samples = len(train) + len(task.test)
    features = extract_features(network, train, config, progress=part_of(progress, 0, samples))
    targets = _several_targets(train, features, config) if several else _targets(train, features)
    validation = validation_mask(source_digests(train)[features.sample[targets.rows]], targets.group, _VALIDATION_SHARE)
    check_split(validation, train)
    linear, penalty, tried = _fitted(features.values, targets, validation, num_classes, on_fit)
    classifier = Classifier(
        network, num_classes, trained=False, batch_stats=False, size=config.augment.size, several=several
    )
    with torch.no_grad():
        classifier.head.weight.copy_(linear.weight)
        classifier.head.bias.copy_(linear.bias)
    scores = (score_labels if several else score_videos)(
        placed(classifier, config),
        train,
        task.test,
        config,
        left_out=tuple(str(error) for error in features.bad),
        progress=part_of(progress, len(train), samples),
    )
    return scores, penalty, tried


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Targets:
    """What a classifier is fitted to.

    Attributes:
        rows: The N of all samples that it is fitted on, i64[N].
        group: What a validation part has a share of: class numbers i64[N], or zeros.
        of_view: The class of each view, i64[N, V]; or the classes, bool[N, V, C].
        of_video: The classes of each video at any time, bool[N, C]; None where a video has one.
    """

    rows: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    of_view: npt.NDArray[np.int64] | npt.NDArray[np.bool_]
    of_video: npt.NDArray[np.bool_] | None = None

    def score(self, logits: Tensor, y: Tensor, validation: npt.NDArray[np.bool_]) -> float:
        """Return how good the logits f[M * V, C] of M validation videos are: accuracy of clips, or mAP of videos."""
        if self.of_video is None:
            return accuracy(logits, y)
        best = logits.view(-1, self.of_view.shape[1], logits.shape[1]).amax(dim=1)
        return mean_precision(best.cpu().numpy(), self.of_video[validation])


def _targets(train: ShardSet, features: Features) -> _Targets:
    """Return the targets where a video has one class at most; raise ShardFormatError if none has any."""
    rows = np.flatnonzero(features.label >= 0)
    if not len(rows):
        raise ShardFormatError(f"{train.where}: no readable sample has a label")
    label = features.label[rows]
    return _Targets(rows=rows, group=label, of_view=np.repeat(label[:, None], features.values.shape[1], axis=1))


def _several_targets(train: ShardSet, features: Features, config: Config) -> _Targets:
    """Return the targets where a video may have several classes."""
    rows = np.arange(len(features.sample))
    return _Targets(
        rows=rows,
        group=np.zeros_like(rows),
        of_view=classes_in_views(train, features.sample, config, features.values.shape[1]),
        of_video=classes_of(train)[features.sample],
    )


def _fitted(
    values: npt.NDArray[np.float32],
    targets: _Targets,
    validation: npt.NDArray[np.bool_],
    num_classes: int,
    on_fit: Progress | None,
) -> tuple[Linear, float, list[Tried]]:
    """Fit a classifier on rank 0 and broadcast it.

    Args:
        values: f32[A, V, D], features; each view is one row.
        targets: The N samples that it is fitted on, with their classes.
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
    penalty, tried = 0.0, list[Tried]()
    if state.is_main_process:
        some = values if len(targets.rows) == len(values) else values[targets.rows]
        rows, y = (torch.from_numpy(array).to(device).flatten(0, 1) for array in (some, targets.of_view))
        mean, scale = standardize(rows)
        found, penalty, tried = sweep(
            (rows - mean) / scale,
            y,
            num_classes,
            torch.from_numpy(validation).to(device).repeat_interleave(views),
            measure="top1" if targets.of_video is None else MAP,
            score=lambda logits, true: targets.score(logits, true, validation),
            on_fit=on_fit,
        )
        linear = unstandardize(found, mean, scale)
    weight, bias = (broadcast(value.contiguous()) for value in (linear.weight, linear.bias))
    return Linear(weight=weight, bias=bias), penalty, tried
