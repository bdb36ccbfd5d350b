"""The linear probe in closed form: features once, then logistic regression.

    train shards --> backbone --> features of eval.views center clips --> penalty by a held-out fifth --> W, b
    test shards  --> backbone --> W, b --> softmax, mean over the views of multiview.py

The penalty is chosen on a part of the TRAINING samples, then everything is fitted again; the test shards are looked at
once, in the end. What it is not: the release's probe by SGD with augmentation (finetune.py).
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
from rhofast.evaluation.logistic_regression import Linear, Tried, folded, standardize, sweep
from rhofast.evaluation.multiview import check_test, crops_of, score_videos
from rhofast.evaluation.scores import Evaluation, Scores
from rhofast.evaluation.task import EvalTask, placed

_HELD_SHARE = 0.2


def evaluate_linear(
    case: EvalTask, *, untrained: bool = False, progress: Progress | None = None, on_fit: Progress | None = None
) -> Evaluation:
    """The linear probe of a case; the same on every rank. untrained: of the same backbone before training, too.
    progress: called with (samples done, in all); on_fit: on rank 0, with (fits of a sweep done, in all). Raises
    ConfigError, ShardError, NotFiniteError."""
    check_test(case.subject.backbone, case.config)
    backbones = [case.subject.backbone, *([case.subject.untrained()] if untrained else [])]
    samples = len(case.train) + len(case.test)
    results = [
        _probe(case, network, part_of(progress, number * samples, len(backbones) * samples), on_fit)
        for number, network in enumerate(backbones)
    ]
    scores, penalty, tried = results[0]
    return Evaluation(
        kind="linear",
        origin=case.subject.origin,
        step=case.subject.step,
        folder=case.subject.folder,
        trained=scores,
        untrained=results[1][0] if untrained else None,
        chance=1 / len(case.train.info.classes),
        classes=case.train.info.classes,
        shards=case.shards(),
        settings={"penalty": penalty, "sweep": [asdict(one) for one in tried], **_protocol(case)},
        notes=case.notes,
    )


def held_part(digest: npt.NDArray[np.bytes_], label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The samples on which penalties are compared: a fifth of each class of two samples or more, by the order of their
    sources' digests, so that it is the same whatever the order of the set; samples of one source stay together. digest
    S16[N], label i64[N]."""
    order = np.lexsort((digest, label))
    ordered = label[order]
    first = np.searchsorted(ordered, ordered, side="left")
    size = np.searchsorted(ordered, ordered, side="right") - first
    wanted = np.where(size > 1, np.maximum(np.rint(_HELD_SHARE * size), 1), 0)
    chosen = order[np.arange(len(order)) - first < wanted]
    held: npt.NDArray[np.bool_] = np.isin(digest, digest[chosen])
    return held


def _probe(
    case: EvalTask, backbone: nn.Module, progress: Progress | None, on_fit: Progress | None
) -> tuple[Scores, float, list[Tried]]:
    config, classes = case.config, case.train.info.classes
    network = placed(backbone, config)
    samples = len(case.train) + len(case.test)
    features = extract_features(
        network,
        case.train,
        config,
        progress=part_of(progress, 0, samples),
    )
    labeled = features.label >= 0
    if not labeled.any():
        raise ShardFormatError(f"{case.train.where}: of the samples that can be read, not one has a label")
    label = features.label[labeled]
    held = held_part(source_digests(case.train)[features.sample[labeled]], label)
    linear, penalty, tried = _fitted(features.values[labeled], label, held, len(classes), on_fit)
    classifier = Classifier(network, len(classes), trained=False, batch_stats=False, size=config.augment.size)
    with torch.no_grad():
        classifier.head.weight.copy_(linear.weight)
        classifier.head.bias.copy_(linear.bias)
    scores = score_videos(
        placed(classifier, config),
        case.train,
        case.test,
        config,
        left_out=tuple(str(error) for error in features.bad),
        progress=part_of(progress, len(case.train), samples),
    )
    return scores, penalty, tried


def _fitted(
    values: npt.NDArray[np.float32],
    label: npt.NDArray[np.int64],
    held: npt.NDArray[np.bool_],
    num_classes: int,
    on_fit: Progress | None,
) -> tuple[Linear, float, list[Tried]]:
    """Of features f32[N, V, D], each view a row; fitted on rank 0, and told to the others."""
    state, views = PartialState(), values.shape[1]
    device = state.device
    linear = Linear(
        weight=torch.zeros(num_classes, values.shape[2], device=device), bias=torch.zeros(num_classes, device=device)
    )
    penalty, tried = 0.0, list[Tried]()
    if state.is_main_process:
        rows = torch.from_numpy(values).to(device).flatten(0, 1)
        mean, scale = standardize(rows)
        y, apart = (_each(torch.from_numpy(array).to(device), views) for array in (label, held))
        found, penalty, tried = sweep((rows - mean) / scale, y, num_classes, apart, on_fit=on_fit)
        linear = folded(found, mean, scale)
    weight, bias = (broadcast(value.contiguous()) for value in (linear.weight, linear.bias))
    return Linear(weight=weight, bias=bias), penalty, tried


def _each(value: Tensor, views: int) -> Tensor:
    return value.repeat_interleave(views)


def _protocol(case: EvalTask) -> dict[str, int]:
    section = case.config.eval
    crops = crops_of(case.test, section)
    return {"views": section.views, "test_views": section.test_views, "test_crops": crops}
