"""Weighted k-nearest neighbors on backbone features (Wu et al., arXiv 1805.01978, as the release's monitor does it).

Bank: the mean over views of each training sample's features, normalized. Query: each view of a test sample by itself,
normalized; its K nearest bank rows vote for their class with weight exp(cosine / T); the votes of all views are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ShardFormatError
from rhofast.evaluation.features import Features, Progress, extract_features, part_of
from rhofast.evaluation.scores import Evaluation, Scores, class_map, summarize
from rhofast.evaluation.task import EvalTask, placed

_AT_ONCE = 1 << 25  # similarities in memory at once
_LARGEST = 700.0  # e to this is still a number


def knn_scores(
    bank: npt.NDArray[np.float32],
    bank_label: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float32],
    *,
    num_classes: int,
    neighbors: int,
    temperature: float,
) -> npt.NDArray[np.float64]:
    """Votes f64[M, num_classes]. bank f32[N, D] (any length), bank_label i64[N], queries f32[M, V, D]; `neighbors` is
    cut to N. At a temperature so low that votes would not be numbers, all votes of a sample are divided by the same."""
    bank = _normalized(bank)
    count = min(neighbors, len(bank))
    m, v, d = queries.shape
    flat = _normalized(queries.reshape(m * v, d))
    exponent, label = np.empty((m * v, count)), np.empty((m * v, count), dtype=np.int64)
    chunk = max(1, _AT_ONCE // len(bank))
    for first in range(0, m * v, chunk):
        similarity = flat[first : first + chunk] @ bank.T
        nearest = np.argpartition(similarity, len(bank) - count, axis=1)[:, -count:]
        exponent[first : first + chunk] = np.take_along_axis(similarity, nearest, axis=1) / temperature
        label[first : first + chunk] = bank_label[nearest]
    exponent, label = exponent.reshape(m, v * count), label.reshape(m, v * count)
    weight = np.exp(exponent - np.maximum(exponent.max(axis=1, keepdims=True) - _LARGEST, 0))
    votes = np.zeros((m, num_classes))
    np.add.at(votes, (np.repeat(np.arange(m), v * count), label.reshape(-1)), weight.reshape(-1))
    return votes


def evaluate_knn(
    backbone: nn.Module,
    train: ShardSet,
    test: ShardSet,
    config: Config,
    *,
    progress: Progress | None = None,
) -> Scores:
    """kNN accuracy of a backbone on held-out shards, with the training shards as the bank; the same on every rank.
    Classes are matched by name. Raises ConfigError where labels are missing or the test set has other classes."""
    to_train_class = class_map(train, test)
    total = len(train) + len(test)

    def extract(shards: ShardSet, before: int) -> Features:
        return extract_features(
            backbone,
            shards,
            config,
            progress=part_of(progress, before, total),
        )

    bank, queries = extract(train, 0), extract(test, len(train))
    labeled = bank.label >= 0
    if not labeled.any():
        raise ShardFormatError(f"{train.where}: of the samples that can be read, not one has a label")
    votes = knn_scores(
        bank.values[labeled].mean(axis=1),
        bank.label[labeled],
        queries.values,
        num_classes=len(train.info.classes),
        neighbors=config.eval.neighbors,
        temperature=config.eval.temperature,
    )
    known = queries.label >= 0
    return summarize(
        votes[known],
        to_train_class[queries.label[known]],
        classes=train.info.classes,
        left_out=[str(error) for error in [*bank.bad, *queries.bad]],
    )


def _normalized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float32] = values / np.maximum(length, np.finfo(np.float32).tiny)
    return unit


def evaluate_neighbors(case: EvalTask, *, untrained: bool = False, progress: Progress | None = None) -> Evaluation:
    """Weighted kNN of a case; the same on every rank. untrained: of the same backbone before training, too. progress:
    called with (samples done, in all). Raises ShardError."""
    config = case.config
    backbones = [case.subject.backbone, *([case.subject.untrained()] if untrained else [])]
    samples = len(case.train) + len(case.test)
    results = [
        evaluate_knn(
            placed(network, config),
            case.train,
            case.test,
            config,
            progress=part_of(progress, number * samples, len(backbones) * samples),
        )
        for number, network in enumerate(backbones)
    ]
    section = config.eval
    return Evaluation(
        kind="knn",
        origin=case.subject.origin,
        step=case.subject.step,
        folder=case.subject.folder,
        trained=results[0],
        untrained=results[1] if untrained else None,
        chance=1 / len(case.train.info.classes),
        classes=case.train.info.classes,
        shards=case.shards(),
        settings={"views": section.views, "neighbors": section.neighbors, "temperature": section.temperature},
        notes=case.notes,
    )
